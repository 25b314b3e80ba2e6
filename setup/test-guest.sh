#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# test-guest.sh LIBDIR: LIBDIR/test-guest/{vmlinuz,initrd}, a small Linux that the tests boot as a full machine.
# It configures itself by DHCP, serves its host name by HTTP, tells all on the serial console, and obeys the
# power button. The kernel is Debian's cloud kernel, as of kernel.sh, with the modules of a PCI machine.
set -euo pipefail
lib=$(cd "${1:?usage: test-guest.sh LIBDIR}" && pwd)
here=$(cd "$(dirname "$0")" && pwd)

stamp=$(sha256sum <"$0")
[ "$stamp" = "$(cat "$lib/test-guest/stamp" 2>/dev/null)" ] && exit 0

# liburing and others: what qemu-ga is linked with, as QEMU is.
"$here/apt.sh" kmod cpio xz-utils busybox-static liburing2 libglib2.0-0 libudev1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt's own user writes into it
package=$(apt-cache depends --important linux-image-cloud-amd64 |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*-cloud-amd64\)$/\1/p' | head -n 1)
(cd "$work" && apt-get -q download -o APT::Sandbox::User=root "$package" >/dev/null)
mkdir "$work/deb" "$work/root" "$lib/test-guest.new"
dpkg-deb --fsys-tarfile "$work"/*.deb | tar -x -C "$work/deb"
version=$(basename "$work"/deb/lib/modules/*)
depmod -b "$work/deb" "$version"
cp "$work/deb/boot/vmlinuz-$version" "$lib/test-guest.new/vmlinuz"

mkdir "$work/agent"
(cd "$work/agent" && apt-get -q download -o APT::Sandbox::User=root qemu-guest-agent >/dev/null && dpkg-deb -x ./*.deb .)
mkdir -p "$work/root"/{bin,dev,proc,sys,www,etc,mnt,modules,run,var,tmp}
ln -s ../run "$work/root/var/run"
cp /bin/busybox "$work/root/bin/busybox"
cp "$work/agent/usr/sbin/qemu-ga" "$work/root/bin/qemu-ga"
ldd "$work/root/bin/qemu-ga" | grep -o '/[^ ]*' | while read -r file; do install -D "$file" "$work/root$file"; done
for applet in sh stat readlink mktemp tar rm mount insmod ip udhcpc httpd wget cat echo hostname sleep grep poweroff reboot ls nslookup; do
    ln -s busybox "$work/root/bin/$applet"
done
modprobe -d "$work/deb" -S "$version" --show-depends -a virtio_pci virtio_net virtio_blk virtio_console button evdev iso9660 |
    while read -r kind file _; do
        [ "$kind" = insmod ] || continue
        name=$(basename "$file")
        [ -e "$work/root/modules/$name" ] && continue
        cp "$file" "$work/root/modules/$name"
        echo "$name" >>"$work/root/modules/list"
    done
cat >"$work/root/dhcp" <<'SCRIPT'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev "$interface"
for one in $router; do ip route add default via "$one"; done
for one in $dns; do echo "nameserver $one"; done >/etc/resolv.conf
hostname "$hostname"
echo "$hostname" >/www/index.html
echo "guest: $hostname has $ip, router ${router:-none}, names from ${dns:-nobody}, mtu ${mtu:-unknown}"
SCRIPT
cat >"$work/root/init" <<'SCRIPT'
#!/bin/sh
export PATH=/bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
while read -r module; do insmod "/modules/$module"; done </modules/list 2>/dev/null
for disk in /sys/block/vd*; do
    [ -e "$disk" ] && echo "guest: disk $(cat "$disk/serial") of $(cat "$disk/size") sectors"
done
ip link set lo up
for card in /sys/class/net/eth*; do
    [ -e "$card" ] || continue
    ip link set "${card##*/}" up
    udhcpc -q -n -t 10 -T 1 -O mtu -i "${card##*/}" -s /dhcp 2>/dev/null | grep guest:
done
httpd -h /www
for port in /dev/vport*; do qemu-ga -m virtio-serial -p "$port" >/dev/null 2>&1 & done
# The power button's event device: any of its bytes means that it was pressed.
for event in /dev/input/event*; do
    [ -e "$event" ] && (dd bs=24 count=1 <"$event" >/dev/null 2>&1 && poweroff -f) &
done
echo "guest: up with $(grep -c processor /proc/cpuinfo) processors"
while true; do sh -i </dev/console >/dev/console 2>&1; done
SCRIPT
ln -s busybox "$work/root/bin/dd"
chmod 755 "$work/root/init" "$work/root/dhcp"
(cd "$work/root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$lib/test-guest.new/initrd"
echo "$stamp" >"$lib/test-guest.new/stamp"
rm -rf "$lib/test-guest"
mv "$lib/test-guest.new" "$lib/test-guest"

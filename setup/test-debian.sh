#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# test-debian.sh LIBDIR: LIBDIR/test-debian.qcow2, a Debian disk as a cloud would offer it: GRUB, systemd, cloud-init,
# sshd. For the slow tests (make test-slow); takes some minutes and 2 GB of disk.
set -euo pipefail
lib=$(cd "${1:?usage: test-debian.sh LIBDIR}" && pwd)
here=$(cd "$(dirname "$0")" && pwd)

stamp=$(sha256sum <"$0")
[ "$stamp" = "$(cat "$lib/test-debian.stamp" 2>/dev/null)" ] && exit 0

"$here/apt.sh" mmdebstrap e2fsprogs grub-pc-bin grub-common qemu-utils openssh-client
work=$(mktemp -d -p /var/tmp)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
packages=linux-image-cloud-amd64,systemd-sysv,udev,dbus,cloud-init,openssh-server,ifupdown,isc-dhcp-client,netbase
packages+=,qemu-guest-agent,sudo,iproute2,initramfs-tools,libpam-systemd,systemd-resolved
mmdebstrap --quiet --variant=minbase --include="$packages" \
    --customize-hook='echo "/dev/vda1 / ext4 defaults 0 1" >"$1/etc/fstab"' \
    --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*' \
    bookworm "$work/root.tar"
mkdir "$work/root"
tar -x -C "$work/root" -f "$work/root.tar" --numeric-owner
rm "$work/root.tar"
mke2fs -q -t ext4 -d "$work/root" "$work/part" 1500M

# One partition from 1 MiB on; before it GRUB, which reads its few lines of configuration from itself.
cat >"$work/grub.cfg" <<'CONFIG'
serial --unit=0
terminal_output serial
set root=(hd0,msdos1)
linux /vmlinuz root=/dev/vda1 console=ttyS0
initrd /initrd.img
boot
CONFIG
grub-mkimage -O i386-pc -p /boot/grub -c "$work/grub.cfg" -o "$work/core.img" biosdisk part_msdos ext2 linux serial terminal boot
cp /usr/lib/grub/i386-pc/boot.img "$work/disk"
cat "$work/core.img" >>"$work/disk"
truncate -s 1501M "$work/disk"
dd if="$work/part" of="$work/disk" bs=1M seek=1 conv=notrunc,sparse status=none
# The table: one entry, bootable, Linux, from sector 2048, 1500 MiB long. boot.img has code for floppies where the
# others are, and GRUB takes no such table.
dd if=/dev/zero of="$work/disk" bs=1 seek=446 count=64 conv=notrunc status=none
printf '\x80\0\0\0\x83\0\0\0\x00\x08\x00\x00\x00\xe0\x2e\x00' | dd of="$work/disk" bs=1 seek=446 conv=notrunc status=none
printf '\x55\xaa' | dd of="$work/disk" bs=1 seek=510 conv=notrunc status=none
qemu-img convert -f raw -O qcow2 "$work/disk" "$lib/test-debian.qcow2.new"
mv "$lib/test-debian.qcow2.new" "$lib/test-debian.qcow2"
echo "$stamp" >"$lib/test-debian.stamp"

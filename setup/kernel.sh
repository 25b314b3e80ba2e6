#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# kernel.sh LIBDIR: Debian's cloud kernel for guests, taken out of its package without installing it.
#
#   LIBDIR/kernel/vmlinuz, version (uname -r)
#   LIBDIR/kernel/modules/NAME.ko, modules.list: what the agent loads, in order
#   LIBDIR/kernel/tree/VERSION: all modules, for modprobe in privileged containers
#   LIBDIR/kernel/machine, engine, reader: the same for full machines of images (machine.sh)
#
# A kernel that is there is kept; remove LIBDIR/kernel to take the package's present version.
set -euo pipefail
lib=${1:?usage: kernel.sh LIBDIR}
here=$(cd "$(dirname "$0")" && pwd)

# What a guest needs beyond the kernel itself; their dependencies are added, built-in ones left out.
wanted=(virtio_mmio virtio_console virtio_blk virtio_net erofs overlay ext4 fuse)
# What a full machine needs: PCI, the power button, a cloud-init seed, a file system to be read.
machine=(virtio_pci virtio_console virtio_blk virtio_net virtio_rng button evdev isofs fuse)
# What an engine in it needs for its containers: layers, bridges, filter and address translation.
engine=(erofs overlay loop bridge veth br_netfilter tun macvlan ipvlan nf_tables nft_chain_nat nft_ct nft_masq nft_nat
    nft_redir nft_fib_inet nft_limit nft_reject_inet nft_numgen nf_conntrack_netlink nft_hash)
# What reads the disks of others; ext4 is built in.
reader=(xfs btrfs)

stamp=$(sha256sum <"$0")
[ "$stamp" = "$(cat "$lib/kernel/stamp" 2>/dev/null)" ] && exit 0

"$here/apt.sh" kmod
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt's own user writes into it

find_package() {
    apt-cache depends --important linux-image-cloud-amd64 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*-cloud-amd64\)$/\1/p' | head -n 1
}
package=$(find_package)
[ -n "$package" ] || { apt-get -q update >/dev/null; package=$(find_package); }
[ -n "$package" ] || { echo "apt knows no linux-image-cloud-amd64" >&2; exit 1; }
download() { (cd "$work" && apt-get -q download -o APT::Sandbox::User=root "$package" >/dev/null); }
download 2>/dev/null || { apt-get -q update >/dev/null && download; }

dpkg-deb --fsys-tarfile "$work"/*.deb |
    tar -x -C "$work" --wildcards './boot/vmlinuz-*' './lib/modules/*/kernel/*' './lib/modules/*/modules.*'
version=$(basename "$work"/lib/modules/*)
depmod -b "$work" "$version"

rm -rf "$lib/kernel.new"
mkdir -p "$lib/kernel.new"
cp "$work/boot/vmlinuz-$version" "$lib/kernel.new/vmlinuz"
echo "$version" >"$lib/kernel.new/version"
# take DIRECTORY LIST MODULE...: copy modules with what they depend on, and note them in their order.
take() {
    local directory=$lib/kernel.new/$1 list=$lib/kernel.new/$2
    shift 2
    mkdir -p "$directory"
    modprobe -d "$work" -S "$version" --show-depends -a "$@" | while read -r kind file _; do
        [ "$kind" = insmod ] || continue
        name=$(basename "$file")
        case $name in
            *.ko) cat "$file" ;;
            *.ko.xz) xz -dc "$file" ;;
            *.ko.zst) zstd -qdc "$file" ;;
        esac >"$directory/${name%%.*}.ko"
        grep -qx "${name%%.*}" "$list" 2>/dev/null || echo "${name%%.*}" >>"$list"
    done
}
take modules modules.list "${wanted[@]}"
take machine machine.list "${machine[@]}"
take engine engine.list "${engine[@]}"
take reader reader.list "${reader[@]}"
mkdir "$lib/kernel.new/tree"
cp -r "$work/lib/modules/$version" "$lib/kernel.new/tree"
echo "$stamp" >"$lib/kernel.new/stamp"
rm -rf "$lib/kernel"
mv "$lib/kernel.new" "$lib/kernel"

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# machine.sh LIBDIR: LIBDIR/machine.cpio, the initial ram disk of full machines that are made of images without a kernel
# (after kernel.sh): machine/init, Debian's busybox, our run, and the kernel's modules.
set -euo pipefail
lib=$(cd "${1:?usage: machine.sh LIBDIR}" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
source_dir=$here/../machine

stamp=$(cat "$0" "$source_dir"/* "$lib/kernel/stamp" "$lib/kernel/version" | sha256sum)
[ "$stamp" = "$(cat "$lib/machine.stamp" 2>/dev/null)" ] && [ -e "$lib/machine.cpio" ] && exit 0

"$here/apt.sh" cpio busybox-static gcc musl-tools linux-libc-dev
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{bin,dev,etc,modules,proa,proc,root,run,sys} "$work.include"
trap 'rm -rf "$work" "$work.include"' EXIT
ln -s /usr/include/linux "$work.include/linux"
ln -s /usr/include/asm-generic "$work.include/asm-generic"
ln -s "/usr/include/$(uname -m)-linux-gnu/asm" "$work.include/asm"
musl-gcc -std=c11 -Os -Wall -Wextra -Werror -Wshadow -isystem "$work.include" -static -s -o "$work/bin/run" "$source_dir/run.c"
install -m 755 "$source_dir/init" "$source_dir/dhcp" "$work"
install -m 755 /bin/busybox "$work/bin/busybox"
for applet in cat chroot cp grep hostname insmod ip mkdir mount poweroff rm sleep switch_root sync udhcpc; do
    ln -s busybox "$work/bin/$applet"
done
cp "$lib"/kernel/machine/*.ko "$lib"/kernel/*.list "$work/modules"
rm "$work/modules/modules.list"
find "$work" -exec touch -h -d @0 {} +
(cd "$work" && find . | LC_ALL=C sort | cpio --quiet -o -H newc --reproducible -R 0:0) >"$lib/machine.cpio.new"
mv "$lib/machine.cpio.new" "$lib/machine.cpio"
echo "$stamp" >"$lib/machine.stamp"

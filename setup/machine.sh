#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# machine.sh LIBDIR: initial ram disks of full machines that boot proa's kernel (after kernel.sh). They are put together of
#   LIBDIR/machine.cpio          machine/init, Debian's busybox, our run, and the modules of a PCI machine
#   LIBDIR/machine-engine.cpio   more modules, for an engine in the machine
#   LIBDIR/machine-reader.cpio   what reads the disks of another machine: machine/read, our export, modules
set -euo pipefail
lib=$(cd "${1:?usage: machine.sh LIBDIR}" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
source_dir=$here/../machine
agent_dir=$here/../agent

stamp=$(cat "$0" "$source_dir"/* "$agent_dir"/*.[ch] "$lib/kernel/stamp" "$lib/kernel/version" | sha256sum)
[ "$stamp" = "$(cat "$lib/machine.stamp" 2>/dev/null)" ] && exit 0

"$here/apt.sh" cpio busybox-static gcc musl-tools linux-libc-dev
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/include "$work"/machine/{bin,dev,etc,modules,proa,proc,root,run,sys} "$work"/engine/modules "$work"/reader/{bin,more}
ln -s /usr/include/linux /usr/include/asm-generic "$work/include"
ln -s "/usr/include/$(uname -m)-linux-gnu/asm" "$work/include/asm"
compile() { # OUTPUT SOURCE...
    musl-gcc -std=c11 -Os -Wall -Wextra -Werror -Wshadow -isystem "$work/include" -static -s \
        -ffunction-sections -Wl,--gc-sections -o "$@"
}
compile "$work/machine/bin/run" "$source_dir/run.c"
compile "$work/reader/bin/export" "$source_dir/export.c" "$agent_dir"/{tar_out,frame}.c
install -m 755 "$source_dir/init" "$source_dir/dhcp" "$work/machine"
install -m 644 "$source_dir/read" "$work/reader"
install -m 755 /bin/busybox "$work/machine/bin/busybox"
for applet in cat cp grep hostname insmod ip mkdir mount poweroff rm sleep switch_root sync udhcpc umount; do
    ln -s busybox "$work/machine/bin/$applet"
done
for part in machine engine reader; do
    cp "$lib/kernel/$part"/*.ko "$lib/kernel/$part.list" "$work/$part"/mo*/
    find "$work/$part" -exec touch -h -d @0 {} +
    (cd "$work/$part" && find . | LC_ALL=C sort | cpio --quiet -o -H newc --reproducible -R 0:0) >"$work/$part.cpio"
done
mv "$work/machine.cpio" "$lib/machine.cpio"
for part in engine reader; do mv "$work/$part.cpio" "$lib/machine-$part.cpio"; done
echo "$stamp" >"$lib/machine.stamp"

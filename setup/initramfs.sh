#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# initramfs.sh LIBDIR: packs LIBDIR/agent and the kernel's modules into LIBDIR/initramfs.cpio (after agent.sh, kernel.sh).
# Not compressed: unpacking under software emulation would cost more than reading.
set -euo pipefail
lib=$(cd "${1:?usage: initramfs.sh LIBDIR}" && pwd)
here=$(cd "$(dirname "$0")" && pwd)

stamp=$(cat "$0" "$lib/agent.stamp" "$lib/kernel/stamp" "$lib/kernel/version" | sha256sum)
[ "$stamp" = "$(cat "$lib/initramfs.stamp" 2>/dev/null)" ] && [ -e "$lib/initramfs.cpio" ] && exit 0

"$here/apt.sh" cpio
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
install -m 755 "$lib/agent" "$work/init"
cp -r "$lib/kernel/modules" "$lib/kernel/modules.list" "$work"
# Fixed times and order: the same inputs give the same file, and so the same template.
find "$work" -exec touch -h -d @0 {} +
(cd "$work" && find . | LC_ALL=C sort | cpio --quiet -o -H newc --reproducible -R 0:0) >"$lib/initramfs.cpio.new"
mv "$lib/initramfs.cpio.new" "$lib/initramfs.cpio"
echo "$stamp" >"$lib/initramfs.stamp"

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# image.sh LIBDIR: makes LIBDIR/busybox.tar, the built-in image busybox:latest, unless the one there is of
# these inputs. It is an archive for docker load: proa's daemon takes it in through its API.
set -euo pipefail
cd "$(dirname "$0")/.."
lib=$1
stamp=$lib/.image.stamp

setup/apt.sh busybox-static
digest=$(cat setup/image.sh setup/make_busybox_image.py /bin/busybox | sha256sum)
[ -f "$lib/busybox.tar" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ] && exit 0

mkdir -p "$lib"
python3 setup/make_busybox_image.py /bin/busybox "$lib/busybox.tar.new"
mv "$lib/busybox.tar.new" "$lib/busybox.tar"
echo "$digest" >"$stamp"

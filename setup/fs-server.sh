#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fs-server.sh LIBDIR: builds fs-server into LIBDIR, unless the one there is of these sources.
set -euo pipefail
cd "$(dirname "$0")/.."
lib=$1
stamp=$lib/.fs-server.stamp

digest=$(cat setup/fs-server.sh fs-server/Makefile fs-server/*.[ch] | sha256sum)
[ -x "$lib/fs-server" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ] && exit 0

setup/apt.sh make gcc musl-tools linux-libc-dev
mkdir -p "$lib"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
make -s -C fs-server BUILD="$build"
# Replaced in one step: a server may be running from the old file.
mv "$build/fs-server" "$lib/fs-server"
echo "$digest" >"$stamp"

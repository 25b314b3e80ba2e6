#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# probe.sh LIBDIR: builds the measuring program into LIBDIR, unless it is there already.
set -euo pipefail
cd "$(dirname "$0")/.."
lib=$1
stamp=$lib/.probe.stamp

digest=$(cat setup/probe.sh probe/Makefile probe/*.[ch] | sha256sum)
[ -x "$lib/probe" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ] && exit 0

setup/apt.sh make gcc musl-tools
mkdir -p "$lib"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
make -s -C probe BUILD="$build"
# Replaced in one step: a comparison may be running the old file.
mv "$build/probe" "$lib/probe"
echo "$digest" >"$stamp"

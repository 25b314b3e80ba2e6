#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# agent.sh LIBDIR: compiles the guest agent to LIBDIR/agent, unless it is there from the same sources.
set -euo pipefail
lib=${1:?usage: agent.sh LIBDIR}
here=$(cd "$(dirname "$0")" && pwd)
source_dir=$here/../agent

stamp=$(cat "$0" "$source_dir"/Makefile "$source_dir"/*.[ch] | sha256sum)
[ "$stamp" = "$(cat "$lib/agent.stamp" 2>/dev/null)" ] && [ -x "$lib/agent" ] && exit 0

"$here/apt.sh" gcc make musl-tools linux-libc-dev
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
make -s -C "$source_dir" -j2 OUT="$build"
mkdir -p "$lib"
install -m 755 "$build/agent" "$lib/agent.new"
mv "$lib/agent.new" "$lib/agent"
echo "$stamp" >"$lib/agent.stamp"

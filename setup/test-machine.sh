#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# test-machine.sh LIBDIR: LIBDIR/test-machine.tar, the root file system of a Debian with systemd, sshd, and what an engine
# needs: for the slow tests (make test-slow), which have no registry to take one from.
set -euo pipefail
lib=$(cd "${1:?usage: test-machine.sh LIBDIR}" && pwd)
here=$(cd "$(dirname "$0")" && pwd)

stamp=$(sha256sum <"$0")
[ "$stamp" = "$(cat "$lib/test-machine.stamp" 2>/dev/null)" ] && exit 0

"$here/apt.sh" mmdebstrap openssh-client
packages=systemd-sysv,udev,dbus,openssh-server,python3,crun,conmon,nftables,iproute2,kmod,procps,e2fsprogs,ca-certificates
mmdebstrap --quiet --variant=minbase --include="$packages" bookworm "$lib/test-machine.new.tar"
mv "$lib/test-machine.new.tar" "$lib/test-machine.tar"
echo "$stamp" >"$lib/test-machine.stamp"

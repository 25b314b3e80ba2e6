#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# all.sh VENV: installs whatever is missing for running, testing and building proa from this checkout.
# Every step keeps a stamp of its inputs, so that a second run takes a fraction of a second.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$1
lib=$venv/lib/proa

[ "$(id -u)" = 0 ] || { echo "setup needs root: it installs Debian packages" >&2; exit 1; }

# All that the components below need is named here too, so that apt runs once.
setup/apt.sh python3-venv crun runc conmon tini golang-github-containers-common \
    qemu-system-x86 qemu-utils dnsmasq-base e2fsprogs nftables iproute2 procps busybox-static \
    gcc make libc6-dev musl-tools linux-libc-dev kmod cpio xz-utils \
    git openssh-client

setup/venv.sh "$venv"
mkdir -p "$lib"
for component in agent kernel initramfs machine fs-server probe image; do
    "setup/$component.sh" "$lib"
done

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# docker-cli.sh VENV: a docker client for the tests, when the machine has none: Debian's, taken out of its package, so
# that no daemon is installed or started.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=$1
{ command -v docker >/dev/null || [ -x "$venv/bin/docker" ]; } && exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
echo "fetching a docker client for the tests"
download() { (cd "$work" && apt-get -q download -o APT::Sandbox::User=root docker.io >/dev/null); }
download 2>/dev/null || { apt-get -q update >/dev/null && download; }
dpkg-deb -x "$work"/docker.io_*.deb "$work/tree"
install -m 755 "$work/tree/usr/bin/docker" "$venv/bin/docker"

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# docker-registry.sh VENV: a registry for the tests, when the machine has none: Debian's, taken out of its package, so that
# no service is installed or started.
set -euo pipefail
venv=$1
{ command -v docker-registry >/dev/null || [ -x "$venv/bin/docker-registry" ]; } && exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
echo "fetching docker-registry for the tests"
download() { (cd "$work" && apt-get -q download -o APT::Sandbox::User=root docker-registry >/dev/null); }
download 2>/dev/null || { apt-get -q update >/dev/null && download; }
dpkg-deb -x "$work"/docker-registry_*.deb "$work/tree"
install -m 755 "$work/tree/usr/bin/docker-registry" "$venv/bin/docker-registry"

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# apt.sh PACKAGE…: installs the packages that are missing, and touches nothing when all are there.
# dpkg is asked first because apt-get takes half a second to say that there is nothing to do.
set -euo pipefail

missing=()
for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

export DEBIAN_FRONTEND=noninteractive
# A package such as dnsmasq or docker.io would start its own service; proa starts what it needs itself.
install() { apt-get -q -y -o DPkg::Lock::Timeout=120 install --no-install-recommends "${missing[@]}"; }
echo "installing ${missing[*]}"
install >/dev/null 2>&1 || { apt-get -q update >/dev/null && install; }

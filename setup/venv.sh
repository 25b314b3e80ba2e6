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
# In place of pip's script: the command is started anew for every call. -I -S leave out the search for site-packages and
# every PYTHON* variable (one of them keeps it from storing what it compiled); collecting garbage among imports is in vain.
home=$(cd "$venv" && pwd)
cat >"$venv/bin/proa.new" <<EOF
#!$home/bin/python -IS
import gc, sys
gc.disable()
sys.modules["typing_extensions"] = None  # msgspec takes typing in its place, which is there already
sys.prefix = sys.exec_prefix = "$home"
sys.path += ["$PWD/src", "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"]
from proa.cli.start import start
start()
EOF
chmod 755 "$venv/bin/proa.new"
mv "$venv/bin/proa.new" "$venv/bin/proa"
"$venv/bin/python" -m compileall -q src
echo "$wanted" >"$stamp"

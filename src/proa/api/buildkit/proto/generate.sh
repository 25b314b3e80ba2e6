#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# generate.sh: makes buildkit_pb2.py and buildkit_pb2.pyi of buildkit.proto, in an environment of its own. The version of
# the compiler decides which protobuf can read them (its own major version, from its minor one on: pyproject.toml).
set -euo pipefail
cd "$(dirname "$0")"
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m venv "$tools"
"$tools/bin/pip" install --quiet --disable-pip-version-check 'grpcio-tools==1.85.1'
"$tools/bin/python" -m grpc_tools.protoc -I. --python_out=. --pyi_out=. buildkit.proto
for made in buildkit_pb2.py buildkit_pb2.pyi; do
    sed -i '1i # SPDX-License-Identifier: Apache-2.0' "$made"
done
sed -i '1a """Messages of BuildKit'"'"'s services, generated from buildkit.proto by generate.sh."""' buildkit_pb2.py

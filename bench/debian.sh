#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# debian.sh DIR: makes DIR/debian.tar, a docker save archive of a Debian with tools (some 500 MB), unless it is there;
# prints its path. mmdebstrap takes the packages from Debian's archive.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
archive=$(cd "$1" && pwd)/debian.tar
if [ ! -e "$archive" ]; then
    "$here/../setup/apt.sh" mmdebstrap >&2
    work=$(mktemp -d "$1/debian.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mmdebstrap --quiet --variant=important --include=python3,perl,git,vim,gcc bookworm "$work/layer.tar" >&2
    python3 - "$work" <<'END'
import hashlib, json, pathlib, sys

work = pathlib.Path(sys.argv[1])
with (work / "layer.tar").open("rb") as file:
    diff_id = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]}, "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
(work / "config.json").write_text(json.dumps(config))
entry = {"Config": "config.json", "RepoTags": ["debian-bench:latest"], "Layers": ["layer.tar"]}
(work / "manifest.json").write_text(json.dumps([entry]))
END
    tar -C "$work" -cf "$archive.new" manifest.json config.json layer.tar
    mv "$archive.new" "$archive"
fi
echo "$archive"

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the built-in image ``busybox:latest`` from Debian's static busybox, without any container engine.

    make_busybox_image.py BUSYBOX ARCHIVE

One layer: /bin/busybox, a link for each applet where its own list puts it, and the few directories and files
that programs expect. The archive is an OCI layout with Docker's manifest.json, so that ``docker load`` of
any version takes it too. The same busybox gives the same bytes: the only date used is the program's own.
Runs with the system's python3 alone, before there is a virtual environment.

Source: OCI image-spec, image-layout.md, config.md; Docker Image Specification v1.2.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64"}
NAME = "busybox:latest"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OCI = "application/vnd.oci.image"

DIRECTORIES = {
    **dict.fromkeys(("bin", "dev", "etc", "home", "proc", "sbin", "sys", "usr", "usr/bin"), 0o755),
    **dict.fromkeys(("usr/local", "usr/local/bin", "usr/local/sbin", "usr/sbin", "var"), 0o755),
    **dict.fromkeys(("mnt", "opt", "run", "srv", "var/cache", "var/lib", "var/log", "var/spool"), 0o755),
    "root": 0o700,
    "tmp": 0o1777,
    "var/tmp": 0o1777,
}
FILES = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        "daemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
        "bin:x:2:2:bin:/bin:/bin/false\n"
        "www-data:x:33:33:www-data:/var/www:/bin/false\n"
        "nobody:x:65534:65534:nobody:/home:/bin/false\n"
    ),
    "etc/group": (
        "root:x:0:\ndaemon:x:1:\nbin:x:2:\nadm:x:4:\ntty:x:5:\ndisk:x:6:\nwheel:x:10:root\nmail:x:8:\n"
        "www-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n"
    ),
    "etc/nsswitch.conf": "hosts: files dns\n",
    "etc/profile": f"export PATH={PATH}\n",
    "etc/os-release": 'NAME="BusyBox"\nID=busybox\nPRETTY_NAME="BusyBox (proa built-in image)"\n',
}


def main() -> None:
    busybox, archive = Path(sys.argv[1]), Path(sys.argv[2])
    made_at = int(busybox.stat().st_mtime)
    layer = make_layer(busybox, made_at)
    data = make_archive(layer, make_config(layer, made_at))
    archive.write_bytes(data)


def make_layer(busybox: Path, made_at: int) -> bytes:
    """The root file system as a tar: directories before what is in them, all in order of names."""
    listing = subprocess.run([str(busybox), "--list-full"], check=True, capture_output=True, text=True)
    applets = {name for name in listing.stdout.split() if "/" in name and name != "bin/busybox"}
    # Debian installs applets that need a directory of their own nowhere; a link outside ours is left out.
    links = {name for name in applets if name.rpartition("/")[0] in DIRECTORIES}
    members = {**DIRECTORIES, **FILES, **dict.fromkeys(links), "bin/busybox": None}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(members):
            info = tarfile.TarInfo(name)
            info.mtime = made_at
            data = b""
            if name in DIRECTORIES:
                info.type, info.mode = tarfile.DIRTYPE, DIRECTORIES[name]
            elif name in links:
                info.type, info.mode, info.linkname = tarfile.SYMTYPE, 0o777, "/bin/busybox"
            else:
                data = busybox.read_bytes() if name == "bin/busybox" else FILES[name].encode()
                info.mode, info.size = 0o755 if name == "bin/busybox" else 0o644, len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def make_config(layer: bytes, made_at: int) -> bytes:
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made_at))
    machine = platform.machine()
    document = {
        "architecture": ARCHITECTURES.get(machine, machine),
        "config": {"Cmd": ["sh"], "Env": [f"PATH={PATH}"], "Labels": {"io.proa.image": "built-in"}},
        "created": created,
        "history": [{"created": created, "created_by": "proa setup: busybox-static", "comment": "proa"}],
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest(layer)}"]},
    }
    return encode(document)


def make_archive(layer: bytes, config: bytes) -> bytes:
    manifest = encode(
        {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": descriptor(f"{OCI}.config.v1+json", config),
            "layers": [descriptor(f"{OCI}.layer.v1.tar", layer)],
        }
    )
    entry = descriptor(f"{OCI}.manifest.v1+json", manifest)
    entry["annotations"] = {
        "io.containerd.image.name": f"docker.io/library/{NAME}",
        "org.opencontainers.image.ref.name": NAME.rpartition(":")[2],
    }
    index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": [entry]}
    docker = [{"Config": blob_name(config), "RepoTags": [NAME], "Layers": [blob_name(layer)]}]
    files = {
        "oci-layout": encode({"imageLayoutVersion": "1.0.0"}),
        "index.json": encode(index),
        "manifest.json": encode(docker),
        **{blob_name(data): data for data in (config, layer, manifest)},
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{digest(data)}", "size": len(data)}


def blob_name(data: bytes) -> str:
    return f"blobs/sha256/{digest(data)}"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def encode(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


if __name__ == "__main__":
    os.umask(0o022)
    main()

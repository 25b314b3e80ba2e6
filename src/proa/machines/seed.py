# SPDX-License-Identifier: Apache-2.0
"""What cloud-init is told: the NoCloud seed, an ISO image with the label CIDATA.

    meta-data        the instance (a new one makes cloud-init begin anew) and host name
    user-data        the user's own document, or one made of the options

There is no network-config: guests get their addresses by DHCP, so what is in an image by default fits.
The image is made by xorriso, which is kept well (genisoimage is not) and whose result is read-only by nature.

Source: cloud-init, NoCloud data source; cloud-config examples; xorrisofs(1).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec

from proa.host import process
from proa.model.errors import InvalidParameter, Unavailable
from proa.model.machine import CloudInit

MAX_USER_DATA_BYTES = 1024 * 1024


def meta_data(instance_id: str, hostname: str) -> bytes:
    """Return meta-data. JSON, which is YAML."""
    return msgspec.json.encode({"instance-id": instance_id, "local-hostname": hostname}) + b"\n"


def user_data(wanted: CloudInit) -> bytes:
    """Return user-data. Raises InvalidParameter for options that contradict, or a document too long."""
    made = (wanted.user, wanted.ssh_keys, wanted.password, wanted.packages)
    if wanted.user_data:
        if any(made):
            raise InvalidParameter("a user-data document stands alone: put user, keys and packages into it")
        content = wanted.user_data.encode()
        if len(content) > MAX_USER_DATA_BYTES:
            raise InvalidParameter(f"user-data is longer than {MAX_USER_DATA_BYTES} bytes")
        return content
    for key in wanted.ssh_keys or ():
        if len(key.split()) < 2 or "\n" in key:
            raise InvalidParameter(f"not a line of a public ssh key: {key[:40]!r}")
    document: dict[str, Any] = {}  # Any: YAML
    keys = list(wanted.ssh_keys or ())
    if wanted.user:
        user: dict[str, Any] = {"name": wanted.user, "shell": "/bin/bash", "sudo": "ALL=(ALL) NOPASSWD:ALL"}
        user |= {"ssh_authorized_keys": keys} if keys else {}
        if wanted.password:
            kind = "hashed_passwd" if wanted.password.startswith("$") else "plain_text_passwd"
            user |= {kind: wanted.password, "lock_passwd": False}
        document["users"] = ["default", user]
    else:
        document |= {"ssh_authorized_keys": keys} if keys else {}
        if wanted.password:
            document |= {"password": wanted.password, "chpasswd": {"expire": False}}
    if wanted.password:
        document["ssh_pwauth"] = True
    if wanted.packages:
        document |= {"package_update": True, "packages": list(wanted.packages)}
    return b"#cloud-config\n" + msgspec.json.encode(document) + b"\n"


async def make_seed(target: Path, instance_id: str, hostname: str, wanted: CloudInit) -> None:
    """Make the image. Raises InvalidParameter, Unavailable (no xorriso), ToolFailed."""
    content = {"meta-data": meta_data(instance_id, hostname), "user-data": user_data(wanted)}
    if shutil.which("xorriso") is None:
        raise Unavailable("a cloud-init seed needs xorriso: apt install xorriso")
    work = target.with_name("seed")
    work.mkdir(mode=0o700)
    try:
        for name, data in content.items():
            (work / name).write_bytes(data)
        words = ["xorriso", "-as", "mkisofs", "-quiet", "-volid", "CIDATA", "-J", "-R"]
        await process.run([*words, "-output", target, work])
        target.chmod(0o600)
    finally:
        shutil.rmtree(work, ignore_errors=True)

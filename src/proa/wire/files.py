# SPDX-License-Identifier: Apache-2.0
"""Messages about the files of containers. Source: Engine API, ContainerArchiveInfo, ContainerChanges,
ImageCommit."""

from __future__ import annotations

import base64
import binascii

import msgspec

from proa.model.config import ApiStruct
from proa.wire.codec import decode, encode

PATH_STAT_HEADER = "X-Docker-Container-Path-Stat"
TAR = "application/x-tar"


class PathStat(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is at a path of a container. ``mode`` has the bits of Go's FileMode."""

    name: str
    size: int = 0
    mode: int = 0
    mtime: str = ""
    link_target: str = ""


class FilesystemChange(ApiStruct, frozen=True, kw_only=True):
    """``kind``: 0 modified, 1 added, 2 deleted."""

    path: str
    kind: int = 0


class Committed(ApiStruct, frozen=True, kw_only=True):
    id: str


def encode_path_stat(stat: PathStat) -> str:
    """Return the header's value."""
    return base64.b64encode(encode(stat)).decode()


def decode_path_stat(value: str) -> PathStat:
    """Read the header's value. Raises ValueError."""
    try:
        return decode(base64.b64decode(value, validate=True), PathStat)
    except binascii.Error as error:
        raise ValueError(str(error)) from error

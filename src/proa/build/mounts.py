# SPDX-License-Identifier: Apache-2.0
"""Reads ``RUN --mount``. Pure. Source: Dockerfile reference, RUN --mount and its types."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass

from proa.model.errors import InvalidParameter

_KEYS = {
    "bind": {"source", "target", "from", "rw"},
    "cache": {"id", "target", "source", "from", "ro", "sharing", "mode", "uid", "gid"},
    "tmpfs": {"target", "size"},
    "secret": {"id", "target", "required", "mode", "uid", "gid", "env"},
    "ssh": {"id", "target", "required", "mode", "uid", "gid"},
}
_NAMES = {
    "src": "source",
    "dst": "target",
    "destination": "target",
    "readwrite": "rw",
    "readonly": "ro",
}
_SHARING = ("shared", "private", "locked")
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMount:
    """One mount. ``target`` is absolute, or "" when it has its default; ``mode`` of -1 is the default."""

    type: str = "bind"
    id: str = ""
    source: str = ""
    target: str = ""
    origin: str = ""  # from=
    read_only: bool = True
    required: bool = False
    sharing: str = "shared"
    mode: int = -1
    uid: int = 0
    gid: int = 0
    size_bytes: int = 0
    env: str = ""


def parse_mount(text: str, expand: Callable[[str], str], workdir: str) -> RunMount:
    """Read one ``--mount`` value. Raises InvalidParameter.

    :param expand: puts variables in.
    :param workdir: what relative targets are below.
    """
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.strip().partition("=")
        key = _NAMES.get(key.lower(), key.lower())
        if not key:
            raise InvalidParameter(f"invalid mount: empty field in '{text}'")
        fields[key] = expand(value) if equals else "true"
    kind = fields.pop("type", "bind")
    if kind not in _KEYS:
        raise InvalidParameter(f'unsupported mount type "{kind}"')
    if kind == "bind" and "ro" in fields:
        fields["rw"] = "false" if _truth("ro", fields.pop("ro")) else "true"
    if kind == "cache" and "rw" in fields:
        fields["ro"] = "false" if _truth("rw", fields.pop("rw")) else "true"
    unknown = fields.keys() - _KEYS[kind]
    if unknown:
        raise InvalidParameter(f"unexpected key '{sorted(unknown)[0]}' for mount type '{kind}'")
    target = fields.get("target", "")
    if target:
        target = posixpath.normpath(posixpath.join("/", workdir, target))
    elif kind in ("bind", "cache", "tmpfs"):
        raise InvalidParameter("target is required for mount")
    if target == "/":
        raise InvalidParameter("mount target can not be the root directory")
    sharing = fields.get("sharing", "shared")
    if sharing not in _SHARING:
        raise InvalidParameter(f'unsupported sharing value "{sharing}"')
    read_only = not _truth("rw", fields["rw"]) if "rw" in fields else _truth("ro", fields.get("ro", "false"))
    return RunMount(
        type=kind,
        id=fields.get("id", ""),
        source=fields.get("source", ""),
        target=target,
        origin=fields.get("from", ""),
        read_only=read_only if kind != "bind" or "rw" in fields else True,
        required=_truth("required", fields.get("required", "false")),
        sharing=sharing,
        mode=_octal(fields["mode"]) if "mode" in fields else -1,
        uid=_number("uid", fields.get("uid", "0")),
        gid=_number("gid", fields.get("gid", "0")),
        size_bytes=_bytes(fields["size"]) if "size" in fields else 0,
        env=fields.get("env", ""),
    )


def _truth(key: str, text: str) -> bool:
    if text.lower() in ("true", "1"):
        return True
    if text.lower() in ("false", "0"):
        return False
    raise InvalidParameter(f"invalid value for {key}: {text}")


def _number(key: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) >= 1 << 32:
        raise InvalidParameter(f"invalid value for {key}: {text}")
    return int(text)


def _octal(text: str) -> int:
    try:
        value = int(text, 8)
    except ValueError:
        value = -1
    if not 0 <= value <= 0o7777:
        raise InvalidParameter(f"invalid value {text} for mode")
    return value


def _bytes(text: str) -> int:
    digits = text.lower().rstrip("bkmgti")
    unit = text.lower()[len(digits) :].replace("i", "").removesuffix("b") or ""
    if not digits.isdecimal() or unit not in _UNITS:
        raise InvalidParameter(f"invalid value for size: {text}")
    return int(digits) * _UNITS[unit]

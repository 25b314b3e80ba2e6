# SPDX-License-Identifier: Apache-2.0
"""Reads what the flags of ``proa vm`` say. Source: docs/reference/vm.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from proa.cli import values
from proa.model.machine import CloudInit, MachineDisk, MachineNic

_SCHEMES = ("http://", "https://")


def parse_disk(text: str) -> MachineDisk:
    """Read ``[NAME=]IMAGE[:SIZE]`` or ``[NAME=]SIZE``; an image has a slash in it or is a file here."""
    name, separator, rest = text.partition("=")
    if not separator or "/" in name:
        name, rest = "", text
    if rest.startswith(_SCHEMES):
        return _parse_address(name, rest)
    if "/" not in rest and not Path(rest.partition(":")[0]).is_file():
        return MachineDisk(name=name, size=values.parse_size(rest))
    source, colon, size = rest.rpartition(":")
    if not colon:
        source, size = rest, ""
    return MachineDisk(name=name, source=absolute(source), size=values.parse_size(size) if size else 0)


def _parse_address(name: str, text: str) -> MachineDisk:
    """Read ``https://…[#sha256:…][:SIZE]``: what follows the last colon is a size when it can be one."""
    source, _, size = text.rpartition(":")
    is_digest = source.endswith("#sha256")
    if not size[:1].isdigit() or "/" in size or is_digest:
        return MachineDisk(name=name, source=text)
    return MachineDisk(name=name, source=source, size=values.parse_size(size))


def absolute(name: str) -> str:
    """Return the path of a file as the daemon needs it; an address is left as it is."""
    if name.startswith(_SCHEMES):
        return name
    return str(Path(name).expanduser().absolute()) if name else ""


def parse_nics(networks: tuple[str, ...]) -> list[MachineNic] | None:
    if not networks:
        return None
    return [] if networks == ("none",) else [parse_nic(text) for text in networks]


def parse_nic(text: str) -> MachineNic:
    name, *options = text.split(",")
    fields = dict(word.partition("=")[::2] for word in options)
    unknown = set(fields) - {"ip", "mac", "alias"}
    if unknown:
        raise click.BadParameter(f"invalid network option: {min(unknown)}")
    aliases = [fields["alias"]] if "alias" in fields else None
    return MachineNic(network=name, address=fields.get("ip", ""), mac=fields.get("mac", ""), aliases=aliases)


def parse_cloud_init(flags: dict[str, Any]) -> CloudInit | None:  # Any: as in create
    keys = [line for file in flags["keys"] for line in _read(file).splitlines() if line.strip()]
    wanted = CloudInit(
        user=flags["user"],
        ssh_keys=keys or None,
        password=flags["password"],
        packages=list(flags["packages"]) or None,
        user_data=_read(flags["user_data"]) if flags["user_data"] else "",
    )
    return wanted if wanted != CloudInit() or flags["cloud_init"] else None


def _read(name: str) -> str:
    try:
        return Path(name).read_text()
    except OSError as error:
        raise click.BadParameter(f"open {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{name} contains invalid utf8 bytes") from error

# SPDX-License-Identifier: Apache-2.0
"""Platforms, ``os/architecture[/variant]`` in Go's words. Source: OCI image-spec, image-index.md."""

from __future__ import annotations

import os
from dataclasses import dataclass

from proa.model.errors import InvalidParameter

# uname -m to GOARCH and variant. Source: Go, internal/goarch; containerd, platforms/database.go.
_MACHINES = {
    "x86_64": ("amd64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}
_DEFAULT_VARIANTS = {"arm64": "v8", "arm": "v7"}  # what an image without a variant means


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    os: str = "linux"
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def rank(self, other: Platform) -> int:
        """How well an image for ``other`` runs here: 0 not at all, 2 as made for it, 1 in between."""
        if (self.os, self.architecture) != (other.os, other.architecture):
            return 0
        mine, its = self._variant, other._variant
        if mine == its:
            return 2
        # Newer ARM runs code of older versions, never the other way round; v1 < v2… compare as text.
        return 1 if not mine or not its or its < mine else 0

    @property
    def _variant(self) -> str:
        return self.variant or _DEFAULT_VARIANTS.get(self.architecture, "")


def host_platform() -> Platform:
    """Return what images must be made for to run here natively."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform(os="linux", architecture=architecture, variant=variant)


def parse_platform(text: str) -> Platform:
    """Read ``linux/arm64/v8``, ``linux/amd64``, ``arm64`` or ``linux``; "" is the host's. Pure but for that.

    Raises InvalidParameter.
    """
    host = host_platform()
    if not text:
        return host
    parts = text.lower().split("/")
    if len(parts) > 3 or not all(part.replace("_", "").isalnum() for part in parts):
        raise InvalidParameter(f'"{text}": unknown operating system or architecture: invalid argument')
    known = {architecture for architecture, _ in _MACHINES.values()} | set(_MACHINES)
    if len(parts) == 1 and parts[0] in known:
        parts = ["linux", parts[0]]
    if len(parts) == 1:
        return Platform(os=parts[0], architecture=host.architecture, variant=host.variant)
    architecture, variant = _MACHINES.get(parts[1], (parts[1], ""))
    return Platform(os=parts[0], architecture=architecture, variant=parts[2] if len(parts) == 3 else variant)

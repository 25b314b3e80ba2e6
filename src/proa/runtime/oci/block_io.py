# SPDX-License-Identifier: Apache-2.0
"""Limits of single block devices: looked up on the host, and written for the runtime.

What the kernel does not know is left out, as Docker does with a warning (``features``).

Source: OCI runtime-spec, config-linux.md, Block IO; Docker Engine, --device-read-bps and the like.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from proa.host.cgroup import get_hierarchies
from proa.model.errors import InvalidParameter
from proa.model.task import DeviceLimit, DeviceLimitKind

Json = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLimit:
    """A limit with the numbers of its device."""

    kind: DeviceLimitKind
    major: int
    minor: int
    value: int


def weighs_devices() -> bool:
    """Whether the kernel has the file that the runtimes write weights of single devices to.

    Only cgroups below a root have it, if the controller is on there.
    """
    hierarchies = get_hierarchies()
    root = hierarchies.root_of("io" if hierarchies.is_v2 else "blkio")
    if root is None:
        return False
    name = "io.bfq.weight" if hierarchies.is_v2 else "blkio.weight_device"
    return any((one / name).exists() for one in (root, *root.iterdir()))


def find_limits(limits: Sequence[DeviceLimit], *, throttles_io: bool) -> tuple[FoundLimit, ...]:
    """Look up the devices. Raises InvalidParameter: there is no such block device."""
    found = []
    for limit in limits:
        try:
            status = limit.path.stat()
        except OSError as error:
            raise InvalidParameter(f"stat {limit.path}: {(error.strerror or str(error)).lower()}") from error
        if not stat.S_ISBLK(status.st_mode):
            raise InvalidParameter(f"{limit.path}: not a block device")
        if weighs_devices() if limit.kind is DeviceLimitKind.WEIGHT else throttles_io:
            found.append(
                FoundLimit(
                    kind=limit.kind,
                    major=os.major(status.st_rdev),
                    minor=os.minor(status.st_rdev),
                    value=limit.value,
                )
            )
    return tuple(found)


def block_io(limits: Sequence[FoundLimit]) -> Json:
    """Return ``linux.resources.blockIO``. Pure."""
    entries: dict[str, list[Json]] = {}
    for limit in limits:
        what = "weight" if limit.kind is DeviceLimitKind.WEIGHT else "rate"
        entry: Json = {"major": limit.major, "minor": limit.minor, what: limit.value}
        entries.setdefault(limit.kind.value, []).append(entry)
    return dict(entries)

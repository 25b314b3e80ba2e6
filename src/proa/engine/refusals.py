# SPDX-License-Identifier: Apache-2.0
"""What no hull honours: refused when a container is created, so that nothing is dropped in silence.

What one hull honours and another does not is in the drivers' feature records (``isolation``).
docs/reference/options.md lists every option; a test holds that page and this code together.

Source: Engine API 1.51, HostConfig; the sentences about modes are the
Docker Engine's.
"""

from __future__ import annotations

from typing import Any

import msgspec

from proa.model.config import HostConfig
from proa.model.errors import InvalidParameter

_WINDOWS = "it is for Windows containers only"
_REFUSED_HOST = {
    "Cgroup": "a container cannot join another's cgroup",
    "CpuCount": _WINDOWS,
    "CpuPercent": _WINDOWS,
    "IOMaximumIOps": _WINDOWS,
    "IOMaximumBandwidth": _WINDOWS,
    "KernelMemoryTCP": "the kernel counts it with the other memory",
}
# HostConfig field: (values without a colon, whether container:X is one, what Docker calls it)
_MODES = {
    "PidMode": (("", "host"), True, "PID mode"),
    "IpcMode": (("", "none", "private", "shareable", "host"), True, "IPC mode"),
    "UTSMode": (("", "host"), False, "UTS mode"),
    "CgroupnsMode": (("", "private", "host"), False, "cgroup namespace mode"),
}


def check_supported(host: HostConfig) -> None:
    """Raise InvalidParameter for an option that is not honoured in any hull."""
    _check_fields("HostConfig", host, HostConfig(), _REFUSED_HOST)
    _check_modes(host)


def _check_fields(
    where: str, given: msgspec.Struct, neutral: msgspec.Struct, refused: dict[str, str]
) -> None:
    plain: dict[str, Any] = msgspec.to_builtins(given)  # Any: JSON of the structure
    default: dict[str, Any] = msgspec.to_builtins(neutral)
    for key, reason in refused.items():
        if plain[key] and plain[key] != default[key]:
            raise _refusal(f"{where}.{key}", reason)


def _check_modes(host: HostConfig) -> None:
    plain: dict[str, Any] = msgspec.to_builtins(host)  # Any: JSON of the structure
    for key, (words, joins, title) in _MODES.items():
        mode = str(plain[key])
        kind, _, ref = mode.partition(":")
        if mode not in words and not (joins and kind == "container" and ref):
            raise InvalidParameter(f"invalid {title}: {mode}")


def _refusal(option: str, reason: str) -> InvalidParameter:
    return InvalidParameter(f"{option} is not supported: {reason}")

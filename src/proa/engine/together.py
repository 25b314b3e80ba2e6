# SPDX-License-Identifier: Apache-2.0
"""Which virtual machine a container is to share with others: isolation "vm:NAME". docs/reference/pods.md."""

from __future__ import annotations

import re

from proa.model.config import HostConfig
from proa.model.errors import InvalidParameter

_SHARED = re.compile(r"(?i:vm):(.*)", re.DOTALL)
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,31}")


def machine_of(host: HostConfig) -> str:
    """Return the name of the virtual machine that a container is to share, "" for none.

    Raises InvalidParameter for a name that it cannot have.
    """
    shared = _SHARED.fullmatch(host.isolation)
    if shared is None:
        return ""
    if _NAME.fullmatch(shared[1]) is None:
        raise InvalidParameter(
            f'invalid isolation: "{host.isolation}": the name of a virtual machine is 1 to 32 of '
            "[a-zA-Z0-9_.-], the first a letter or a digit"
        )
    return shared[1]

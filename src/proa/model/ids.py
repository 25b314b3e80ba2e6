# SPDX-License-Identifier: Apache-2.0
"""Identifiers as the Engine API writes them: 64 hexadecimal digits, or ``sha256:`` and 64 digits."""

from __future__ import annotations

import re
import secrets
from typing import NewType

ContainerId = NewType("ContainerId", str)  # 64 hex digits
ExecId = NewType("ExecId", str)  # 64 hex digits
NetworkId = NewType("NetworkId", str)  # 64 hex digits
Digest = NewType("Digest", str)  # "sha256:" + 64 hex digits; OCI image-spec, descriptor.md, Digests

SHORT_ID_LENGTH = 12  # what docker prints

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def new_id() -> str:
    """Return 64 random hex digits that do not read as a decimal number when cut to 12.

    A short id of digits only would be taken for a number by shells and YAML, so Docker avoids it too.
    """
    while True:
        value = secrets.token_hex(32)
        if not value[:SHORT_ID_LENGTH].isdecimal():
            return value


def short(identifier: str) -> str:
    """Return the 12 digits that users see, without the ``sha256:`` prefix."""
    return identifier.removeprefix("sha256:")[:SHORT_ID_LENGTH]


def is_digest(text: str) -> bool:
    """Tell whether the text is a whole sha256 digest."""
    return _DIGEST.fullmatch(text) is not None

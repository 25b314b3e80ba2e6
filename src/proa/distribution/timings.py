# SPDX-License-Identifier: Apache-2.0
"""How long a registry may take. Tests shorten it; nothing else changes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds, but for ``min_bytes`` and ``tries``.

    :ivar connect_s: for TCP and TLS; Docker's dialer has 30.
    :ivar idle_s: between two pieces of an answer.
    :ivar document_s: for a whole small document (manifest, configuration, token).
    :ivar window_s: of a blob's transfer, in which at least ``min_bytes`` must come, or it is broken off: a
        server that sends a byte now and then would keep a place for ever.
    :ivar tries: of a blob's transfer, when it breaks; what has come is kept.
    :ivar pause_s: before the second try; doubled before each further one.
    """

    connect_s: float = 30
    idle_s: float = 60
    document_s: float = 120
    window_s: float = 60
    min_bytes: int = 16 * 1024
    tries: int = 5
    pause_s: float = 1

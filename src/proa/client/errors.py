# SPDX-License-Identifier: Apache-2.0
"""What can go wrong between a client and a daemon."""

from __future__ import annotations


class ClientError(Exception):
    """Base: one sentence for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConnectionFailed(ClientError):
    """Nobody answers at the daemon's address."""

    def __init__(self, host: str, cause: object = None) -> None:
        detail = f" ({cause})" if cause else ""
        super().__init__(f"Cannot connect to the proa daemon at {host}. Is the proa daemon running?{detail}")


class ApiError(ClientError):
    """The daemon refused.

    :ivar status: the HTTP status; ``message`` is the daemon's sentence.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ProtocolError(ClientError):
    """What came back is not what the Engine API allows."""


class ConnectionLost(ProtocolError):
    """The daemon closed the connection instead of answering."""

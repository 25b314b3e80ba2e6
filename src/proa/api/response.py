# SPDX-License-Identifier: Apache-2.0
"""Answers that are sent whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from proa.wire import codec
from proa.wire.errors import ErrorResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A status, headers and a body. No content type means no body."""

    status: int = 200
    content_type: str = ""
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


NO_CONTENT = Response(status=204)


def json_response(message: object, status: int = 200) -> Response:
    """Encode a message. A newline ends it, as Go's encoder does, which is kind to terminals."""
    return Response(status=status, content_type="application/json", body=codec.encode(message) + b"\n")


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return Docker's error body, or none where HTTP forbids one."""
    if status == 304:
        return Response(status=304)
    body = codec.encode(ErrorResponse(message=message)) + b"\n"
    return Response(status=status, content_type="application/json", body=body, headers=headers or {})

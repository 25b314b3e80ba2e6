# SPDX-License-Identifier: Apache-2.0
"""The body of every failure. Source: Engine API, ErrorResponse."""

from __future__ import annotations

import msgspec


class ErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    message: str = ""


class StreamError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    code: int = 0
    message: str = ""


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """One line of a progress stream (pull, load, import). ``error`` and ``error_detail`` end it as failed.

    Source: Engine API, ImageCreate and CreateImageInfo.
    """

    id: str = ""
    status: str = ""
    progress: str = ""
    progress_detail: dict[str, int] | None = None
    stream: str = ""
    aux: dict[str, str | int] | None = None  # for programs: what a push has made
    error: str = ""
    error_detail: StreamError | None = None

# SPDX-License-Identifier: Apache-2.0
"""Errors as HTTP statuses: the one table.

Source: Engine API, the responses of each operation; ErrorResponse.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from proa.model import errors

log = logging.getLogger(__name__)


class RequestError(Exception):
    """A request that is wrong as HTTP, before it reaches the engine."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


_STATUS: tuple[tuple[type[errors.EngineError], int], ...] = (
    (errors.NotModified, 304),
    (errors.InvalidParameter, 400),
    (errors.Unauthenticated, 401),
    (errors.Forbidden, 403),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.NotImplementedHere, 501),
    (errors.Unavailable, 503),
    (errors.EngineError, 500),
)

_USERS_PROGRAM = (126, 127)  # exit codes of a program that is not there or cannot be executed


def describe(error: Exception) -> tuple[int, str]:
    """Return the status and the sentence for the client. What proa did not foresee is logged as well."""
    error = _single(error)
    if isinstance(error, RequestError):
        return error.status, error.message
    if isinstance(error, errors.StartFailed) and error.exit_code in _USERS_PROGRAM:
        return 400, error.message
    if isinstance(error, errors.EngineError):
        return next(status for kind, status in _STATUS if isinstance(error, kind)), error.message
    log.error("a request failed unexpectedly", exc_info=error)
    return 500, f"{type(error).__name__}: {error}"


def _single(error: Exception) -> Exception:
    """Unpack the groups that task groups make of one error."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error

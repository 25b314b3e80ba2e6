# SPDX-License-Identifier: Apache-2.0
"""What registries answer when they refuse, in the words that Docker's users and docker-py know.

Source: OCI distribution-spec, "Error Codes"; Docker Engine 28, the messages of docker pull and push.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from proa.model.errors import Internal

ERROR_MAX_BYTES = 64 * 1024  # of an answer that tells of a failure
_TEXT_MAX = 500  # of a sentence from a registry, before it is shown


class RegistryFailed(Internal):
    """A registry cannot be reached, or does not do its part of the protocol.

    :ivar is_passing: trying again may help (a broken connection, 429, 5xx).
    """

    def __init__(self, message: str, *, is_passing: bool = False) -> None:
        super().__init__(message)
        self.is_passing = is_passing


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An answer with a status of 400 or more: the first error of its body, or the status in words."""

    status: int
    code: str
    text: str

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


class Refused(RegistryFailed):
    """The registry answered, with a refusal."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(
            str(refusal), is_passing=refusal.status == HTTPStatus.TOO_MANY_REQUESTS or refusal.status >= 500
        )


class _Error(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct, frozen=True):
    errors: list[_Error] = []
    details: str = ""  # what token servers answer instead


def parse_refusal(status: int, body: bytes) -> Refusal:
    """Read the body of a refusal; one that is not as specified says no more than the status."""
    phrase = _phrase(status)
    code, text = _PLAIN.get(status, ("unknown", f"received unexpected HTTP status: {phrase}"))
    plain = Refusal(status=status, code=code, text=text)
    try:
        answer = msgspec.json.decode(body, type=_Errors)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return plain
    if answer.errors:
        code = _clean(answer.errors[0].code).lower().replace("_", "") or "unknown"
        first = _SENTENCES.get(code, code)
        return Refusal(status=status, code=first, text=_clean(answer.errors[0].message) or first)
    if answer.details:
        return Refusal(status=status, code=phrase.partition(" ")[2].lower(), text=_clean(answer.details))
    return plain


# What a status means that comes without a body, as to HEAD. Source: distribution, client/errors.go.
_PLAIN = {
    401: ("unauthorized", "authentication required"),
    403: ("denied", "requested access to the resource is denied"),
}

# Source: OCI distribution-spec, "Error Codes", in Docker's spelling.
_SENTENCES = {
    "manifestunknown": "manifest unknown",
    "nameunknown": "name unknown",
    "blobunknown": "blob unknown",
    "nameinvalid": "name invalid",
    "manifestinvalid": "manifest invalid",
    "manifestblobunknown": "manifest blob unknown",
    "digestinvalid": "digest invalid",
    "sizeinvalid": "size invalid",
    "blobuploadinvalid": "blob upload invalid",
    "blobuploadunknown": "blob upload unknown",
}


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _clean(text: str) -> str:
    """A stranger's words, fit for one line of a terminal."""
    return "".join(char if char.isprintable() else " " for char in text[:_TEXT_MAX]).strip()

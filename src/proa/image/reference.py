# SPDX-License-Identifier: Apache-2.0
"""Image references: ``[domain/]path[:tag][@digest]``, read as Docker reads them. Pure.

A reference is kept normalised (``docker.io/library/busybox``) and shown in familiar form (``busybox``).

Source: github.com/distribution/reference, the grammar in reference.go and the rules of normalize.go, v0.6.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from proa.model.errors import InvalidParameter
from proa.model.ids import Digest, is_digest

DEFAULT_DOMAIN = "docker.io"
LEGACY_DEFAULT_DOMAIN = "index.docker.io"
OFFICIAL_PREFIX = "library/"
DEFAULT_TAG = "latest"
PATH_MAX_LENGTH = 255
INVALID_FORMAT = "invalid reference format"

_COMPONENT = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_COMPONENT}(?:\.{_COMPONENT})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_PATH_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = rf"{_PATH_COMPONENT}(?:/{_PATH_COMPONENT})*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"

_REFERENCE = re.compile(rf"({_DOMAIN})/({_PATH})(?::({_TAG}))?(?:@({_DIGEST}))?")
_TAG_ONLY = re.compile(_TAG)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")
_HEX_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
MAX_TEXT = 4096  # nothing valid is longer: 255 for the path, 128 for the tag, a host name, a digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A normalised reference. ``tag`` and ``digest`` are "" when not given."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The repository: docker.io/library/busybox."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The repository as users write it: busybox."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        official = self.path.removeprefix(OFFICIAL_PREFIX)
        return self.path if "/" in official else official

    @property
    def familiar(self) -> str:
        """The whole reference as users write it: busybox:latest."""
        return self.familiar_name + self._suffix

    def __str__(self) -> str:
        return self.name + self._suffix

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def with_default_tag(self) -> Reference:
        """Add ``latest`` when there is neither tag nor digest."""
        return self if self.tag or self.digest else replace(self, tag=DEFAULT_TAG)

    def with_tag(self, tag: str) -> Reference:
        """Replace tag and digest by this tag. Raises InvalidParameter: ``invalid tag format``."""
        if not _TAG_ONLY.fullmatch(tag):
            raise InvalidParameter("invalid tag format")
        return replace(self, tag=tag, digest="")

    def with_digest(self, digest: Digest) -> Reference:
        """Replace tag and digest by this digest."""
        return replace(self, tag="", digest=digest)


def parse_reference(text: str) -> Reference:
    """Read a reference in familiar or full form.

    :raises InvalidParameter: with Docker's words.
    """
    if len(text) > MAX_TEXT:
        raise InvalidParameter(INVALID_FORMAT)
    if _IDENTIFIER.fullmatch(text):
        raise InvalidParameter(
            f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
        )
    domain, remainder = _split_domain(text)
    path = remainder.partition(":")[0]
    if path.lower() != path:
        raise InvalidParameter(f"{INVALID_FORMAT}: repository name ({path}) must be lowercase")
    match = _REFERENCE.fullmatch(f"{domain}/{remainder}")
    if match is None:
        raise InvalidParameter(INVALID_FORMAT)
    domain, path, tag, digest = match.groups(default="")
    if len(path) > PATH_MAX_LENGTH:
        raise InvalidParameter(f"repository name must not be more than {PATH_MAX_LENGTH} characters")
    if digest:
        _check_digest(digest)
    return Reference(domain=domain, path=path, tag=tag, digest=digest)


def parse_name(repository: str, tag: str = "") -> Reference:
    """Read a name to give to an image: a repository (which may carry the tag) and a tag, latest by default.

    Source: Engine API, ImageTag, ImageCreate. Raises InvalidParameter.
    """
    reference = parse_reference(repository)
    if reference.digest:
        raise InvalidParameter("cannot import digest reference")
    if reference.familiar_name == "sha256":
        raise InvalidParameter("refusing to create an ambiguous tag using digest algorithm as name")
    return reference.with_tag(tag) if tag else reference.with_default_tag()


def parse_any(text: str) -> Reference | Digest:
    """Read what a user may name an image by: a reference, or a whole id with or without ``sha256:``.

    Raises InvalidParameter.
    """
    if is_digest(text):
        return Digest(text)
    if _IDENTIFIER.fullmatch(text):
        return Digest(f"sha256:{text}")
    return parse_reference(text)


def _split_domain(text: str) -> tuple[str, str]:
    """Tell a registry from a first path component: it has a dot, a colon or a capital, or is localhost."""
    first, slash, rest = text.partition("/")
    if not slash:
        return DEFAULT_DOMAIN, OFFICIAL_PREFIX + text
    domain, path = DEFAULT_DOMAIN, text
    if first == LEGACY_DEFAULT_DOMAIN:
        path = rest
    elif first == "localhost" or "." in first or ":" in first or first.lower() != first:
        domain, path = first, rest
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = OFFICIAL_PREFIX + path
    return domain, path


def _check_digest(digest: str) -> None:
    algorithm, _, digits = digest.partition(":")
    wanted = _HEX_LENGTHS.get(algorithm)
    if wanted is None:
        raise InvalidParameter("unsupported digest algorithm")
    if len(digits) != wanted:
        raise InvalidParameter("invalid checksum digest length")
    if digits != digits.lower():
        raise InvalidParameter("invalid checksum digest format")

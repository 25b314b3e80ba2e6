# SPDX-License-Identifier: Apache-2.0
"""Addresses of git repositories: what is one, and its parts. Pure.

Source: Dockerfile reference, ADD, "Git repositories"; docker build reference, "Git repositories".
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit, urlunsplit

from proa.model.errors import InvalidParameter

_SCP_LIKE = re.compile(r"[a-zA-Z0-9_-]+@[a-zA-Z0-9.-]+:[^#]+(#.*)?")
_SCHEMES = ("http", "https", "ssh", "git")
_GITHUB = "github.com/"


@dataclass(frozen=True, slots=True, kw_only=True)
class GitAddress:
    """``ref`` is a branch, tag or commit, "" for the repository's default; ``directory`` has no leading slash
    and is "" for all of it."""

    url: str
    ref: str = ""
    directory: str = ""

    @property
    def shown(self) -> str:
        """The URL without a password."""
        if "://" not in self.url:
            return self.url
        parts = urlsplit(self.url)
        if "@" not in parts.netloc:
            return self.url
        return urlunsplit(parts._replace(netloc=f"xxxxx@{parts.netloc.rpartition('@')[2]}"))


def is_git_address(text: str) -> bool:
    """Whether a source of ADD is a repository: by its scheme, and of http by a name that ends in ``.git``."""
    if _SCP_LIKE.fullmatch(text):
        return True
    scheme, separator, rest = text.partition("#")[0].partition("://")
    if not separator:
        return False
    return scheme in ("ssh", "git") or (scheme in ("http", "https") and rest.endswith(".git"))


def is_git_context(text: str) -> bool:
    """Whether a context's address is a repository: ``github.com/user/name`` is one there, too."""
    return text.startswith(_GITHUB) or is_git_address(text)


def parse_git_address(text: str) -> GitAddress:
    """Take an address apart: ``URL#REF:DIRECTORY``. Raises InvalidParameter."""
    url, _, fragment = text.partition("#")
    ref, _, directory = fragment.partition(":")
    if url.startswith(_GITHUB):
        url = f"https://{url}"
    if any(ord(char) < 33 or ord(char) == 127 for char in url):
        raise InvalidParameter(f"invalid git address: {text!r}")
    if "://" in url:
        try:
            parts = urlsplit(url)
            host = parts.hostname
        except ValueError as error:
            raise InvalidParameter(f"invalid git address: {url}: {error}") from error
        if parts.scheme not in _SCHEMES or not host or host.startswith("-"):
            raise InvalidParameter(f"invalid git address: {url}")
    return GitAddress(url=url, ref=_check_ref(unquote(ref)), directory=_check_directory(unquote(directory)))


def _check_ref(ref: str) -> str:
    if ref.startswith("-") or any(ord(char) < 33 or char in "~^:?*[\\\x7f" for char in ref) or ".." in ref:
        raise InvalidParameter(f"invalid git ref: {ref!r}")
    return ref


def _check_directory(directory: str) -> str:
    if "\0" in directory or ".." in directory.split("/"):
        raise InvalidParameter(f"invalid git subdirectory: {directory!r}")
    path = posixpath.normpath("/" + directory).strip("/")
    if path.split("/")[0] == ".git":
        raise InvalidParameter(f"invalid git subdirectory: {directory!r}")
    return path

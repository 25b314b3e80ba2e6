# SPDX-License-Identifier: Apache-2.0
"""Registries as every layer speaks of them: who asks, and how the daemon is set up to reach them.

Source: Engine API, "Authentication"; dockerd reference, --registry-mirror and --insecure-registry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from proa.model.ids import Digest

CERTS_DIRS = (Path("/etc/docker/certs.d"), Path("/etc/proa/certs.d"))  # the later one wins


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Who a user is at one registry. All empty: anonymous. Never logged, and not shown by ``repr``.

    :ivar identity_token: a refresh token, in place of the password.
    :ivar registry_token: a bearer token, sent as it is.
    :ivar server: the registry they are for, as clients write it (a host or an URL); "" when they did not say.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    server: str = ""

    def __bool__(self) -> bool:
        return bool(self.username or self.password or self.identity_token or self.registry_token)


ANONYMOUS = Credentials()


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """The daemon's configuration of registries.

    :ivar mirrors: base URLs, asked before Docker Hub, in order.
    :ivar insecure: hosts (with or without a port) and networks (CIDR) that need no valid certificate, and may
        speak plain HTTP.
    :ivar certs_dirs: each with HOST/{*.crt, *.cert, *.key}.
    """

    mirrors: tuple[str, ...] = ()
    insecure: tuple[str, ...] = ()
    certs_dirs: tuple[Path, ...] = CERTS_DIRS


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """Content in a registry. Source: OCI image-spec, descriptor.md.

    :ivar platform: (os, architecture, variant) of an index's entry; None when it does not say.
    :ivar urls: where else the content may be (foreign layers).
    """

    media_type: str
    digest: Digest
    size: int
    platform: tuple[str, str, str] | None = None
    urls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedIn:
    """The answer to a login. ``identity_token`` is "" when the registry gave none."""

    status: str
    identity_token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """One repository of Docker Hub's index."""

    name: str
    description: str = ""
    stars: int = 0
    is_official: bool = False
    is_automated: bool = False

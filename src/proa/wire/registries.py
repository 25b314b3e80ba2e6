# SPDX-License-Identifier: Apache-2.0
"""Messages about registries, and the header that carries a user's credentials.

Source: Engine API, "Authentication", SystemAuth, ImageSearch, DistributionInspect.
"""

from __future__ import annotations

import base64
import binascii

import msgspec

from proa.model.config import ApiStruct
from proa.wire.codec import decode

AUTH_HEADER = "X-Registry-Auth"
AUTH_MAX_BYTES = 64 * 1024
HUB_KEY = "https://index.docker.io/v1/"  # Docker Hub's name in authentication files
_HUB_DOMAINS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


class AuthConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A user at a registry. ``auth`` is username and password in one, as configuration files have them."""

    username: str = ""
    password: str = ""
    auth: str = ""
    email: str = ""
    serveraddress: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


class AuthResponse(ApiStruct, frozen=True, kw_only=True):
    status: str = ""
    identity_token: str = ""


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    description: str = ""
    is_official: bool = False
    is_automated: bool = False
    name: str = ""
    star_count: int = 0


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    media_type: str = ""
    digest: str = ""
    size: int = 0


class Platform(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    architecture: str = ""
    os: str = ""
    variant: str = ""


class DistributionInspect(ApiStruct, frozen=True, kw_only=True):
    descriptor: Descriptor
    platforms: list[Platform]


def encode_auth(config: AuthConfig) -> str:
    """Return the header's value."""
    return base64.urlsafe_b64encode(msgspec.json.encode(config)).decode()


def decode_auth(header: str) -> AuthConfig:
    """Read the header's value; "" is nobody. Either alphabet of base64 is taken, padded or not.

    Raises ValueError.
    """
    if not header or len(header) > AUTH_MAX_BYTES:
        if header:
            raise ValueError("it is too long")
        return AuthConfig()
    try:
        text = header.translate(str.maketrans("+/", "-_")).rstrip("=")
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("it is not base64") from error
    if data.strip() in (b"", b"null"):
        return AuthConfig()
    return split_auth(decode(data, AuthConfig))


def split_auth(config: AuthConfig) -> AuthConfig:
    """Take username and password out of ``auth``. Raises ValueError."""
    if not config.auth or config.username:
        return config
    try:
        username, colon, password = base64.b64decode(config.auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ValueError("auth is not base64") from error
    if not colon:
        raise ValueError("auth has no colon between name and password")
    return msgspec.structs.replace(config, username=username, password=password.rstrip("\0"), auth="")


def registry_of(image: str) -> str:
    """Return the registry in an image's name: docker.io when there is none."""
    first, slash, _ = image.partition("/")
    if not slash or not (first == "localhost" or "." in first or ":" in first or first.lower() != first):
        return "docker.io"
    return "docker.io" if first in _HUB_DOMAINS else first


def auth_key(registry: str) -> str:
    """Return the key of a registry in configuration files: its host, or Docker Hub's URL."""
    _, separator, rest = registry.partition("://")
    host = (rest if separator else registry).partition("/")[0].lower()
    return HUB_KEY if not host or host in _HUB_DOMAINS else host

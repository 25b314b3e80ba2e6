# SPDX-License-Identifier: Apache-2.0
"""What one registry gets to see of a user: a password by Basic, or a token that its token server gave.

Made for one endpoint and one operation. Nothing is sent before the registry has asked, and the token server
it names must be reached by TLS, unless it is on the very host of a registry that itself speaks plain HTTP.

Source: distribution, docs/spec/auth/token.md and oauth.md; RFC 7617.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from urllib.parse import urlencode, urlsplit

import msgspec

from proa.distribution.challenge import Challenge
from proa.distribution.endpoints import host_name, is_internal, is_loopback
from proa.distribution.errors import Refused, RegistryFailed
from proa.distribution.transport import Transport, check, read_document
from proa.model.registry import Credentials

TOKEN_MAX_BYTES = 256 * 1024
CLIENT_ID = "docker"  # token servers know no other name and some refuse one

Scopes = tuple[str, ...]


class _Token(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""
    refresh_token: str = ""


class Authorizer:
    """Answers the challenges of the registry at ``url``.

    :ivar identity_token: a refresh token that the token server gave, when ``wants_identity``.
    """

    def __init__(
        self, transport: Transport, url: str, credentials: Credentials, *, wants_identity: bool = False
    ) -> None:
        self._transport = transport
        self._url = url
        self._credentials = credentials
        self._wants_identity = wants_identity
        self._basic = ""
        self._tokens: dict[Scopes, str] = {}
        self.identity_token = ""

    def current(self, scopes: Scopes) -> str:
        """Return the Authorization that the registry took last; "" when it has not asked yet."""
        return self._tokens.get(scopes) or self._basic

    async def answer(self, challenges: Sequence[Challenge], scopes: Scopes) -> str:
        """Return the Authorization that a challenge asks for, after the current one was not enough.

        :raises Refused: the token server refuses.
        :raises RegistryFailed: there are no credentials, or the challenge asks for what is not given.
        """
        for challenge in challenges:
            if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
                self._tokens[scopes] = f"Bearer {await self._token(challenge, scopes)}"
                return self._tokens[scopes]
            if challenge.scheme == "basic":
                if not self._credentials.username:
                    raise RegistryFailed("no basic auth credentials")
                self._basic = _basic(self._credentials)
                return self._basic
        raise RegistryFailed("unauthorized: the registry asks for a kind of authentication that is not known")

    async def _token(self, challenge: Challenge, scopes: Scopes) -> str:
        if self._credentials.registry_token:
            return self._credentials.registry_token
        realm = challenge.parameters["realm"]
        self._check_realm(realm)
        service = challenge.parameters.get("service", "")
        wanted = scopes or tuple(challenge.parameters.get("scope", "").split())
        if self._credentials.identity_token:
            return await self._refresh(realm, service, wanted)
        query = [("service", service)] if service else []
        query += [("scope", scope) for scope in wanted]
        authorization = ""
        if self._credentials.username:
            query.append(("account", self._credentials.username))
            authorization = _basic(self._credentials)
        if self._wants_identity:
            query += [("client_id", CLIENT_ID), ("offline_token", "true")]
        url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}" if query else realm
        async with self._transport.send("GET", url, authorization=authorization) as answer:
            await check(answer, self._transport.timings)
            token = _parse_token(await read_document(answer, TOKEN_MAX_BYTES, self._transport.timings))
        self.identity_token = token.refresh_token if self._wants_identity else ""
        return _bearer(token)

    async def _refresh(self, realm: str, service: str, scopes: Scopes) -> str:
        form = {
            "grant_type": "refresh_token",
            "service": service,
            "client_id": CLIENT_ID,
            "refresh_token": self._credentials.identity_token,
        }
        if scopes:
            form["scope"] = " ".join(scopes)
        async with self._transport.send(
            "POST",
            realm,
            headers={"Content-Type": "application/x-www-form-urlencoded"},
            body=urlencode(form).encode(),
        ) as answer:
            await check(answer, self._transport.timings)
            if answer.status != 200:
                raise RegistryFailed(f"the token server answered with status {answer.status}")
            token = _parse_token(await read_document(answer, TOKEN_MAX_BYTES, self._transport.timings))
        self.identity_token = token.refresh_token or self._credentials.identity_token
        return _bearer(token)

    def _check_realm(self, realm: str) -> None:
        """Raise RegistryFailed for a token server to which nothing may be sent."""
        try:
            parts, own = urlsplit(realm), urlsplit(self._url)
            host = parts.netloc
        except ValueError as error:
            raise RegistryFailed(f"invalid token realm {realm[:200]!r}") from error
        if parts.scheme not in ("http", "https") or not host or "@" in host:
            raise RegistryFailed(f"invalid token realm {realm[:200]!r}")
        same_host = host_name(host) == host_name(own.netloc)
        if parts.scheme == "http" and not (own.scheme == "http" and same_host):
            raise RegistryFailed(f"refusing to ask for a token at {realm[:200]}: it is not protected by TLS")
        if is_loopback(host) and not is_internal(own.netloc):
            raise RegistryFailed(f"refusing to ask for a token at {realm[:200]}: it is this machine")


def _basic(credentials: Credentials) -> str:
    text = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(text).decode()}"


def _parse_token(data: bytes) -> _Token:
    try:
        return msgspec.json.decode(data, type=_Token)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RegistryFailed(f"invalid answer of the token server: {error}") from error


def _bearer(token: _Token) -> str:
    text = token.token or token.access_token
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise RegistryFailed("authorization server did not include a token in the response")
    return text


def denied(error: RegistryFailed) -> bool:
    """Whether the registry or its token server says that this user may not, or must say who they are."""
    return isinstance(error, Refused) and error.refusal.status in (401, 403)

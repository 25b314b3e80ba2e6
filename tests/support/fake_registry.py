# SPDX-License-Identifier: Apache-2.0
"""A registry on the loopback that does as it is told: right by default, wrong at will.

Each connection carries one request. ``misdeeds`` maps the beginning of a path to what is done instead.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.tls import TLSStream

from proa.distribution.manifests import DOCKER_LAYER, DOCKER_MANIFEST, OCI_INDEX
from tests.support.images import COMPRESSORS, Json, make_config, sha256

Stream = SocketStream | TLSStream
PIECE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A request."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)


Misdeed = Callable[[Seen, Stream], Awaitable[None]]


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """A whole answer; underscores of header names become hyphens."""
    fields = {"Content-Length": str(len(body)), "Connection": "close"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return head.encode() + b"\r\n" + body


def says(status: int, body: bytes = b"", **headers: str) -> Misdeed:
    """Always answer so."""

    async def misdeed(seen: Seen, stream: Stream) -> None:
        await stream.send(answer(status, body, **headers))

    return misdeed


def tunnel_to(port: int) -> Misdeed:
    """A proxy's CONNECT."""

    async def copy(source: Stream, target: Stream) -> None:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                await target.send(await source.receive())
        with suppress(anyio.BrokenResourceError):
            await target.send_eof()

    async def tunnel(seen: Seen, stream: Stream) -> None:
        assert seen.method == "CONNECT"
        await stream.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        async with await anyio.connect_tcp("127.0.0.1", port) as there, anyio.create_task_group() as group:
            group.start_soon(copy, stream, there)
            group.start_soon(copy, there, stream)

    return tunnel


@dataclass(slots=True)
class FakeRegistry:
    """Manifests by (path, tag or digest), blobs by digest.

    :ivar users: name to password; then it asks for them, by Basic or through ``realm`` by Bearer.
    :ivar served: bytes of content sent, by path.
    """

    port: int = 0
    scheme: str = "http"
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)
    realm: str = ""
    tokens: dict[str, list[str]] = field(default_factory=dict)  # with the scopes each is good for
    mountable: set[str] = field(default_factory=set)  # digests that other repositories have
    misdeeds: dict[str, Misdeed] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)

    @property
    def host(self) -> str:
        return f"localhost:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    # --- content ---

    def add_image(
        self, path: str, tag: str, layers: list[bytes], *, compress: str = "gzip", **keys: object
    ) -> str:
        """Put an image there; return the digest of its manifest."""
        config = make_config(layers, **keys)  # type: ignore[arg-type]  # keys of the configuration
        packed = [COMPRESSORS[compress](layer) for layer in layers]
        for data in (config, *packed):
            self.blobs[sha256(data)] = data
        document = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": describe(config, "application/vnd.docker.container.image.v1+json"),
            "layers": [describe(data, DOCKER_LAYER) for data in packed],
        }
        return self.add_manifest(path, tag, document, DOCKER_MANIFEST)

    def add_index(self, path: str, tag: str, platforms: dict[str, str]) -> str:
        """Put an index there, of "os/architecture/variant" to the digest of a manifest."""
        entries = []
        for platform, digest in platforms.items():
            os, architecture, variant = (*platform.split("/"), "", "")[:3]
            kind, data = self.manifests[path, digest]
            where = {"os": os, "architecture": architecture, "variant": variant}
            entries.append({**describe(data, kind), "platform": where})
        return self.add_manifest(path, tag, {"schemaVersion": 2, "manifests": entries}, OCI_INDEX)

    def add_manifest(self, path: str, tag: str, document: Json, kind: str) -> str:
        data = json.dumps(document).encode()
        self.manifests[path, tag] = self.manifests[path, sha256(data)] = (kind, data)
        return sha256(data)

    def blob_path(self, path: str, blob: bytes) -> str:
        return f"/v2/{path}/blobs/{sha256(blob)}"

    def requests_to(self, path: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.path.startswith(path)]

    # --- serving ---

    @asynccontextmanager
    async def running(self, context: ssl.SSLContext | None = None) -> AsyncIterator[FakeRegistry]:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=self.port)
        self.port = int(listener.extra(SocketAttribute.local_port))
        self.scheme = "https" if context else "http"

        async def converse(plain: SocketStream) -> None:
            try:
                stream: Stream = plain
                if context is not None:
                    stream = await TLSStream.wrap(
                        plain, server_side=True, ssl_context=context, standard_compatible=False
                    )
                async with stream:
                    seen = await _read(stream)
                    if seen is not None:
                        self.seen.append(seen)
                        await self._act(seen, stream)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, ssl.SSLError):
                return  # the client has heard enough

        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, converse)
            yield self
            group.cancel_scope.cancel()

    async def _act(self, seen: Seen, stream: Stream) -> None:
        for prefix, misdeed in self.misdeeds.items():
            if seen.path.startswith(prefix) or seen.target.startswith(prefix):
                await misdeed(seen, stream)
                return
        if seen.path == "/token":
            await stream.send(self._token(seen))
        elif not self._knows(seen):
            await stream.send(answer(401, WWW_Authenticate=self._challenge(seen)))
        else:
            await self.behave(seen, stream)

    async def behave(self, seen: Seen, stream: Stream) -> None:
        """Answer as a registry does."""
        kind, data = "", None
        parts = seen.path.removeprefix("/v2/").rsplit("/", 2)
        if seen.path == "/v2/":
            data = b"{}"
        elif seen.path.endswith("/tags/list"):
            tags = [tag for path, tag in self.manifests if path == parts[0] and ":" not in tag]
            data = json.dumps({"tags": tags}).encode()
        elif len(parts) == 3 and parts[1] == "manifests":
            kind, data = self.manifests.get((parts[0], parts[2]), ("", None))
        elif len(parts) == 3 and parts[1] == "blobs":
            data = self.blobs.get(parts[2])
        if seen.method in ("POST", "PUT"):
            await stream.send(self._store(seen))
            return
        if data is None:
            errors = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
            await stream.send(answer(404, b"" if seen.method == "HEAD" else json.dumps(errors).encode()))
            return
        await self.send_content(seen, stream, data, kind or "application/octet-stream")

    def _store(self, seen: Seen) -> bytes:
        """Take a blob, in two steps, or a manifest."""
        path, _, rest = seen.path.removeprefix("/v2/").rpartition("/blobs/uploads/")
        if seen.method == "POST":
            if seen.query.get("mount", [""])[0] in self.mountable:
                self.blobs[seen.query["mount"][0]] = b"mounted"
                return answer(201, Location=f"/v2/{path}/blobs/{seen.query['mount'][0]}")
            return answer(202, Location=f"/v2/{path}/blobs/uploads/one?state=x%2Fy")
        if rest == "one":
            if sha256(seen.body) != seen.query["digest"][0] or seen.query["state"] != ["x/y"]:
                return answer(400, b'{"errors": [{"code": "DIGEST_INVALID", "message": "no"}]}')
            self.blobs[sha256(seen.body)] = seen.body
            return answer(201)
        path, _, tag = seen.path.removeprefix("/v2/").rpartition("/manifests/")
        kind = seen.headers["content-type"]
        self.manifests[path, tag] = self.manifests[path, sha256(seen.body)] = (kind, seen.body)
        return answer(201)

    async def send_content(
        self, seen: Seen, stream: Stream, data: bytes, kind: str, *, total: int | None = None
    ) -> None:
        """Send it, from where the client wants it, and count. ``total`` announces more than there is."""
        start = int(seen.headers.get("range", "bytes=0-")[6:-1])
        total = len(data) if total is None else total
        extra = {"Content_Type": kind, "Content_Length": str(total - start)}
        if start:
            extra["Content_Range"] = f"bytes {start}-{total - 1}/{total}"
        await stream.send(answer(206 if start else 200, b"", **extra))
        if seen.method == "HEAD":
            return
        for position in range(start, len(data), PIECE_BYTES):
            piece = data[position : position + PIECE_BYTES]
            await stream.send(piece)
            self.served[seen.path] += len(piece)

    def _knows(self, seen: Seen) -> bool:
        if not self.users:
            return True
        scheme, _, secret = seen.headers.get("authorization", "").partition(" ")
        if self.realm:
            return scheme == "Bearer" and self._wanted_scope(seen) in self.tokens.get(secret, ["none"])
        return scheme == "Basic" and self._is_user(secret)

    def _wanted_scope(self, seen: Seen) -> str:
        path = seen.path.removeprefix("/v2/").partition("/blobs/")[0].partition("/manifests/")[0]
        if not path:
            return ""
        return f"repository:{path}:{'push' if seen.method in ('POST', 'PUT') else 'pull'}"

    def _is_user(self, secret: str) -> bool:
        name, _, password = base64.b64decode(secret).decode().partition(":")
        return self.users.get(name) == password

    def _challenge(self, seen: Seen) -> str:
        if not self.realm:
            return 'Basic realm="fake"'
        return f'Bearer realm="{self.realm}",service="fake",scope="repository:x:pull"'

    def _token(self, seen: Seen) -> bytes:
        """Be the token server too: for users by password, or by refresh token ``refresh-NAME``."""
        form = parse_qs(seen.body.decode())
        _, _, secret = seen.headers.get("authorization", "").partition(" ")
        refreshed = form.get("refresh_token", [""])[0].removeprefix("refresh-") in self.users
        if not refreshed and not (secret and self._is_user(secret)):
            return answer(401, b'{"details": "incorrect username or password"}')
        token = f"token{len(self.tokens)}"
        scopes = seen.query.get("scope", []) + form.get("scope", [""])[0].split()
        self.tokens[token] = [""]
        for scope in scopes:
            kind, path, actions = scope.split(":")
            self.tokens[token] += [f"{kind}:{path}:{action}" for action in actions.split(",")]
        document = {"token": token, "refresh_token": "refresh-ann"}
        return answer(200, json.dumps(document).encode(), Content_Type="application/json")


def describe(data: bytes, kind: str, **keys: object) -> Json:
    return {"mediaType": kind, "digest": sha256(data), "size": len(data), **keys}


async def _read(stream: Stream) -> Seen | None:
    """Read a request; None for what is no HTTP, such as the start of TLS."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive()
        if not data[:1].isalpha():
            return None
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += await stream.receive()
    return Seen(method=method, target=target, headers=headers, body=body)

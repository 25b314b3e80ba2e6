# SPDX-License-Identifier: Apache-2.0
"""One repository of one registry: manifests and blobs, in and out.

Every digest of a small document is checked here; a blob's is the receiver's to check, since it comes in
pieces. Transfers of blobs may break (``RegistryFailed.is_passing``) and be begun again where they stopped.

Source: OCI distribution-spec 1.1, "API"; distribution, docs/spec/api.md.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote, urlencode, urljoin, urlsplit, urlunsplit

import anyio
import msgspec

from proa.distribution.authorizer import Authorizer, Scopes
from proa.distribution.challenge import Challenge, parse_challenges
from proa.distribution.endpoints import Endpoint, is_internal
from proa.distribution.errors import Refused, RegistryFailed
from proa.distribution.manifests import ACCEPT, MANIFEST_MAX_BYTES
from proa.distribution.transport import Answer, Body, Transport, Unreachable, check, origin_of, read_document
from proa.model.ids import Digest, is_digest
from proa.model.registry import Credentials

TAGS_MAX = 10_000
TAG_PAGES_MAX = 100
_TAG_LIST_MAX_BYTES = 4 * 1024 * 1024
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(?:\d{1,18}|\*)")
_NEXT = re.compile(r'<([^>]*)>\s*;\s*rel="?next"?')


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A manifest or index as it is in the registry."""

    media_type: str
    digest: Digest
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobBody:
    """A blob on its way. ``offset`` is where the pieces begin: as asked for, or 0 when there is only all."""

    offset: int
    pieces: AsyncIterator[bytes]


class _Tags(msgspec.Struct, frozen=True):
    tags: list[str] | None = None


class Repository:
    """``path`` at ``endpoint``, for one operation that may also ``push``.

    All methods raise Refused for what the registry denies, RegistryFailed for what fails.
    """

    def __init__(
        self,
        transport: Transport,
        endpoint: Endpoint,
        path: str,
        credentials: Credentials,
        *,
        push: bool = False,
    ) -> None:
        self._transport = transport
        self._url = endpoint.url
        self._may_be_plain = (
            endpoint.is_insecure
            and endpoint.url.startswith("https://")
            and not transport.has_authority(endpoint.host)
        )
        self._settling = anyio.Lock()  # the layers of a push come here together
        self._path = path
        self._credentials = credentials
        self._scopes: Scopes = (f"repository:{path}:{'pull,push' if push else 'pull'}",)
        self._authorizer = Authorizer(transport, self._url, credentials)

    @property
    def url(self) -> str:
        """The base that answers: with plain HTTP once it has shown that it has nothing better."""
        return self._url

    # --- manifests ---

    async def get_manifest(self, ref: str) -> Fetched:
        """Return the manifest or index of a tag or digest, verified."""
        async with self._request("GET", self._manifest_path(ref), headers={"Accept": ACCEPT}) as answer:
            await check(answer, self._transport.timings)
            _expect(answer, 200)
            data = await read_document(answer, MANIFEST_MAX_BYTES, self._transport.timings)
            media_type = answer.headers.get("Content-Type", "")
        digest = _digest_of(data)
        if is_digest(ref) and digest != ref:
            raise RegistryFailed(f"manifest verification failed for digest {ref}")
        return Fetched(media_type=media_type.partition(";")[0].strip().lower(), digest=digest, data=data)

    async def put_manifest(self, ref: str, media_type: str, data: bytes) -> None:
        """Store a manifest under a tag or digest."""
        headers = {"Content-Type": media_type}
        async with self._request("PUT", self._manifest_path(ref), headers=headers, body=data) as answer:
            await check(answer, self._transport.timings)
            _expect(answer, 201, 200, 202)

    async def list_tags(self) -> Sequence[str]:
        """Return all tags."""
        tags: dict[str, None] = {}
        path = f"/v2/{self._path}/tags/list?n=1000"
        for _ in range(TAG_PAGES_MAX):
            async with self._request("GET", path) as answer:
                await check(answer, self._transport.timings)
                data = await read_document(answer, _TAG_LIST_MAX_BYTES, self._transport.timings)
                following = _NEXT.search(answer.headers.get("Link", ""))
            try:
                page = msgspec.json.decode(data, type=_Tags).tags or []
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise RegistryFailed(f"invalid list of tags: {error}") from error
            tags.update(dict.fromkeys(page))
            if len(tags) > TAGS_MAX:
                raise RegistryFailed(f"the repository has more than {TAGS_MAX} tags")
            if following is None or not page:
                return list(tags)
            target = urlsplit(urljoin(self._url + path, following[1]))
            before, path = path, urlunsplit(("", "", target.path, target.query, ""))
            if path == before:
                break
        raise RegistryFailed("the list of tags does not end")

    # --- blobs, in ---

    async def get_document(self, digest: Digest, size: int, max_bytes: int) -> bytes:
        """Return a small blob, verified."""
        if size > max_bytes:
            raise RegistryFailed(f"{digest} has {size} bytes, more than {max_bytes}")
        async with self._request("GET", self._blob_path(digest)) as answer:
            await check(answer, self._transport.timings)
            _expect(answer, 200)
            data = await read_document(answer, max(size, 1), self._transport.timings)
        if len(data) != size or _digest_of(data) != digest:
            raise RegistryFailed(f"blob verification failed for digest {digest}")
        return data

    @asynccontextmanager
    async def open_blob(self, digest: Digest, offset: int = 0) -> AsyncIterator[BlobBody]:
        """Give a blob's content from ``offset`` on, for the span of the block."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        async with self._request("GET", self._blob_path(digest), headers=headers) as answer:
            await check(answer, self._transport.timings)
            yield self._body(answer, offset)

    @asynccontextmanager
    async def open_foreign(self, url: str, offset: int = 0) -> AsyncIterator[BlobBody]:
        """The same from an address that a manifest names: by TLS, elsewhere, and without credentials."""
        parts = urlsplit(url)
        if parts.scheme != "https" or "@" in parts.netloc or is_internal(parts.netloc):
            raise RegistryFailed(f"refusing to fetch a foreign layer from {url[:200]!r}")
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        async with self._transport.send("GET", url, headers=headers) as answer:
            await check(answer, self._transport.timings)
            yield self._body(answer, offset)

    def _body(self, answer: Answer, offset: int) -> BlobBody:
        _expect(answer, 200, 206)
        start = 0
        if answer.status == 206:
            found = _CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
            start = int(found[1]) if found else -1
            if start != offset:
                raise RegistryFailed("the registry sends another range than was asked for")
        return BlobBody(offset=start, pieces=self._pieces(answer))

    async def _pieces(self, answer: Answer) -> AsyncIterator[bytes]:
        """Yield the body; raise a passing RegistryFailed when it is slower than a transfer may be."""
        timings = self._transport.timings
        began, came = anyio.current_time(), 0
        async for piece in answer.content.iter_any():
            came += len(piece)
            yield piece
            now = anyio.current_time()
            if now - began >= timings.window_s:
                if came < timings.min_bytes:
                    raise RegistryFailed(
                        f"{came} bytes came in {timings.window_s:g} s: the transfer is too slow",
                        is_passing=True,
                    )
                began, came = now, 0

    # --- blobs, out ---

    async def has_blob(self, digest: Digest) -> bool:
        """Whether a blob is there, and may be seen."""
        async with self._request("HEAD", self._blob_path(digest)) as answer:
            if answer.status in (403, 404):
                return False
            await check(answer, self._transport.timings)
            _expect(answer, 200)
            return True

    async def mount_blob(self, digest: Digest, source: str) -> bool:
        """Take a blob over from another repository of this registry. False when the registry will not."""
        query = urlencode({"mount": digest, "from": source})
        scopes = (*self._scopes, f"repository:{source}:pull")
        try:
            async with self._request("POST", f"{self._uploads_path}?{query}", scopes=scopes) as answer:
                await check(answer, self._transport.timings)
                if answer.status == 201:
                    return True
                location = self._location(answer)
        except Refused:
            return False
        await self._abandon(location)
        return False

    async def upload_blob(self, digest: Digest, size: int, body: Callable[[], AsyncIterable[bytes]]) -> None:
        """Store a blob, in one stream."""
        async with self._request("POST", self._uploads_path, body=b"") as answer:
            await check(answer, self._transport.timings)
            _expect(answer, 202, 201)
            location = self._location(answer)
        separator = "&" if "?" in location else "?"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        try:
            async with self._request(
                "PUT",
                f"{location}{separator}{urlencode({'digest': digest})}",
                headers=headers,
                body=body if size else b"",
            ) as answer:
                await check(answer, self._transport.timings)
                _expect(answer, 201, 204)
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await self._abandon(location)
            raise

    async def _abandon(self, location: str) -> None:
        """Tell the registry that an upload will not go on; it forgets it by itself otherwise."""
        try:
            async with self._request("DELETE", location):
                return
        except RegistryFailed:
            return

    # --- machinery ---

    @property
    def _uploads_path(self) -> str:
        return f"/v2/{self._path}/blobs/uploads/"

    def _manifest_path(self, ref: str) -> str:
        return f"/v2/{self._path}/manifests/{quote(ref, safe=':')}"

    def _blob_path(self, digest: Digest) -> str:
        return f"/v2/{self._path}/blobs/{digest}"

    def _location(self, answer: Answer) -> str:
        try:
            location = urljoin(str(answer.url), answer.headers.get("Location", ""))
            parts = urlsplit(location)
        except ValueError:
            location, parts = "", urlsplit("")
        if not answer.headers.get("Location") or parts.scheme not in ("http", "https") or not parts.hostname:
            raise RegistryFailed("the registry does not say where to upload to")
        if parts.scheme == "http" and self._url.startswith("https://"):
            raise RegistryFailed(
                f"refusing to upload to {parts.scheme}://{parts.netloc}: it is not protected by TLS"
            )
        return location

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        where: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | bytes | None = None,
        scopes: Scopes = (),
    ) -> AsyncIterator[Answer]:
        """Send to a path of the registry (or to an URL it gave), authorized as it wants it."""
        scopes = scopes or self._scopes
        await self._settle_scheme()
        url = where if "://" in where else self._url + where
        is_own = origin_of(url) == origin_of(self._url)
        authorization = self._authorizer.current(scopes) if is_own else ""
        async with self._transport.send(
            method, url, headers=headers, authorization=authorization, body=body
        ) as answer:
            if answer.status != 401 or not is_own:
                yield answer
                return
            challenges = parse_challenges(answer.headers.getall("WWW-Authenticate", []))
        authorization = await self._answer_challenge(method, url, challenges, scopes)
        async with self._transport.send(
            method, url, headers=headers, authorization=authorization, body=body
        ) as answer:
            yield answer

    async def _answer_challenge(
        self, method: str, url: str, challenges: Sequence[Challenge], scopes: Scopes
    ) -> str:
        try:
            return await self._authorizer.answer(challenges, scopes)
        except Refused:
            raise
        except RegistryFailed as error:
            shown = url.partition("?")[0]
            raise RegistryFailed(f'{method.title()} "{shown}": {error.message}') from error

    async def _settle_scheme(self) -> None:
        """Find out once whether an insecure registry speaks TLS; it does when it answers so at all."""
        async with self._settling:
            if not self._may_be_plain:
                return
            try:
                async with self._transport.send("GET", f"{self._url}/v2/"):
                    pass
            except Unreachable as secure:
                plain = "http://" + self._url.removeprefix("https://")
                try:
                    async with self._transport.send("GET", f"{plain}/v2/"):
                        pass
                except RegistryFailed:
                    raise secure from None
                self._url = plain
                self._authorizer = Authorizer(self._transport, plain, self._credentials)
            self._may_be_plain = False


def _expect(answer: Answer, *statuses: int) -> None:
    if answer.status not in statuses:
        raise RegistryFailed(
            f"received unexpected HTTP status: {answer.status} {answer.reason or ''}".strip()
        )


def _digest_of(data: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")

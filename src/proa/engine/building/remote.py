# SPDX-License-Identifier: Apache-2.0
"""A context that an address names: an archive, or a Dockerfile alone. Source: Engine API, ImageBuild."""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from proa.build.lexer import MAX_BYTES
from proa.distribution.registries import Registries
from proa.engine.building.request import BuildRequest
from proa.model.errors import InvalidParameter

_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_HEAD_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteContext:
    """``is_dockerfile``: the address was a Dockerfile's, which is all of the context."""

    stream: AsyncIterator[bytes]
    is_dockerfile: bool

    def adapt(self, request: BuildRequest) -> BuildRequest:
        """Return the request for what was found."""
        return replace(request, dockerfile="Dockerfile") if self.is_dockerfile else request


@asynccontextmanager
async def fetch_context(client: Registries, address: str) -> AsyncIterator[RemoteContext]:
    """Fetch what is at an address; its stream must be read inside the block.

    :raises InvalidParameter: it is no http or https address.
    :raises RegistryFailed: the server cannot be reached.
    """
    if not address.startswith(("http://", "https://")):
        raise InvalidParameter(
            f"unable to prepare context: {address}: only http and https addresses of archives and "
            "Dockerfiles are supported, and git repositories"
        )
    async with client.fetch(address) as pieces:
        head = b""
        async for piece in pieces:
            head += piece
            if len(head) >= _HEAD_BYTES:
                break
        is_archive = head.startswith(_MAGIC) or head[257:262] == b"ustar"
        stream = _joined(head, pieces) if is_archive else _dockerfile(head, pieces)
        yield RemoteContext(stream=stream, is_dockerfile=not is_archive)


async def _joined(head: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield head
    async for piece in pieces:
        yield piece


async def _dockerfile(head: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    text = bytearray(head)
    async for piece in pieces:
        text += piece
        if len(text) > MAX_BYTES:
            raise InvalidParameter(f"the Dockerfile is larger than {MAX_BYTES} bytes")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("Dockerfile")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(bytes(text)))
    yield buffer.getvalue()

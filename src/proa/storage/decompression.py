# SPDX-License-Identifier: Apache-2.0
"""Decompresses a stranger's stream piece by piece, in the confined children: gzip, bzip2, xz, zstd.

A bomb shows its size before it has its memory, and damage is a BadTar. Standard library only; zstd's module,
which costs as much as all the rest, is imported when a stream asks for it.

Source: RFC 1952, 2.3.1; RFC 8878, 3.1.1; xz-file-format, 2.1.1.1; bzip2 manual.
"""

from __future__ import annotations

import bz2
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

from proa.storage.tar import BadTar

HEAD_BYTES = 6  # that tell the format
READ_BYTES = 256 * 1024
CHUNK_BYTES = 1024 * 1024  # decompressed at a time
ZSTD_WINDOW_LOG_MAX = 27  # 128 MiB, what the zstd program allows without --long


class Decompressor(Protocol):
    """One member or frame. As in bz2, lzma and Python 3.14's compression.zstd."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's decompressor with the interface of the others."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def decompressor_maker(head: bytes, site_packages: str) -> Callable[[], Decompressor] | None:
    """Choose by the first bytes; None when the stream is the tar itself.

    :param site_packages: where zstd's module is, which is not on the child's path.
    """
    if head.startswith(b"\x1f\x8b"):
        return _Gzip
    if head.startswith(b"BZh"):
        return bz2.BZ2Decompressor
    if head.startswith(b"\xfd7zXZ\0"):
        return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ)
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        sys.path.append(site_packages)
        from backports import zstd

        options = {int(zstd.DecompressionParameter.window_log_max): ZSTD_WINDOW_LOG_MAX}
        return lambda: zstd.ZstdDecompressor(options=options)
    return None


def iter_chunks(fd: int, maker: Callable[[], Decompressor] | None, head: bytes = b"") -> Iterator[bytes]:
    """Yield the content of a stream; ``head`` is what has been read of it already.

    :raises BadTar: it is damaged.
    """
    return _plain(fd, head) if maker is None else _decompressed(fd, maker, head)


def _plain(fd: int, head: bytes) -> Iterator[bytes]:
    if head:
        yield head
    while chunk := os.read(fd, CHUNK_BYTES):
        yield chunk


def _decompressed(fd: int, maker: Callable[[], Decompressor], data: bytes) -> Iterator[bytes]:
    """Yield the contents of all members of a compressed stream, one after the other."""
    inner = maker()
    while True:
        if inner.eof:
            # Another member, or padding, which gzip(1) ignores too.
            data = inner.unused_data or os.read(fd, READ_BYTES)
            if not data.strip(b"\0"):
                return
            inner = maker()
        elif inner.needs_input and not data:
            data = os.read(fd, READ_BYTES)
            if not data:
                raise BadTar("unexpected EOF in the compressed stream")
        try:
            chunk = inner.decompress(data, CHUNK_BYTES)
        except (zlib.error, OSError, EOFError, lzma.LZMAError, ValueError) as error:
            raise BadTar(f"the compressed stream is damaged: {error}") from error
        except Exception as error:
            # ZstdError is known only when its module is loaded.
            if type(error).__name__ != "ZstdError":
                raise
            raise BadTar(f"the compressed stream is damaged: {error}") from error
        data = b""
        if chunk:
            yield chunk

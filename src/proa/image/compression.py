# SPDX-License-Identifier: Apache-2.0
"""Push decompression of gzip, zstd, xz and bzip2 streams, chosen by their first bytes. No I/O.

Output comes in bounded pieces, so that a small hostile input never becomes one large object in memory; what
to do with very much output is the caller's decision, piece by piece.

Source: RFC 1952; RFC 8878; the .xz file format, section 2.1.1.1; bzip2(1).
"""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

from proa.model.errors import InvalidParameter

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_BYTES = 1024 * 1024
MAGIC_BYTES = 6  # the longest signature, that of xz
_XZ_MEMORY_BYTES = 256 * 1024 * 1024  # xz -9 needs 65 MiB to decompress
_ZSTD_WINDOW_LOG_MAX = 27  # 128 MiB, what zstd -d itself allows without --long


class _Engine(Protocol):
    """The one interface of the standard library's decompressors (zlib's is adapted to it)."""

    def decompress(self, data: bytes, max_length: int) -> bytes: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


class _Gzip:
    """zlib's decompressor with the interface of the others."""

    def __init__(self) -> None:
        self._engine = zlib.decompressobj(wbits=31)
        self._full = False

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._engine.decompress(self._engine.unconsumed_tail + data, max_length)
        self._full = len(piece) == max_length
        return piece

    @property
    def needs_input(self) -> bool:
        return not self._full and not self._engine.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._engine.eof

    @property
    def unused_data(self) -> bytes:
        return self._engine.unused_data


_ENGINES: tuple[tuple[bytes, Callable[[], _Engine]], ...] = (
    (b"\x1f\x8b", _Gzip),
    (
        b"\x28\xb5\x2f\xfd",
        lambda: zstd.ZstdDecompressor(
            options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG_MAX}
        ),
    ),
    (b"\xfd7zXZ\x00", lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES)),
    (b"BZh", bz2.BZ2Decompressor),
)
_FAILURES = (zlib.error, zstd.ZstdError, lzma.LZMAError, OSError, EOFError, MemoryError)


def is_compressed(start: bytes) -> bool:
    """Tell by the first MAGIC_BYTES of a stream whether it is in one of the formats read here."""
    return any(start.startswith(magic) for magic, _ in _ENGINES)


class Inflater:
    """Turns a stream, compressed or not, into the plain one.

    Several compressed members in a row are read as one (as gzip and zstd define it); what follows the last
    member and is not another is ignored, as tar(1) does with padding.
    """

    def __init__(self) -> None:
        self._engine: _Engine | None = None
        self._pending = b""  # not yet given to an engine: less than a signature, between members
        self._is_plain: bool | None = None
        self._ended = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes and give the plain ones that follow, in pieces of PIECE_BYTES at most.

        The iterator must be read to its end. Raises InvalidParameter when the data is damaged.
        """
        return self._inflate(data, is_last=False)

    def finish(self) -> Iterator[bytes]:
        """Give what is left. Raises InvalidParameter when the stream stopped in the middle."""
        yield from self._inflate(b"", is_last=True)
        if self._engine is not None:
            raise InvalidParameter("unexpected EOF")

    def _inflate(self, data: bytes, *, is_last: bool) -> Iterator[bytes]:
        data, self._pending = self._pending + data, b""
        while not self._ended:
            if self._is_plain:
                if data:
                    yield data
                return
            if self._engine is None:
                if len(data) < MAGIC_BYTES and not is_last:
                    self._pending = data
                    return
                self._engine = _engine_for(data)
                if self._engine is None:  # plain from the start, or padding after the last member
                    self._ended = self._is_plain is False
                    self._is_plain = self._is_plain is None
                    continue
                self._is_plain = False
            try:
                piece = self._engine.decompress(data, PIECE_BYTES)
            except _FAILURES as error:
                raise InvalidParameter(f"the archive's compression is damaged: {error}") from error
            data = b""
            if piece:
                yield piece
            if self._engine.eof:
                data, self._engine = self._engine.unused_data, None
            elif self._engine.needs_input:
                return


def _engine_for(start: bytes) -> _Engine | None:
    for magic, make in _ENGINES:
        if start.startswith(magic):
            return make()
    return None

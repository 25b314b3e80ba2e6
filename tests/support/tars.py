# SPDX-License-Identifier: Apache-2.0
"""Tar archives for tests, built header by header, so that they can also be wrong."""

from __future__ import annotations

import io
import tarfile


def header(
    name: bytes = b"file",
    *,
    flag: bytes = b"0",
    size: bytes = b"0",
    mode: bytes = b"644",
    uid: bytes = b"0",
    mtime: bytes = b"0",
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    device: tuple[bytes, bytes] = (b"0", b"0"),
    prefix: bytes = b"",
    tail: bytes = b"",
) -> bytes:
    """One header block with a right checksum. Numbers are the bytes of their fields; ``tail`` overwrites what
    lies from offset 345 on."""
    data = b"".join(
        [
            name.ljust(100, b"\0"),
            mode.ljust(8, b"\0"),
            uid.ljust(8, b"\0"),
            uid.ljust(8, b"\0"),
            size.ljust(12, b"\0"),
            mtime.ljust(12, b"\0"),
            b" " * 8,
            flag,
            link.ljust(100, b"\0"),
            magic.ljust(8, b"\0"),
            bytes(64),
            device[0].ljust(8, b"\0"),
            device[1].ljust(8, b"\0"),
            (tail or prefix).ljust(167, b"\0"),
        ]
    )
    assert len(data) == 512
    return data[:148] + b"%06o\0 " % sum(data) + data[156:]


def member(name: bytes, content: bytes = b"", **fields: bytes) -> bytes:
    """A header and its content, padded."""
    return header(name, size=b"%o" % len(content), **fields) + content + bytes(-len(content) % 512)  # type: ignore[arg-type]  # bytes fields only


def pax(*records: tuple[bytes, bytes]) -> bytes:
    """An extended header for the member that follows."""
    text = b""
    for key, value in records:
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(b"%d" % length) + len(rest) != length:
            length += 1
        text += b"%d" % length + rest
    return member(b"pax", text, flag=b"x")


def archive(*parts: bytes) -> bytes:
    """The parts and the end of an archive."""
    return b"".join(parts) + bytes(1024)


def simple(**files: str) -> bytes:
    """A well-formed archive of files in the root, made by the standard library."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()

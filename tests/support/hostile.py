# SPDX-License-Identifier: Apache-2.0
"""A corpus of hostile archives: each is refused, or what it makes is contained.

Every case would, if it were believed, write ``OUT`` somewhere outside, change what is outside, or use up the
machine. They are driven through the copy routes, import and load.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.tars import header, member, pax

OUT = b"pwned"
END = bytes(1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An archive, and whether each way in takes it: ``put`` into a directory, ``layer`` as a layer."""

    name: str
    make: Callable[[], bytes]
    put: bool
    layer: bool


def _links(*pairs: tuple[bytes, bytes]) -> bytes:
    return b"".join(header(name, flag=b"2", link=target) for name, target in pairs)


def _many(count: int) -> bytes:
    one = b"".join(member(b"d%d/f" % number) for number in range(1000))
    return one * (count // 1000)


CASES = (
    Case(name="dotdot", make=lambda: member(b"../" * 12 + OUT), put=False, layer=False),
    Case(name="dotdot-inside", make=lambda: member(b"a/b/../../../" + OUT), put=False, layer=False),
    Case(name="absolute", make=lambda: member(b"/tmp/" + OUT), put=True, layer=True),
    Case(
        name="link-out",
        make=lambda: _links((b"l", b"/tmp")) + member(b"l/" + OUT),
        put=True,
        layer=True,
    ),
    Case(
        name="link-up",
        make=lambda: _links((b"l", b"../" * 30 + b"tmp")) + member(b"l/" + OUT),
        put=True,
        layer=True,
    ),
    Case(
        name="link-chain",
        make=lambda: _links((b"a", b"b"), (b"b", b"c"), (b"c", b"/../../tmp")) + member(b"a/" + OUT),
        put=True,
        layer=True,
    ),
    Case(
        name="link-loop",
        make=lambda: _links((b"a", b"b"), (b"b", b"a")) + member(b"a/" + OUT),
        put=False,
        layer=False,
    ),
    Case(
        name="link-to-proc",
        make=lambda: _links((b"l", b"/proc/1/root/tmp")) + member(b"l/" + OUT),
        put=False,
        layer=True,
    ),
    Case(
        name="file-over-link",
        make=lambda: _links((b"l", b"/tmp/" + OUT)) + member(b"l", b"x"),
        put=True,
        layer=True,
    ),
    Case(
        name="hard-link-out",
        make=lambda: header(b"h", flag=b"1", link=b"../../etc/shadow"),
        put=False,
        layer=False,
    ),
    Case(
        name="hard-link-to-nothing", make=lambda: header(b"h", flag=b"1", link=b"x"), put=False, layer=False
    ),
    Case(
        name="hard-link-to-directory",
        make=lambda: header(b"d/", flag=b"5") + header(b"h", flag=b"1", link=b"d"),
        put=False,
        layer=False,
    ),
    Case(
        name="device",
        make=lambda: header(b"disk", flag=b"4", device=(b"10", b"0"), mode=b"666") + member(b"disk", OUT),
        put=True,
        layer=True,
    ),
    Case(
        name="device-absurd",
        make=lambda: header(b"n", flag=b"3", device=(b"7777777", b"1")),
        put=False,
        layer=False,
    ),
    Case(name="setuid", make=lambda: member(b"su", b"#!/bin/sh\n", mode=b"6755"), put=True, layer=True),
    Case(
        name="capability",
        make=lambda: pax((b"SCHILY.xattr.security.capability", b"\1\0\0\2" + b"\xff" * 16)) + member(b"c"),
        put=True,
        layer=True,
    ),
    Case(
        name="overlay-redirect",
        make=lambda: pax((b"SCHILY.xattr.trusted.overlay.redirect", b"/etc")) + header(b"d/", flag=b"5"),
        put=True,
        layer=True,
    ),
    Case(
        name="huge-xattr",
        make=lambda: pax((b"SCHILY.xattr.user.x", b"x" * 200_000)) + member(b"f"),
        put=True,
        layer=False,
    ),
    Case(
        name="endless-xattrs",
        make=lambda: pax(*((b"SCHILY.xattr.user.%d" % n, b"x" * 500) for n in range(5000))) + member(b"f"),
        put=False,
        layer=False,
    ),
    Case(name="negative-size", make=lambda: header(b"f", size=b"\xff" * 12), put=False, layer=False),
    Case(name="size-of-letters", make=lambda: header(b"f", size=b"many"), put=False, layer=False),
    Case(name="absurd-size", make=lambda: header(b"f", size=b"\x80" + b"\x7f" * 11), put=False, layer=False),
    Case(name="pax-size", make=lambda: pax((b"size", b"9" * 30)) + header(b"f"), put=False, layer=False),
    Case(name="absurd-time", make=lambda: pax((b"mtime", b"9" * 18)) + member(b"f"), put=True, layer=True),
    Case(name="long-name", make=lambda: pax((b"path", b"n" * 300)) + member(b"x"), put=False, layer=False),
    Case(
        name="long-path",
        make=lambda: pax((b"path", b"d/" * 3000 + b"f")) + member(b"x"),
        put=False,
        layer=False,
    ),
    Case(name="nul-name", make=lambda: pax((b"path", b"a\0b")) + member(b"x"), put=False, layer=False),
    Case(
        name="sparse-bomb",
        make=lambda: (
            pax(
                (b"GNU.sparse.major", b"1"),
                (b"GNU.sparse.minor", b"0"),
                (b"GNU.sparse.realsize", b"%d" % (1 << 62)),
                (b"GNU.sparse.name", b"f"),
            )
            + member(b"f", b"0\n".ljust(512, b"\0"))
        ),
        put=False,
        layer=False,
    ),
    Case(name="truncated-header", make=lambda: member(b"f", b"x")[:700][:300], put=False, layer=False),
    Case(
        name="truncated-content",
        make=lambda: header(b"f", size=b"10000") + b"x" * 100,
        put=False,
        layer=False,
    ),
    Case(name="no-tar", make=lambda: b"hello, world\n" * 100, put=False, layer=False),
    Case(name="broken-gzip", make=lambda: gzip.compress(_many(1000))[:-200], put=False, layer=False),
    Case(
        name="duplicates",
        make=lambda: member(b"f", b"1") + header(b"f", flag=b"5") + member(b"f", b"3") + member(b"f", b"4"),
        put=True,
        layer=True,
    ),
    Case(
        name="parent-is-a-file",
        make=lambda: member(b"f", b"1") + member(b"f/g", b"2"),
        put=False,
        layer=False,
    ),
    Case(
        name="whiteout-of-everything",
        make=lambda: member(b".wh..wh..opq") + member(b".wh.bin"),
        put=True,
        layer=True,
    ),
    Case(name="whiteout-of-nothing", make=lambda: member(b".wh.") + member(b".wh..."), put=True, layer=False),
    Case(name="whiteout-out", make=lambda: member(b"../.wh.etc"), put=False, layer=False),
    Case(name="unknown-type", make=lambda: header(b"f", flag=b"Z"), put=False, layer=False),
    Case(name="file-as-root", make=lambda: member(b"/"), put=True, layer=True),
)


def archive(case: Case) -> bytes:
    """Return the whole archive; a compressed or cut one has no end put to it."""
    data = case.make()
    return data if case.name.startswith(("truncated", "no-tar", "broken")) else data + END

# SPDX-License-Identifier: Apache-2.0
"""Paths of the copy routes, as Go's path/filepath and Docker read them."""

from __future__ import annotations

import stat

import pytest

from proa.storage.files.paths import base_name, clean, go_mode


@pytest.mark.parametrize(
    ("path", "cleaned", "base"),
    [
        ("/", "/", "/"),
        ("//", "/", "/"),
        (".", "/.", "."),
        ("a", "/a", "a"),
        ("/a/b", "/a/b", "b"),
        ("/a/../../b", "/b", "b"),
        ("/a/", "/a/", "a"),
        ("/a//", "/a/", "a"),
        ("/a/.", "/a/.", "."),
        ("/a/./", "/a/./", "."),
        ("/../..", "/", "/"),
        ("/a/b/..", "/a", "a"),
    ],
)
def test_clean(path: str, cleaned: str, base: str) -> None:
    assert (clean(path), base_name(clean(path))) == (cleaned, base)


def test_modes() -> None:
    assert go_mode(stat.S_IFREG | 0o644) == 0o644
    assert go_mode(stat.S_IFDIR | 0o1777) == 1 << 31 | 1 << 20 | 0o777
    assert go_mode(stat.S_IFLNK | 0o777) == 1 << 27 | 0o777
    assert go_mode(stat.S_IFREG | 0o6755) == 1 << 23 | 1 << 22 | 0o755
    assert go_mode(stat.S_IFCHR | 0o600) == 1 << 26 | 1 << 21 | 0o600

# SPDX-License-Identifier: Apache-2.0
"""What a COPY reads: found inside the tree only, and digested without times."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from proa.build.ignore import IgnoreRules, compile_pattern
from proa.model.errors import NotFound
from proa.storage.files.gather import Gatherer


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    for name in ("a.txt", "d/x", "d/e/y.md", "d/e/z"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "out").symlink_to("/etc")
    (tmp_path / "in").symlink_to("/d/e")
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def gatherer(root: int, *patterns: str) -> Gatherer:
    rules = IgnoreRules(patterns)
    return Gatherer(root, kept=lambda path: not rules.ignores(path), with_owners=False)


def gather(root: int, path: str, *patterns: str) -> tuple[list[str], str]:
    digest = hashlib.sha256()
    found = gatherer(root, *patterns).gather(path, digest)
    return [item.name for item in found.items], digest.hexdigest()


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (".", [""]),
        ("a.txt", ["a.txt"]),
        ("/d/../a.txt", ["a.txt"]),
        ("*.txt", ["a.txt"]),
        ("d/*", ["d/e", "d/x"]),
        ("d/**/y.md", ["d/e/y.md"]),
        ("in/z", ["in/z"]),
        ("nothing*", []),
    ],
)
def test_match(root: int, pattern: str, expected: list[str]) -> None:
    assert gatherer(root).match(pattern, compile_pattern) == expected


@pytest.mark.parametrize("pattern", ["nothing", "out/passwd", "a.txt/b", "x\0y"])
def test_nothing_there(root: int, pattern: str) -> None:
    with pytest.raises(NotFound):
        gatherer(root).match(pattern, compile_pattern)


def test_links_lead_nowhere_else(root: int) -> None:
    with pytest.raises(NotFound):
        gatherer(root).read("out/passwd", 1000)
    assert gatherer(root).read("in/z", 1000) == b"d/e/z"


def test_items_come_in_order_and_without_what_is_left_out(root: int) -> None:
    assert gather(root, "d")[0] == ["", "e", "e/y.md", "e/z", "x"]
    assert gather(root, "d", "**/*.md", "d/x")[0] == ["", "e", "e/z"]
    assert gather(root, "d", "d/e", "!d/e/z")[0] == ["", "e", "e/z", "x"], "the way to an exception is there"
    assert gather(root, "in")[0] == ["", "y.md", "z"], "a source is followed"


def test_the_digest(root: int, tmp_path: Path) -> None:
    _, first = gather(root, "d")
    os.utime(tmp_path / "d/x", (1, 1))
    assert gather(root, "d")[1] == first, "times do not count"
    (tmp_path / "d/x").chmod(0o600)
    _, other = gather(root, "d")
    assert other != first
    (tmp_path / "d/x").write_text("d/X")
    assert gather(root, "d")[1] not in (first, other)
    (tmp_path / "d/x").unlink()
    (tmp_path / "d/x").symlink_to("target")
    _, link = gather(root, "d")
    (tmp_path / "d/x").unlink()
    (tmp_path / "d/x").symlink_to("another")
    assert gather(root, "d")[1] != link

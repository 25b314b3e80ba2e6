# SPDX-License-Identifier: Apache-2.0
"""What a layer's entries mean: names, links, replacements, whiteouts."""

from __future__ import annotations

import stat

import pytest

from proa.storage.tar import BadTar, Entry, Kind
from proa.storage.tree import Node, Tree

OPAQUE = b"trusted.overlay.opaque"


def entry(name: str, kind: Kind = Kind.FILE, *, link: str = "", mode: int = 0o644, **more: object) -> Entry:
    made = Entry(kind, name.encode(), link.encode(), mode, 1, 2, 3, 4, 0, 0, (0, 0), {})
    for key, value in more.items():
        setattr(made, key, value)
    return made


def tree(*entries: Entry) -> Tree:
    made = Tree(max_inodes=1000)
    for item in entries:
        made.add(item)
    made.finish()
    return made


def listing(node: Node, prefix: str = "") -> dict[str, Node]:
    found = {}
    for name, child in (node.children or {}).items():
        path = f"{prefix}{name.decode()}"
        found[path] = child
        found.update(listing(child, path + "/"))
    return found


def paths(*entries: Entry) -> set[str]:
    return set(listing(tree(*entries).root))


def test_names_are_taken_below_the_root() -> None:
    names = ("./a", "/b", "//c/./d", "e/../f", "./g/")
    assert paths(*(entry(name) for name in names)) == {"a", "b", "c", "c/d", "f", "g"}


@pytest.mark.parametrize("name", ["..", "../x", "a/../../x", "/..", "./../etc/passwd"])
def test_a_name_outside_of_the_layer_is_refused(name: str) -> None:
    with pytest.raises(BadTar, match="outside"):
        tree(entry(name))


@pytest.mark.parametrize("name", ["x" * 256, "a/" * 2100])
def test_names_too_long_are_refused(name: str) -> None:
    with pytest.raises(BadTar, match=r"long|bytes"):
        tree(entry(name))


def test_missing_parents_are_0755_root_and_described_when_they_come() -> None:
    made = tree(entry("a/b/c"), entry("a", Kind.DIRECTORY, mode=0o1777))
    nodes = listing(made.root)
    assert nodes["a"].mode == stat.S_IFDIR | 0o1777 and nodes["a"].uid == 1
    assert nodes["a/b"].mode == stat.S_IFDIR | 0o755 and nodes["a/b"].uid == 0


def test_the_root_entry_describes_the_root_and_must_be_a_directory() -> None:
    assert tree(entry("./", Kind.DIRECTORY, mode=0o700)).root.mode == stat.S_IFDIR | 0o700
    with pytest.raises(BadTar, match="root of the layer"):
        tree(entry(".", Kind.SYMLINK, link="/etc"))


def test_later_entries_replace_earlier_ones() -> None:
    made = tree(entry("a", mode=0o600), entry("a", mode=0o640), entry("d/x"), entry("d"))
    nodes = listing(made.root)
    assert set(nodes) == {"a", "d"} and nodes["a"].mode & 0o777 == 0o640 and nodes["d"].children is None


def test_a_link_among_the_parents_is_followed_inside_the_layer() -> None:
    assert paths(
        entry("lib", Kind.SYMLINK, link="/usr/lib"),
        entry("lib/x"),
        entry("up", Kind.SYMLINK, link="../../.."),
        entry("up/etc/passwd"),
    ) == {"lib", "usr", "usr/lib", "usr/lib/x", "up", "etc", "etc/passwd"}


def test_links_in_a_circle_are_refused() -> None:
    with pytest.raises(BadTar, match="too many levels"):
        tree(entry("a", Kind.SYMLINK, link="b"), entry("b", Kind.SYMLINK, link="a"), entry("a/x"))


def test_a_file_is_no_parent() -> None:
    with pytest.raises(BadTar, match="not a directory"):
        tree(entry("a"), entry("a/b"))


def test_hard_links_share_an_inode() -> None:
    made = tree(entry("d/a"), entry("b", Kind.HARDLINK, link="/d/a"), entry("c", Kind.HARDLINK, link="./b"))
    nodes = listing(made.root)
    assert nodes["d/a"] is nodes["b"] is nodes["c"] and nodes["b"].links == 3


def test_a_replaced_name_leaves_its_inode() -> None:
    nodes = listing(tree(entry("a"), entry("b", Kind.HARDLINK, link="a"), entry("a")).root)
    assert nodes["a"] is not nodes["b"] and nodes["b"].links == 1


@pytest.mark.parametrize("target", ["missing", "../x", "d", "/", ".wh.gone", "gone", ""])
def test_hard_links_to_what_is_no_file_of_the_layer_are_refused(target: str) -> None:
    with pytest.raises(BadTar):
        tree(entry("d", Kind.DIRECTORY), entry(".wh.gone"), entry("b", Kind.HARDLINK, link=target))


def test_a_hard_link_to_itself_changes_nothing() -> None:
    assert paths(entry("a"), entry("a", Kind.HARDLINK, link="a")) == {"a"}


def test_whiteouts_hide_lower_layers_only() -> None:
    nodes = listing(tree(entry("d/.wh.x"), entry("own"), entry(".wh.own"), entry(".wh..wh.plnk")).root)
    assert set(nodes) == {"d", "d/x", "own"}
    assert nodes["d/x"].mode == stat.S_IFCHR and nodes["d/x"].rdev == 0
    assert stat.S_ISREG(nodes["own"].mode)
    assert nodes["d"].xattrs == {b"trusted.overlay.origin": b""}  # so that its listing is filtered


@pytest.mark.parametrize(
    "entries",
    [
        [entry("d", Kind.DIRECTORY), entry("d/.wh..wh..opq")],
        [entry("d/.wh..wh..opq"), entry("d", Kind.DIRECTORY)],
        [entry(".wh.d"), entry("d", Kind.DIRECTORY)],
        [entry("d", Kind.DIRECTORY), entry(".wh.d")],
        [entry(".wh.d"), entry("d/x")],
    ],
)
def test_a_directory_made_anew_is_opaque(entries: list[Entry]) -> None:
    node = listing(tree(*entries).root)["d"]
    assert node.children is not None and node.xattrs is not None and node.xattrs[OPAQUE] == b"y"


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh..."])
def test_whiteouts_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(BadTar, match="whiteout"):
        tree(entry(name))


def test_overlay_xattrs_from_the_archive_are_dropped() -> None:
    xattrs = {b"trusted.overlay.redirect": b"/etc", OPAQUE: b"y", b"user.kept": b"1"}
    assert listing(tree(entry("a", Kind.DIRECTORY, xattrs=xattrs)).root)["a"].xattrs == {b"user.kept": b"1"}


def test_limits() -> None:
    small = Tree(max_inodes=3)
    with pytest.raises(BadTar, match="more than 3 files"):
        small.add(entry("a/b/c/d"))
    with pytest.raises(BadTar, match="symbolic link of 0 bytes"):
        tree(entry("l", Kind.SYMLINK))
    with pytest.raises(BadTar, match="does not exist"):
        tree(entry("dev", Kind.CHARACTER, device=(1 << 20, 0)))
    with pytest.raises(BadTar, match="extended attributes"):
        tree(entry("x", xattrs={b"user.a": bytes(70_000)}))


def test_a_message_shows_no_control_characters() -> None:
    with pytest.raises(BadTar) as caught:
        tree(entry("../\x1b[2J\n" + "x" * 300))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 260

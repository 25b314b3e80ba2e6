# SPDX-License-Identifier: Apache-2.0
"""What is a git repository's address, what its parts are, and which commit a name means."""

from __future__ import annotations

import pytest

from proa.build.git_address import GitAddress, is_git_address, is_git_context, parse_git_address
from proa.distribution.git import choose_commit
from proa.model.errors import InvalidParameter

A, B, C = "a" * 40, "b" * 40, "c" * 40


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h/x.git", GitAddress(url="https://h/x.git")),
        ("https://h/x.git#main", GitAddress(url="https://h/x.git", ref="main")),
        ("https://h/x.git#v1:/a/./b/", GitAddress(url="https://h/x.git", ref="v1", directory="a/b")),
        ("http://h:8/x.git#:d", GitAddress(url="http://h:8/x.git", directory="d")),
        ("git@h:u/x.git#refs/pull/1/head", GitAddress(url="git@h:u/x.git", ref="refs/pull/1/head")),
        ("ssh://git@h/x", GitAddress(url="ssh://git@h/x")),
        ("git://h/x", GitAddress(url="git://h/x")),
    ],
)
def test_parts(text: str, expected: GitAddress) -> None:
    assert is_git_address(text)
    assert parse_git_address(text) == expected


def test_what_is_none() -> None:
    for text in ("f.git", "https://h/x", "https://h/x.git/y", "file:///x.git", "ext::x", "/a@b:c", "C:x.git"):
        assert not is_git_address(text)
    assert not is_git_address("github.com/u/x"), "for ADD a path"
    assert is_git_context("github.com/u/x#b")
    assert parse_git_address("github.com/u/x#b") == GitAddress(url="https://github.com/u/x", ref="b")


def test_no_password_is_shown() -> None:
    assert parse_git_address("https://u:pw@h/x.git").shown == "https://xxxxx@h/x.git"
    assert parse_git_address("git@h:x.git").shown == "git@h:x.git"


@pytest.mark.parametrize(
    "text",
    [
        *("ssh://-oProxyCommand=x/y.git", "https:///x.git", "https://h/a b.git", "https://[::1/x.git"),
        *("https://h/x.git#-x", "https://h/x.git#a..b", "https://h/x.git#a b", "https://h/x.git#a%00"),
        *("https://h/x.git#:../a", "https://h/x.git#:.git/config", "https://h/x.git#:a/../../b"),
    ],
)
def test_refusals(text: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid git"):
        parse_git_address(text)


def test_which_commit_a_name_means() -> None:
    listing = f"{A}\tHEAD\n{A}\trefs/heads/x\n{B}\trefs/tags/x\n{B}\trefs/tags/v\n{C}\trefs/tags/v^{{}}\n"
    listing += f"{C}\trefs/heads/other/x\nnonsense\n"
    assert choose_commit(listing, "") == A
    assert choose_commit(listing, "x") == A, "a branch before a tag"
    assert choose_commit(listing, "v") == C, "the commit, not the tag's own object"
    assert choose_commit(listing, "refs/tags/x") == B
    assert choose_commit(listing, "nosuch") is None

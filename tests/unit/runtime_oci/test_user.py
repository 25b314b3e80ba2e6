# SPDX-License-Identifier: Apache-2.0
"""proa.runtime.oci.user: names and numbers, and files that lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proa.model.errors import StartFailed
from proa.runtime.oci.user import User, find_user, resolve

PASSWD = """# comment
root:x:0:0:root:/root:/bin/sh
broken
joe:x:1000:100:Joe:/home/joe:/bin/sh
1234:x:77:88::/odd:
nohome:x:5:5
"""
GROUP = "root:x:0:\nusers:x:100:\nextra:x:55:joe,ann\naudio:x:29:root\n55:x:99:\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", User(uid=0, gid=0, groups=(0, 29), home="/root")),
        ("root", User(uid=0, gid=0, groups=(0, 29), home="/root")),
        ("joe", User(uid=1000, gid=100, groups=(100, 55), home="/home/joe")),
        ("1000", User(uid=1000, gid=100, groups=(100, 55), home="/home/joe")),
        ("joe:audio", User(uid=1000, gid=29, groups=(29,), home="/home/joe")),
        ("joe:0", User(uid=1000, gid=0, groups=(0,), home="/home/joe")),
        ("joe:", User(uid=1000, gid=100, groups=(100, 55), home="/home/joe")),
        ("4000", User(uid=4000, gid=0, groups=(0,), home="/")),
        ("4000:4001", User(uid=4000, gid=4001, groups=(4001,), home="/")),
        ("1234", User(uid=77, gid=88, groups=(88,), home="/odd")),
        ("nohome", User(uid=5, gid=5, groups=(5,), home="/")),
    ],
)
def test_users(text: str, expected: User) -> None:
    assert resolve(text, passwd=PASSWD, group=GROUP) == expected


def test_added_groups() -> None:
    assert resolve("joe", passwd=PASSWD, group=GROUP, group_add=("audio", "4000")).groups == (
        100,
        55,
        29,
        4000,
    )


@pytest.mark.parametrize(
    ("text", "add", "words"),
    [
        ("ann", (), "unable to find user ann: no matching entries in passwd file"),
        ("joe:nogroup", (), "unable to find group nogroup: no matching entries in group file"),
        ("joe", ("nogroup",), "unable to find group nogroup: no matching entries in group file"),
        ("2147483648", (), "uids and gids must be in range 0-2147483647"),
        ("0:2147483648", (), "uids and gids must be in range 0-2147483647"),
        ("-1", (), "unable to find user -1: no matching entries in passwd file"),
    ],
)
def test_unknown_ones(text: str, add: tuple[str, ...], words: str) -> None:
    with pytest.raises(StartFailed, match=words):
        resolve(text, passwd=PASSWD, group=GROUP, group_add=add)


def test_links_do_not_lead_out_of_the_root(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("evil:x:0:0::/evil:\n")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").symlink_to(outside)
    with pytest.raises(StartFailed):
        find_user(root, "evil")
    (root / "etc/passwd").unlink()
    (root / "real").write_text("good:x:7:8::/home/good:\n")
    (root / "etc/passwd").symlink_to("/real")
    assert find_user(root, "good").uid == 7


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/passwd")
    assert find_user(tmp_path, "5:6") == User(uid=5, gid=6, groups=(6,), home="/")
    assert find_user(tmp_path / "missing", "") == User(uid=0, gid=0, groups=(0,), home="/")

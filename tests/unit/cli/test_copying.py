# SPDX-License-Identifier: Apache-2.0
"""Where docker cp puts what, and that nothing unpacked here leads out of its directory."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import click
import pytest

from proa.cli.copying import End, plan_copy, split_argument
from proa.cli.local_tar import pack, unpack


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("web:/a", ("web", "/a")),
        ("web:a:b", ("web", "a:b")),
        ("/a:b", ("", "/a:b")),
        ("./a:b", ("", "./a:b")),
        ("a", ("", "a")),
        ("-", ("", "-")),
        ("web:", ("web", "")),
    ],
)
def test_arguments(text: str, split: tuple[str, str]) -> None:
    assert split_argument(text) == split


FILE, DIRECTORY = End(path="/s/f"), End(path="/s/d", is_directory=True)


@pytest.mark.parametrize(
    ("source", "target", "directory", "names"),
    [
        (FILE, End(path="/t", is_directory=True), "/t", {"f": "f"}),
        (FILE, End(path="/t/x"), "/t", {"f": "x"}),
        (FILE, End(path="/t/new", exists=False), "/t", {"f": "new"}),
        (DIRECTORY, End(path="/t", is_directory=True), "/t", {"d": "d", "d/f": "d/f"}),
        (DIRECTORY, End(path="/t/new", exists=False), "/t", {"d": "new", "d/f": "new/f", "dd": "dd"}),
        (DIRECTORY, End(path="/t/new/", exists=False), "/t", {"d/d": "new/d"}),
        (
            End(path="/s/d/.", is_directory=True),
            End(path="/t/n", exists=False),
            "/t",
            {"./f": "n/f", ".": "n"},
        ),
        (End(path="/", is_directory=True), End(path="/t/n", exists=False), "/t", {"/bin/sh": "n/bin/sh"}),
        (End(path="/s/to", new_name="link"), End(path="/t/n", exists=False), "/t", {"link": "n"}),
    ],
)
def test_plans(source: End, target: End, directory: str, names: dict[str, str]) -> None:
    plan = plan_copy(source, target)
    assert plan.directory == directory
    assert {name: plan.rename(name) for name in names} == names


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (DIRECTORY, End(path="/t/x"), "cannot copy directory"),
        (FILE, End(path="/t/x/", exists=False), "no such directory"),
        (FILE, End(path="/t/x/.", exists=False), "no such directory"),
    ],
)
def test_plans_that_make_no_sense(source: End, target: End, message: str) -> None:
    with pytest.raises(click.ClickException, match=message):
        plan_copy(source, target)


def test_there_and_back(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "dir" / "empty").mkdir(parents=True)
    (source / "dir" / "file").write_bytes(b"x" * 70_000)
    os.link(source / "dir" / "file", source / "other")
    (source / "link").symlink_to("/nowhere")
    os.mkfifo(source / "fifo", 0o640)
    (source / "hole").touch()
    os.truncate(source / "hole", 3_000_000)
    (source / "dir").chmod(0o1750)
    os.utime(source / "dir", ns=(1, 1_600_000_000_123_456_789))
    target = tmp_path / "target"
    target.mkdir()
    unpack(pack(source, "top"), target, lambda name: name.replace("top", "new", 1), keep_owner=False)
    made = target / "new"
    assert (made / "other").read_bytes() == b"x" * 70_000
    assert (made / "other").stat().st_ino == (made / "dir" / "file").stat().st_ino
    assert (made / "link").readlink() == Path("/nowhere")
    assert (made / "hole").stat().st_size == 3_000_000
    assert (made / "hole").stat().st_blocks * 512 < 3_000_000
    assert (made / "dir").stat().st_mode == (source / "dir").stat().st_mode
    assert (made / "dir").stat().st_mtime_ns == 1_600_000_000_123_456_789


def archive(*members: tuple[str, bytes, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.mode = 0o755
            tar.addfile(info)
    return out.getvalue()


@pytest.mark.parametrize(
    "members",
    [
        [("../out", tarfile.REGTYPE, "")],
        [("a/../../out", tarfile.REGTYPE, "")],
        [("l", tarfile.SYMTYPE, ".."), ("l/out", tarfile.REGTYPE, "")],
        [("d", tarfile.DIRTYPE, ""), ("d/l", tarfile.SYMTYPE, "../.."), ("d/l/out", tarfile.DIRTYPE, "")],
        [("h", tarfile.LNKTYPE, "../secret")],
        [("l", tarfile.SYMTYPE, ".."), ("h", tarfile.LNKTYPE, "l/secret")],
    ],
)
def test_nothing_leads_out(tmp_path: Path, members: list[tuple[str, bytes, str]]) -> None:
    (tmp_path / "secret").write_text("mine")
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(click.ClickException):
        unpack([archive(*members)], target, str, keep_owner=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "target"]
    assert (tmp_path / "secret").stat().st_nlink == 1


def test_links_that_are_replaced_are_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    target = tmp_path / "target"
    target.mkdir()
    (target / "f").symlink_to("../secret")
    unpack([archive(("f", tarfile.REGTYPE, ""))], target, str, keep_owner=False)
    assert (tmp_path / "secret").read_text() == "mine"
    assert (target / "f").read_bytes() == b""


@pytest.mark.parametrize("data", [b"x" * 1024, archive(("a", tarfile.REGTYPE, ""))[:300]])
def test_broken_archives(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(click.ClickException, match="the archive is broken"):
        unpack([data], tmp_path, str, keep_owner=False)

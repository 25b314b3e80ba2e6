# SPDX-License-Identifier: Apache-2.0
"""File data through fs-server: what is written on one side is read on the other."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import subprocess
import time
from pathlib import Path

import pytest

CACHE_S = 1.2  # server.h, CACHE_SECONDS, and a little


def test_data_goes_both_ways(guest: Path, shared: Path) -> None:
    content = os.urandom(3_000_001)
    (guest / "up").write_bytes(content)
    assert (shared / "up").read_bytes() == content
    (shared / "down").write_bytes(content)
    assert (guest / "down").read_bytes() == content


def test_a_tree_is_copied_whole(guest: Path, shared: Path) -> None:
    subprocess.run(["cp", "-a", "/usr/include/linux", guest / "tree"], check=True)
    subprocess.run(["diff", "-r", "/usr/include/linux", shared / "tree"], check=True)
    subprocess.run(["rm", "-r", guest / "tree"], check=True)
    assert list(shared.iterdir()) == []


def test_a_git_repository_works(guest: Path) -> None:
    git = ["git", "-C", str(guest / "r"), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", guest / "r"], check=True)
    for number in range(40):
        (guest / "r" / f"file{number}").write_text(f"{number}\n" * number)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    subprocess.run([*git, "fsck", "--no-progress"], check=True)
    assert subprocess.check_output([*git, "status", "--short"]) == b""


def test_appends_of_two_writers_do_not_overwrite(guest: Path, shared: Path) -> None:
    with (
        (guest / "log").open("ab", buffering=0) as inside,
        (shared / "log").open("ab", buffering=0) as outside,
    ):
        for number in range(50):
            inside.write(b"i%03d\n" % number)
            outside.write(b"o%03d\n" % number)
    lines = (shared / "log").read_text().split()
    assert sorted(lines) == sorted([f"i{n:03d}" for n in range(50)] + [f"o{n:03d}" for n in range(50)])


def test_shared_mappings_reach_the_host(guest: Path, shared: Path) -> None:
    (guest / "f").write_bytes(b"." * 8192)
    with (guest / "f").open("r+b") as file, mmap.mmap(file.fileno(), 8192) as memory:
        assert memory[:4] == b"...."
        memory[4096:4100] = b"mine"
        memory.flush()
    assert (shared / "f").read_bytes()[4096:4104] == b"mine...."


def test_mapped_pages_of_an_appending_file_are_written_in_place(guest: Path, shared: Path) -> None:
    (guest / "f").write_bytes(b"." * 4096)
    fd = os.open(guest / "f", os.O_RDWR | os.O_APPEND)
    with mmap.mmap(fd, 4096) as memory:
        memory[:2] = b"ab"
        memory.flush()
    os.close(fd)
    assert (shared / "f").read_bytes() == b"ab" + b"." * 4094


def test_holes_are_kept_and_found(guest: Path, shared: Path) -> None:
    with (guest / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"x")
        file.flush()
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 32 << 20
        os.posix_fallocate(file.fileno(), 0, 4096)
    assert (shared / "sparse").stat().st_blocks * 512 < 1 << 20
    subprocess.run(["cp", "--sparse=always", guest / "sparse", guest / "copy"], check=True)
    assert (shared / "copy").stat().st_size == 64 << 20


def test_direct_io_is_tolerated(guest: Path, shared: Path) -> None:
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={guest / 'd'}", "bs=64k", "count=4", "oflag=direct", "status=none"],
        check=True,
    )
    assert (shared / "d").stat().st_size == 4 * 65536


def test_locks_are_kept_by_the_guest(guest: Path) -> None:
    with (guest / "f").open("w") as first, (guest / "f").open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(first, fcntl.LOCK_EX)


def test_an_open_file_lives_on_after_its_name(guest: Path) -> None:
    with (guest / "f").open("w+") as file:
        file.write("still here")
        (guest / "f").unlink()
        file.flush()
        os.fstat(file.fileno())
        assert file.seek(0) == 0
        assert file.read() == "still here"


def test_changes_on_the_host_are_seen_at_the_next_open(guest: Path, shared: Path) -> None:
    (shared / "f").write_text("one")
    assert (guest / "f").read_text() == "one"
    assert (guest / "f").read_text() == "one"
    (shared / "f").write_text("two")
    assert (guest / "f").read_text() == "two"


def test_names_and_attributes_follow_the_host_within_a_second(guest: Path, shared: Path) -> None:
    (shared / "old").write_text("one")
    assert (guest / "old").stat().st_size == 3
    (shared / "new").write_text("longer")
    (shared / "new").rename(shared / "old")
    (shared / "late").touch()
    assert (guest / "late").exists()  # absence is never cached
    time.sleep(CACHE_S)
    assert (guest / "old").read_text() == "longer"
    (shared / "old").unlink()
    time.sleep(CACHE_S)
    assert not (guest / "old").exists()


def test_writing_takes_set_user_id_away(guest: Path, shared: Path) -> None:
    program = shared / "p"
    program.write_text("x")
    program.chmod(0o6777)
    subprocess.run(
        ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "sh", "-c", f"echo y >> {guest / 'p'}"],
        check=True,
        cwd="/",
    )
    assert program.stat().st_mode & 0o7777 == 0o777


def test_full_disk_is_reported(guest: Path, shared: Path) -> None:
    with (guest / "f").open("wb") as file, pytest.raises(OSError) as caught:
        os.posix_fallocate(file.fileno(), 0, 1 << 55)
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)

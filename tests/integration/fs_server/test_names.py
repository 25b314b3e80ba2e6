# SPDX-License-Identifier: Apache-2.0
"""Names, owners, modes, times, links and extended attributes through fs-server."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.fs_server.guest import Guest

libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100


def as_user(uid: int, gid: int, command: str, *, groups: str = "") -> subprocess.CompletedProcess[str]:
    chosen = f"--groups={groups}" if groups else "--clear-groups"
    argv = ["setpriv", f"--reuid={uid}", f"--regid={gid}", chosen, "sh", "-c", command]
    return subprocess.run(argv, text=True, capture_output=True, check=False, cwd="/")


def names_in(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}


def test_what_a_user_makes_is_the_users(guest: Path, shared: Path) -> None:
    made = as_user(
        1234, 5678, f"umask 027; cd {guest}; echo x > f; mkdir d; ln -s f l; mkfifo p; umask 077; echo > g"
    )
    assert made.returncode == 0, made.stderr
    for name in "fdlpg":
        status = (shared / name).lstat()
        assert (status.st_uid, status.st_gid) == (1234, 5678), name
    assert stat.S_IMODE((shared / "f").stat().st_mode) == 0o640
    assert stat.S_IMODE((shared / "d").stat().st_mode) == 0o750
    assert stat.S_IMODE((shared / "g").stat().st_mode) == 0o600
    assert stat.S_ISFIFO((shared / "p").stat().st_mode)


def test_set_group_id_directories_give_their_group(guest: Path, shared: Path) -> None:
    (shared / "d").mkdir()
    os.chown(shared / "d", 0, 4321)
    (shared / "d").chmod(0o2777)
    assert as_user(1234, 5678, f"cd {guest}/d; echo > f; mkdir s").returncode == 0
    assert (shared / "d/f").stat().st_gid == 4321
    assert (shared / "d/s").stat().st_gid == 4321
    assert (shared / "d/s").stat().st_mode & stat.S_ISGID


def test_permissions_are_those_of_the_files(guest: Path, shared: Path) -> None:
    (shared / "secret").write_text("x")
    (shared / "secret").chmod(0o600)
    assert as_user(1234, 1234, f"cat {guest}/secret").returncode != 0
    (shared / "team").mkdir()
    os.chown(shared / "team", 0, 777)
    (shared / "team").chmod(0o770)
    assert as_user(1234, 1234, f"echo > {guest}/team/f").returncode != 0
    # A supplementary group counts, though the request names only the first.
    assert as_user(1234, 1234, f"echo > {guest}/team/f", groups="777").returncode == 0
    assert as_user(1234, 1234, f"chown 0 {guest}/team").returncode != 0


def test_attributes_change_and_show(guest: Path, shared: Path) -> None:
    file = guest / "f"
    file.write_text("x")
    file.chmod(0o4751)
    assert stat.S_IMODE((shared / "f").stat().st_mode) == 0o4751
    os.chown(file, 12, 34)
    assert stat.S_IMODE((shared / "f").stat().st_mode) == 0o751  # chown takes set-user-ID away
    assert ((shared / "f").stat().st_uid, (shared / "f").stat().st_gid) == (12, 34)
    os.utime(file, ns=(1_000_000_001, 2_000_000_002))
    assert (shared / "f").stat().st_mtime_ns == 2_000_000_002
    assert (shared / "f").stat().st_atime_ns == 1_000_000_001
    os.truncate(file, 10_000)
    assert (shared / "f").stat().st_size == 10_000


def test_links(guest: Path, shared: Path) -> None:
    (guest / "f").write_text("x")
    os.link(guest / "f", guest / "g")
    assert (guest / "f").stat().st_nlink == 2
    assert (guest / "f").stat().st_ino == (guest / "g").stat().st_ino == (shared / "g").stat().st_ino
    (guest / "l").symlink_to("f")
    assert (guest / "l").readlink() == Path("f")
    assert (guest / "l").read_text() == "x"
    os.utime(guest / "l", ns=(5, 6), follow_symlinks=False)
    os.chown(guest / "l", 7, 8, follow_symlinks=False)
    assert ((shared / "l").lstat().st_uid, (shared / "l").lstat().st_mtime_ns) == (7, 6)
    assert (shared / "f").stat().st_uid == 0


def test_rename_and_its_flags(guest: Path, shared: Path) -> None:
    (guest / "a").write_text("a")
    (guest / "b").write_text("b")
    (guest / "d").mkdir()

    def renameat2(old: str, new: str, flags: int) -> int:
        paths = (str(guest / old).encode(), str(guest / new).encode())
        failed = libc.renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], flags)
        return ctypes.get_errno() if failed else 0

    assert renameat2("a", "b", 1) == errno.EEXIST  # RENAME_NOREPLACE
    assert renameat2("a", "b", 2) == 0  # RENAME_EXCHANGE
    assert (shared / "a").read_text() == "b"
    (guest / "a").rename(guest / "d/a")
    assert (shared / "d/a").read_text() == "b"
    with pytest.raises(OSError, match="not empty"):
        (guest / "d").rmdir()
    with pytest.raises(IsADirectoryError):
        (guest / "b").rename(guest / "d")


def test_large_directories_are_listed_whole(guest: Path, shared: Path) -> None:
    names = {f"{number:05d}-{'n' * 60}" for number in range(3000)}
    for name in names:
        (shared / name).touch()
    assert names_in(guest) == names
    for name in sorted(names)[::2]:
        (guest / name).unlink()
    assert names_in(guest) == names_in(shared) == set(sorted(names)[1::2])


def test_extended_attributes(guest: Path, shared: Path) -> None:
    (guest / "f").touch()
    os.setxattr(guest / "f", "user.big", b"v" * 3000)
    assert os.getxattr(shared / "f", "user.big") == b"v" * 3000
    assert os.listxattr(guest / "f") == ["user.big"]
    os.removexattr(guest / "f", "user.big")
    with pytest.raises(OSError) as caught:
        os.getxattr(guest / "f", "user.big")
    assert caught.value.errno == errno.ENODATA
    with pytest.raises(PermissionError):  # the host's overlay marks are not the guest's to make
        os.setxattr(guest / "f", "trusted.overlay.opaque", b"y")


def test_device_nodes_are_refused_but_sockets_are_not(guest: Path) -> None:
    with pytest.raises(PermissionError):
        os.mknod(guest / "disk", stat.S_IFBLK | 0o666, os.makedev(8, 0))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(guest / "sock"))
    assert (guest / "sock").is_socket()


def test_read_only_exports_refuse_every_change(mount_exports: Callable[..., Guest], shared: Path) -> None:
    (shared / "f").write_text("x")
    (shared / "d").mkdir()
    root = mount_exports(rw=[], ro=[shared]).root / "0"
    attempts: list[Callable[[], object]] = [
        lambda: (root / "f").write_text("y"),
        lambda: (root / "new").touch(),
        lambda: (root / "new").mkdir(),
        lambda: (root / "new").symlink_to("f"),
        lambda: (root / "f").unlink(),
        lambda: (root / "d").rmdir(),
        lambda: (root / "f").rename(root / "g"),
        lambda: os.link(root / "f", root / "g"),
        lambda: (root / "f").chmod(0o777),
        lambda: os.chown(root / "f", 1, 1),
        lambda: os.utime(root / "f"),
        lambda: os.truncate(root / "f", 0),
        lambda: os.setxattr(root / "f", "user.a", b"b"),
    ]
    for number, attempt in enumerate(attempts):
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.EROFS, number
    assert (root / "f").read_text() == "x"


def test_exports_may_be_single_files_with_any_name(
    mount_exports: Callable[..., Guest], shared: Path, tmp_path: Path
) -> None:
    single = tmp_path / "a:b,ro"
    single.write_text("one")
    guest = mount_exports(rw=[shared, single], ro=[single])
    assert names_in(guest.root) == {"0", "1", "2"}
    assert (guest.root / "1").read_text() == "one"
    (guest.root / "1").write_text("two")
    assert single.read_text() == "two"
    with pytest.raises(OSError, match="Read-only"):
        (guest.root / "2").write_text("three")
    with pytest.raises(OSError, match="Read-only"):
        (guest.root / "3").mkdir()
    assert os.statvfs(guest.root / "0").f_blocks == os.statvfs(shared).f_blocks


def test_mounts_below_an_export_are_part_of_it(
    mount_exports: Callable[..., Guest], shared: Path, short_directory: Path
) -> None:
    (shared / "sub").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", shared / "sub"], check=True)
    try:
        (shared / "sub/f").write_text("below")
        root = mount_exports(rw=[shared]).root / "0"
        assert (root / "sub/f").read_text() == "below"
        assert (root / "sub").stat().st_ino != (root).stat().st_ino
    finally:
        subprocess.run(["umount", "-l", shared / "sub"], check=True)


def test_more_files_are_known_than_fds_allowed(mount_exports: Callable[..., Guest], shared: Path) -> None:
    for number in range(1500):
        (shared / f"f{number}").write_text(str(number))
    guest = mount_exports(rw=[shared], files_limit=300)
    root = guest.root / "0"
    # The guest's kernel cannot forget what is held open, so the server may not either.
    held = [os.open(root / f"f{number}", os.O_PATH) for number in range(1500)]
    assert len(names_in(Path(f"/proc/{guest.server.pid}/fd"))) < 300
    for number in (0, 700, 1499, 3):
        assert (root / f"f{number}").read_text() == str(number)
    (shared / "f5").unlink()
    with pytest.raises(OSError, match=r"No such file|Stale"):
        (root / "f5").read_text()
    for fd in held:
        os.close(fd)

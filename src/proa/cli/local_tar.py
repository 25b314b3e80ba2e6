# SPDX-License-Identifier: Apache-2.0
"""Files of this machine as a tar stream, and back: the near end of ``proa cp``.

What comes from a container is a stranger's: no link below the directory that is unpacked into is followed.
``tarfile`` of the standard library reads and writes the headers, the files are ours.

Source: docker cp reference; POSIX.1-2017, pax Interchange Format.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import click

TarFormat = Literal[0, 1, 2]  # of tarfile: ustar, GNU, pax

PIECE = 1 << 20
HOLE_MIN = 64 * 1024  # zeros that become a hole
_CAPABILITY = "security.capability"
_XATTR = "SCHILY.xattr."
_ZEROS = bytes(PIECE)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def pack(source: Path, name: str, *, tar_format: TarFormat = tarfile.PAX_FORMAT) -> Iterator[bytes]:
    """Yield the tar of a file or directory, called ``name`` in it. Links are not followed; sockets are left
    out. Raises ClickException.

    :param tar_format: of tarfile; all but pax lose extended attributes and fractions of seconds.
    """
    yield from _pack(_walk(source, name), tar_format)


def pack_tree(root: Path, keeps: Callable[[str, bool], bool]) -> Iterator[bytes]:
    """Yield the tar of what is in a directory, named from there.

    :param keeps: whether a path (and all below it, when it is a directory: the second argument) is taken.
    """
    yield from _pack(_walk_kept(root, "", keeps))


def _pack(files: Iterable[tuple[Path, str]], tar_format: TarFormat = tarfile.PAX_FORMAT) -> Iterator[bytes]:
    first: dict[tuple[int, int], str] = {}
    for path, arc_name in files:
        try:
            status = path.lstat()
            if stat.S_ISSOCK(status.st_mode):
                continue
            yield from _member(path, arc_name, status, first, tar_format)
        except OSError as error:
            raise click.ClickException(f"open {path}: {(error.strerror or str(error)).lower()}") from error
    yield bytes(2 * tarfile.BLOCKSIZE)


def unpack(
    pieces: Iterable[bytes], directory: Path, rename: Callable[[str], str], *, keep_owner: bool
) -> None:
    """Unpack a tar into an existing directory, each name changed by ``rename``.

    :raises ClickException: the tar is broken, leads out, or puts a file where a directory is.
    """
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    times: list[tuple[list[str], int]] = []
    try:
        with tarfile.open(fileobj=_Reader(pieces), mode="r|", errorlevel=2) as tar:
            for member in tar:
                parts = _parts(rename(member.name))
                try:
                    _place(tar, member, top, parts, rename, keep_owner=keep_owner)
                except OSError as error:
                    reason = (error.strerror or str(error)).lower()
                    raise click.ClickException(f"{directory.joinpath(*parts)}: {reason}") from error
                if member.isdir():
                    times.append((parts, _mtime_ns(member)))
        for parts, mtime_ns in reversed(times):
            with contextlib.suppress(OSError), _opened(top, parts) as fd:
                os.utime(fd, ns=(mtime_ns, mtime_ns))
    except tarfile.TarError as error:
        raise click.ClickException(f"the archive is broken: {error}") from error
    finally:
        os.close(top)


# --- packing ---


def _walk(source: Path, name: str) -> Iterator[tuple[Path, str]]:
    yield source, name
    if source.is_dir() and not source.is_symlink():
        for child in sorted(source.iterdir()):
            yield from _walk(child, f"{name.rstrip('/')}/{child.name}")


def _walk_kept(directory: Path, above: str, keeps: Callable[[str, bool], bool]) -> Iterator[tuple[Path, str]]:
    for child in sorted(directory.iterdir()):
        name = f"{above}{child.name}"
        is_directory = child.is_dir() and not child.is_symlink()
        if not keeps(name, is_directory):
            continue
        yield child, name
        if is_directory:
            yield from _walk_kept(child, f"{name}/", keeps)


def _member(
    path: Path, name: str, status: os.stat_result, first: dict[tuple[int, int], str], tar_format: TarFormat
) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    records: dict[str, str] = {}
    info.pax_headers = records
    info.mode = stat.S_IMODE(status.st_mode)
    info.uid, info.gid = status.st_uid, status.st_gid
    info.mtime, fraction = divmod(status.st_mtime_ns, 1_000_000_000)
    if fraction:
        records["mtime"] = f"{info.mtime}.{fraction:09d}"
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFREG and status.st_nlink > 1:
        known = first.setdefault((status.st_dev, status.st_ino), name)
        if known != name:
            info.type, info.linkname = tarfile.LNKTYPE, known
            yield _header(info, tar_format)
            return
    if kind == stat.S_IFREG:
        with path.open("rb") as file:
            info.size = os.fstat(file.fileno()).st_size
            with contextlib.suppress(OSError):
                value = os.getxattr(file.fileno(), _CAPABILITY)
                records[_XATTR + _CAPABILITY] = value.decode("utf-8", "surrogateescape")
            yield _header(info, tar_format)
            yield from _content(file, info.size)
        return
    if kind == stat.S_IFLNK:
        info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
    elif kind == stat.S_IFDIR:
        info.type = tarfile.DIRTYPE
    elif kind == stat.S_IFIFO:
        info.type = tarfile.FIFOTYPE
    else:
        info.type = tarfile.CHRTYPE if kind == stat.S_IFCHR else tarfile.BLKTYPE
        info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    yield _header(info, tar_format)


def _header(info: tarfile.TarInfo, tar_format: TarFormat) -> bytes:
    return info.tobuf(tar_format, "utf-8", "surrogateescape")


def _content(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Exactly ``size`` bytes and the padding: the header has promised them."""
    left = size
    while left and (data := file.read(min(left, PIECE))):
        left -= len(data)
        yield data
    while left:
        data = _ZEROS[: min(left, PIECE)]
        left -= len(data)
        yield data
    yield bytes(-size % tarfile.BLOCKSIZE)


# --- unpacking ---


class _Reader(io.RawIOBase):
    """Pieces as a file."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts: list[bytes] = []
        while size:
            if not self._rest:
                self._rest = next(self._pieces, b"")
                if not self._rest:
                    break
            part, self._rest = self._rest[:size], self._rest[size:]
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _parts(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise click.ClickException(f"the archive has a name that leads out: {name}")
    return parts


def _place(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    top: int,
    parts: list[str],
    rename: Callable[[str], str],
    *,
    keep_owner: bool,
) -> None:
    if not parts:
        return
    with _opened(top, parts[:-1]) as parent:
        name = parts[-1]
        try:
            old = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            old = None
        if old is not None and stat.S_ISDIR(old.st_mode) != member.isdir():
            words = (
                ("directory", "non-directory")
                if stat.S_ISDIR(old.st_mode)
                else ("non-directory", "directory")
            )
            raise click.ClickException(f'cannot overwrite {words[0]} "{"/".join(parts)}" with {words[1]}')
        if old is not None and not member.isdir():
            os.unlink(name, dir_fd=parent)
        if member.isdir():
            if old is None:
                os.mkdir(name, 0o700, dir_fd=parent)
            fd = os.open(name, _DIRECTORY, dir_fd=parent)
        elif member.isreg():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=parent)
            _write(tar, member, fd)
        elif member.islnk():
            target = _parts(rename(member.linkname))
            with _opened(top, target[:-1]) as other:
                os.link(target[-1], name, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)
            return
        else:
            _make_special(member, name, parent, keep_owner=keep_owner)
            return
        try:
            if keep_owner:
                os.fchown(fd, member.uid, member.gid)
            os.fchmod(fd, member.mode & 0o7777)
            if not member.isdir():
                os.utime(fd, ns=(_mtime_ns(member),) * 2)
        finally:
            os.close(fd)


def _make_special(member: tarfile.TarInfo, name: str, parent: int, *, keep_owner: bool) -> None:
    if member.issym():
        os.symlink(member.linkname, name, dir_fd=parent)
    elif member.isfifo():
        os.mkfifo(name, member.mode & 0o777, dir_fd=parent)
    elif member.isdev():
        kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
        device = os.makedev(member.devmajor, member.devminor)
        os.mknod(name, kind | member.mode & 0o777, device, dir_fd=parent)
    if keep_owner:
        os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
    os.utime(name, ns=(_mtime_ns(member),) * 2, dir_fd=parent, follow_symlinks=False)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, fd: int) -> None:
    content = tar.extractfile(member)
    at = 0
    while content is not None and (data := content.read(PIECE)):
        if len(data) < HOLE_MIN or data != _ZEROS[: len(data)]:
            view = memoryview(data)
            while view:
                written = os.pwrite(fd, view, at + len(data) - len(view))
                view = view[written:]
        at += len(data)
    os.ftruncate(fd, member.size)


@contextlib.contextmanager
def _opened(top: int, parts: list[str]) -> Iterator[int]:
    """Open a directory below ``top``, made where it is missing; no link is followed."""
    fd = os.dup(top)
    try:
        for part in parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=fd)
            below = os.open(part, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def _mtime_ns(member: tarfile.TarInfo) -> int:
    text = member.pax_headers.get("mtime", "")
    seconds, _, fraction = text.partition(".")
    with contextlib.suppress(ValueError):
        if fraction and not text.startswith("-"):
            return int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, "0"))
    return int(member.mtime) * 1_000_000_000

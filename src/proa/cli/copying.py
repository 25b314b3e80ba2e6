# SPDX-License-Identifier: Apache-2.0
"""``proa cp`` and ``proa vm cp``: files in and out, with docker cp's rules for what goes where.

Source: docker cp reference, Description.
"""

from __future__ import annotations

import os
import posixpath
import stat
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from proa.cli.context import get_client
from proa.cli.local_tar import TarFormat, pack, unpack
from proa.cli.times import format_size
from proa.client.client import Client
from proa.client.errors import ApiError
from proa.wire import routes
from proa.wire.files import PATH_STAT_HEADER, PathStat, decode_path_stat

_IS_DIRECTORY = 1 << 31  # Go's FileMode
_IS_LINK = 1 << 27
_IS_ODD = 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 1 << 19  # devices, FIFOs, sockets
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One end of a copy: where it is, and what is known of what is there.

    :ivar new_name: the name that what was asked for has, where ``path`` is what a link leads to.
    """

    path: str
    exists: bool = True
    is_directory: bool = False
    new_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Unpack in ``directory``, with the archive's first component, ``old``, called ``new`` ("": as it is)."""

    directory: str
    old: str = ""
    new: str = ""

    def rename(self, name: str) -> str:
        """Return a member's new name."""
        if not self.new:
            return name
        if self.old == "/":
            return f"{self.new}/{name.lstrip('/')}"
        if name == self.old or name.startswith(f"{self.old}/"):
            return self.new + name[len(self.old) :]
        return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What files are copied into and out of, and by which routes.

    :ivar tar_format: of what is sent.
    """

    noun: str
    stat: routes.Route
    get: routes.Route
    put: routes.Route
    tar_format: TarFormat = tarfile.PAX_FORMAT


CONTAINER = Kind(
    noun="container",
    stat=routes.CONTAINER_ARCHIVE_INFO,
    get=routes.CONTAINER_ARCHIVE,
    put=routes.PUT_CONTAINER_ARCHIVE,
)


@click.command()
@click.option("-a", "--archive", is_flag=True, help="Archive mode (copy all uid/gid information)")
@click.option("-L", "--follow-link", is_flag=True, help="Always follow symbol link in SRC_PATH")
@click.option(
    "-q", "--quiet", is_flag=True, default=None, help="Suppress the last line [when stdout is no terminal]"
)
@click.argument("source")
@click.argument("target")
@click.pass_context
def cp(
    ctx: click.Context, source: str, target: str, archive: bool, follow_link: bool, quiet: bool | None
) -> None:
    """Copy files between a container (CONTAINER:PATH) and this machine; - is a tar on stdin or stdout."""
    size = copy(get_client(ctx), CONTAINER, source, target, archive=archive, follow=follow_link)
    report(size, source, target, quiet=quiet)


def report(size: int, source: str, target: str, *, quiet: bool | None) -> None:
    """Say what was copied, unless that would disturb."""
    if quiet is None:
        quiet = not sys.stdout.isatty()
    if not quiet and "-" not in (source, target):
        where = target if split_argument(target)[0] else str(Path(target).absolute())
        click.echo(f"Successfully copied {format_size(size)} to {where}", err=True)


def copy(client: Client, kind: Kind, source: str, target: str, *, archive: bool, follow: bool) -> int:
    """Copy one way or the other; return the bytes of the archive. Raises ClickException."""
    from_there, from_path = split_argument(source)
    to_there, to_path = split_argument(target)
    if not from_path:
        raise click.ClickException("source can not be empty")
    if not to_path:
        raise click.ClickException("destination can not be empty")
    if from_there and to_there:
        raise click.ClickException(f"copying between {kind.noun}s is not supported")
    if from_there:
        return _copy_out(client, kind, from_there, from_path, to_path, archive=archive, follow=follow)
    if to_there:
        return _copy_in(client, kind, from_path, to_there, to_path, archive=archive, follow=follow)
    raise click.ClickException(f"must specify at least one {kind.noun} source")


def split_argument(text: str) -> tuple[str, str]:
    """Return container and path; "" for a path of this machine."""
    container, colon, path = text.partition(":")
    if text.startswith("/") or not colon or container.startswith(".") or not container:
        return "", text
    return container, path


def plan_copy(source: End, target: End) -> Plan:
    """Decide where a copy is unpacked and what its first component is called.

    Raises ClickException, with docker's words, when it cannot be.
    """
    directory, target_base = _split(target.path)
    source_base = source.new_name or _split(source.path)[1]
    if target.exists and target.is_directory:
        return Plan(directory=target.path)
    if target.exists and source.is_directory:
        raise click.ClickException("cannot copy directory")
    if not target.exists and not source.is_directory and target.path.endswith(("/", "/.")):
        raise click.ClickException("no such directory")
    return Plan(directory=directory, old=source_base, new=target_base)


# --- out of a container ---


def _copy_out(
    client: Client, kind: Kind, container: str, path: str, target: str, *, archive: bool, follow: bool
) -> int:
    if target != "-":
        _check_output(target)
    new_name = ""
    if follow:
        found = _stat(client, kind, container, path)
        if found is not None and found.mode & _IS_LINK:
            asked, path = path, _follow(path, found.link_target)
            new_name = _base(asked) if _base(asked) != _base(path) else ""
    with client.stream(kind.get, query={"path": path}, id=container) as response:
        found = decode_path_stat(response.headers.get(PATH_STAT_HEADER.lower(), ""))
        if target == "-":
            for piece in response.iter_bytes():
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return 0
        source = End(path=path, is_directory=bool(found.mode & _IS_DIRECTORY), new_name=new_name)
        plan = plan_copy(source, _local(target))
        counted = _Counter(response.iter_bytes())
        unpack(counted, Path(plan.directory), _renaming(source, plan), keep_owner=archive)
    return counted.total


def _renaming(source: End, plan: Plan) -> Callable[[str], str]:
    """A link that was followed comes under its target's name and gets its own first."""
    if not source.new_name:
        return plan.rename
    first = Plan(directory="", old=_split(source.path)[1], new=source.new_name)
    return lambda name: plan.rename(first.rename(name))


def _check_output(target: str) -> None:
    parent = os.path.dirname(os.path.normpath(target))  # noqa: PTH120 ("a/." must not become "a")
    if parent and not Path(parent).exists():
        raise click.ClickException(f'invalid output path: directory "{parent}" does not exist')
    path = Path(target)
    if path.exists() and not path.is_dir() and not path.is_file():
        raise click.ClickException(f'invalid output path: "{target}" must be a directory or a regular file')


def _local(target: str) -> End:
    """What is at a path of this machine; a link is followed, even to where nothing is."""
    text = os.path.abspath(target)  # noqa: PTH100 (links stay)
    text += "/." if target.endswith("/.") else "/" if target.endswith("/") else ""
    if Path(text).is_symlink():
        text = os.path.realpath(text)
    return End(path=text, exists=Path(text).exists(), is_directory=Path(text).is_dir())


# --- into a container ---


def _copy_in(
    client: Client, kind: Kind, path: str, container: str, target: str, *, archive: bool, follow: bool
) -> int:
    end = _remote(client, kind, container, target)
    query: dict[str, str | int | bool | Sequence[str] | None] = {
        "path": end.path,
        "noOverwriteDirNonDir": True,
        "copyUIDGID": archive,
    }
    if path == "-":
        if not end.is_directory:
            raise click.ClickException(f'destination "{container}:{target}" must be a directory')
        body = _Counter(iter(lambda: sys.stdin.buffer.read(_PIECE), b""))
    else:
        local, source = _source(path, follow=follow)
        plan = plan_copy(source, end)
        query["path"] = plan.directory
        name = plan.rename(source.new_name or _base(source.path))
        body = _Counter(pack(local, name, tar_format=kind.tar_format))
    client.do(kind.put, query=query, body=body, id=container)
    return body.total


def _source(path: str, *, follow: bool) -> tuple[Path, End]:
    local = Path(path)
    try:
        ends_open = path.endswith(("/", "/.")) or path == "."
        if follow or ends_open:
            local = local.resolve(strict=True)
        status = local.lstat()
    except OSError as error:
        raise click.ClickException(f"lstat {path}: {(error.strerror or str(error)).lower()}") from error
    is_directory = stat.S_ISDIR(status.st_mode)
    if path.endswith("/") and not is_directory:
        raise click.ClickException(f"lstat {path}: not a directory")
    name = _base(path)
    if name in ("..", "/", ""):
        name = local.absolute().resolve().name or "."
    return local, End(path=path, is_directory=is_directory, new_name=name)


def _remote(client: Client, kind: Kind, container: str, path: str) -> End:
    found = _stat(client, kind, container, path)
    if found is not None and found.mode & _IS_LINK:
        path = _follow(path, found.link_target)
        found = _stat(client, kind, container, path)
    if found is None:
        return End(path=path, exists=False)
    if found.mode & _IS_ODD:
        raise click.ClickException(f'destination "{container}:{path}" must be a directory or a regular file')
    return End(path=path, is_directory=bool(found.mode & _IS_DIRECTORY))


# --- paths ---


def _stat(client: Client, kind: Kind, container: str, path: str) -> PathStat | None:
    """What is at a path of the container; None when nothing is, or the daemon cannot say: the copy will."""
    try:
        with client.stream(kind.stat, query={"path": path}, id=container) as response:
            return decode_path_stat(response.headers.get(PATH_STAT_HEADER.lower(), ""))
    except ApiError:
        return None


def _follow(path: str, target: str) -> str:
    """Return the path of a link's target, ending as the path did."""
    if not target.startswith("/"):
        target = posixpath.join(_split(path)[0], target)
    end = "/." if path.endswith("/.") else "/" if path.endswith("/") else ""
    return target + end


def _split(path: str) -> tuple[str, str]:
    """Cut into directory and last component, which is "." when the path says so."""
    cleaned = posixpath.normpath(path)
    if _base(path) == "." and _base(cleaned) != ".":
        return cleaned, "."
    directory, _, base = cleaned.rpartition("/")
    return directory or ("/" if cleaned.startswith("/") else "."), base or "/"


def _base(path: str) -> str:
    stripped = path.rstrip("/")
    return stripped.rpartition("/")[2] if stripped else "/"


class _Counter:
    """Passes pieces on and adds them up."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.total = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.total += len(piece)
            yield piece

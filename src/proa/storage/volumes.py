# SPDX-License-Identifier: Apache-2.0
"""Named and anonymous volumes of the driver ``local``: a directory each, and a row in the database.

Owns ``data_root/volumes`` and the table ``volumes``. Who uses a volume, and whether it may go, is the
engine's to know. A start makes the two agree, and never deletes content but that of a removal under way: a
directory without a row gets one, so that data outlives a lost database.

    volumes/<name>/_data          what containers see
    volumes/<name>/copying        present while an image's content is copied in: the copy is not whole
    volumes/.removed-<name>~<hex> being deleted
    volumes/.pinned-<hex>         a mount of what lies at a subpath or in an image, while a container with it
                                  is started (``pins``)

Source: Engine API, Volume; moby, volume/local and volume/service, for rules and texts.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from proa.host.database import Database
from proa.model.errors import Conflict, Internal, InvalidParameter, NoSuchVolume, NotFound
from proa.model.ids import Digest, new_id
from proa.model.volume import Volume
from proa.storage import pins
from proa.storage.copying import copy_tree, empty_tree, find_directory
from proa.storage.layers import Layers
from proa.storage.volume_mounts import check_options, is_mounted, mount_volume, unmount_volume

DRIVER = "local"
ANONYMOUS_LABEL = "com.docker.volume.anonymous"  # set by Docker since 23.0; clients look for it
NAME_MAX = 200  # bytes: with a prefix and a suffix it is a directory's name
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_ANONYMOUS = re.compile(r"[0-9a-f]{64}")
_REMOVED = ".removed-"
_COPYING = "copying"
_MIGRATIONS = (
    """
    CREATE TABLE volumes (
        name TEXT PRIMARY KEY,
        created_at_ns INTEGER NOT NULL,
        anonymous INTEGER NOT NULL,
        labels TEXT NOT NULL,             -- JSON object
        options TEXT NOT NULL             -- JSON object
    ) WITHOUT ROWID;
    """,
)


class Volumes:
    """The volumes under ``root``. ``layers`` is where images' content comes from."""

    def __init__(self, db: Database, root: Path, *, layers: Layers) -> None:
        self._db = db
        self._root = root
        self._layers = layers
        self._copying: dict[str, anyio.Lock] = {}
        db.migrate("volumes", _MIGRATIONS)
        # As Docker has it: the host's users must not reach set-user-id files in there.
        root.mkdir(mode=0o701, parents=True, exist_ok=True)
        self._volumes = {row["name"]: self._of_row(row) for row in db.query("SELECT * FROM volumes")}
        self._reconcile()

    def create(
        self,
        name: str | None,
        *,
        driver: str = DRIVER,
        labels: Mapping[str, str],
        options: Mapping[str, str],
    ) -> Volume:
        """Make a volume, or return the one of this name, whose labels and options then stay as they are.

        :param name: None makes an anonymous volume with a random name.
        :raises InvalidParameter: the name or an option is not allowed.
        :raises NotFound: there is no such driver.
        :raises Conflict: a volume of this name has other options.
        """
        if driver != DRIVER:
            raise NotFound(f'error looking up volume plugin {driver}: plugin "{driver}" not found')
        known = self._volumes.get(name) if name else None
        if known is not None:
            if options and dict(options) != dict(known.options):
                raise Conflict(f"create {name}: conflict: volume name must be unique")
            return known
        if name:
            _check_name(name)
        check_options(name or "", options)
        return self._create(name, dict(labels), dict(options))

    def get(self, name: str) -> Volume:
        """Return a volume. Raises NoSuchVolume."""
        try:
            return self._volumes[name]
        except KeyError:
            raise NoSuchVolume(name) from None

    def list(self) -> Sequence[Volume]:
        """Return all volumes, oldest first."""
        return sorted(self._volumes.values(), key=lambda volume: (volume.created_at_ns, volume.name))

    async def remove(self, name: str) -> None:
        """Remove a volume and its content. Whether it is in use must have been checked.

        :raises NoSuchVolume: there is none.
        """
        await anyio.to_thread.run_sync(unmount_volume, self.get(name))
        aside = self._root / f"{_REMOVED}{name}~{secrets.token_hex(8)}"
        with contextlib.suppress(FileNotFoundError):
            (self._root / name).rename(aside)
        self._db.execute("DELETE FROM volumes WHERE name = ?", (name,))
        del self._volumes[name]
        self._copying.pop(name, None)
        await anyio.to_thread.run_sync(_delete, aside)

    async def mount(self, name: str) -> None:
        """Make a volume's content visible on its directory. Idempotent. Raises NoSuchVolume, Unavailable."""
        volume = self.get(name)
        if volume.options:
            await anyio.to_thread.run_sync(mount_volume, volume)

    @contextlib.contextmanager
    def pinned(self, name: str, subpath: str) -> Iterator[Path]:
        """Give a path for a directory or file inside a volume, good for the span of the block.

        What is mounted there is the very thing that was found: another container that has the volume may
        put a link in its place meanwhile, and whoever mounts the path is not led out of the volume.

        :raises InvalidParameter: it is not there, or a link leads out of the volume.
        """
        with pins.pin(pins.find_below(self.get(name).mountpoint, subpath), self._root) as place:
            yield place

    def pinned_alone(self, source: Path) -> AbstractContextManager[Path]:
        """Give a path at which a directory or file of the host is without what is mounted below it, good for
        the span of the block. Raises InvalidParameter: it is not there."""
        return pins.pin_alone(source, self._root)

    @contextlib.contextmanager
    def pinned_image(self, layers: Sequence[Digest], subpath: str) -> Iterator[Path]:
        """Give a path at which an image is, read-only, or what it has at a subpath, during the block.

        :param layers: lowest first.
        :raises InvalidParameter: there is nothing at the subpath, or a link leads out of the image.
        :raises NotFound: a layer is missing.
        """
        lowers = [self._layers.mount(diff_id) for diff_id in reversed(layers)]
        with pins.pin_merged(lowers, self._root, empty=self._layers.empty, subpath=subpath) as place:
            yield place

    async def unmount(self, name: str) -> None:
        """Undo ``mount``, when nobody uses it any more. Idempotent. Raises NoSuchVolume."""
        volume = self.get(name)
        if volume.options:
            await anyio.to_thread.run_sync(unmount_volume, volume)

    async def usage_bytes(self, name: str) -> int:
        """Return what the volume's content occupies. Raises NoSuchVolume."""
        volume = self.get(name)
        if volume.options.get("device"):
            return 0  # what is kept elsewhere takes nothing here
        path = volume.mountpoint
        return await anyio.to_thread.run_sync(_occupied_bytes, path)

    async def copy_up(self, volume: Volume, layers: Sequence[Digest], path: str) -> None:
        """Fill an empty volume with what the image has at ``path``, its owner and mode included.

        Nothing is done when the volume has content or is another file system, or the image nothing at
        ``path``. A copy that was cut short, by a failure or a kill, is made anew by the next call.

        :param layers: of the image, lowest first.
        :raises InvalidParameter: the image has a file at ``path``.
        :raises Internal: the copy failed; the volume is empty again.
        """
        if volume.options.get("device"):
            return  # its content is somebody else's: a copy that was cut short could not be told from it
        lock = self._copying.setdefault(volume.name, anyio.Lock())
        async with lock:
            unfinished = self._root / volume.name / _COPYING
            if not layers or (_has_entries(volume.mountpoint) and not unfinished.exists()):
                return
            with self._layers.open_merged(layers) as image:
                try:
                    source = find_directory(image, path)
                except NotADirectoryError:
                    raise InvalidParameter(
                        f"cannot mount volume over existing file, file exists {path}"
                    ) from None
                if source is None:
                    return
                try:
                    await anyio.to_thread.run_sync(_copy_up, source, volume.mountpoint, unfinished)
                except OSError as error:
                    raise Internal(f"copy image content to volume {volume.name}: {error}") from error
                finally:
                    os.close(source)

    # --- machinery ---

    def _create(self, name: str | None, labels: dict[str, str], options: dict[str, str]) -> Volume:
        anonymous = not name
        name = name or new_id()
        if anonymous:
            labels[ANONYMOUS_LABEL] = ""
        volume = Volume(
            name=name,
            mountpoint=self._root / name / "_data",
            created_at_ns=time.time_ns(),
            labels=labels,
            options=options,
            anonymous=anonymous,
        )
        try:
            _make_directory(volume.mountpoint)
            self._insert(volume)
        except (OSError, sqlite3.Error) as error:
            shutil.rmtree(self._root / name, ignore_errors=True)
            raise Internal(f"create {name}: {error}") from error
        return volume

    def _insert(self, volume: Volume) -> None:
        self._db.execute(
            "INSERT INTO volumes (name, created_at_ns, anonymous, labels, options) VALUES (?, ?, ?, ?, ?)",
            (
                volume.name,
                volume.created_at_ns,
                volume.anonymous,
                *map(_json, (volume.labels, volume.options)),
            ),
        )
        self._volumes[volume.name] = volume

    def _of_row(self, row: sqlite3.Row) -> Volume:
        return Volume(
            name=row["name"],
            mountpoint=self._root / row["name"] / "_data",
            created_at_ns=row["created_at_ns"],
            labels=msgspec.json.decode(row["labels"], type=dict[str, str]),
            options=msgspec.json.decode(row["options"], type=dict[str, str]),
            anonymous=bool(row["anonymous"]),
        )

    def _reconcile(self) -> None:
        for directory in list(self._root.iterdir()):
            if directory.name.startswith(pins.PREFIX):
                pins.unpin(directory)  # of a daemon that was killed
            elif directory.name.startswith(_REMOVED):
                name = directory.name.removeprefix(_REMOVED).partition("~")[0]
                if not (self._root / name).exists():
                    self._db.execute("DELETE FROM volumes WHERE name = ?", (name,))
                    self._volumes.pop(name, None)
                _delete(directory)
            elif directory.name not in self._volumes and (directory / "_data").is_dir():
                self._insert(
                    Volume(
                        name=directory.name,
                        mountpoint=directory / "_data",
                        created_at_ns=directory.stat().st_mtime_ns,
                        anonymous=_ANONYMOUS.fullmatch(directory.name) is not None,
                    )
                )
        for volume in self._volumes.values():
            _make_directory(volume.mountpoint)


def _check_name(name: str) -> None:
    """Refuse what the local driver refuses. Source: moby, volume/local, validateName."""
    if len(name) == 1:
        raise InvalidParameter(
            "volume name is too short, names should be at least two alphanumeric characters"
        )
    if not _NAME.fullmatch(name):
        raise InvalidParameter(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute '
            "path"
        )
    if len(name) > NAME_MAX:
        raise InvalidParameter(f"create {name[:32]}…: volume name is longer than {NAME_MAX} characters")


def _make_directory(mountpoint: Path) -> None:
    mountpoint.parent.mkdir(mode=0o701, exist_ok=True)
    mountpoint.mkdir(mode=0o755, exist_ok=True)


def _copy_up(source: int, target: Path, unfinished: Path) -> None:
    if unfinished.exists():
        empty_tree(target)
    unfinished.touch()
    try:
        copy_tree(source, target)
    except BaseException:
        empty_tree(target)
        raise
    finally:
        unfinished.unlink()


def _has_entries(directory: Path) -> bool:
    with os.scandir(directory) as entries:
        return any(True for _ in entries)


def _occupied_bytes(root: Path) -> int:
    """Add up the blocks of everything below ``root``, several names of a file once."""
    total = 0
    seen: set[tuple[int, int]] = set()
    for directory, _, names in os.walk(root):
        for name in names:
            try:
                status = (Path(directory) / name).lstat()
            except FileNotFoundError:
                continue  # it is in use
            if status.st_nlink == 1 or (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
    return total


def _delete(path: Path) -> None:
    if is_mounted(path / "_data"):
        return  # what is mounted is not ours
    # What cannot be deleted now is out of the way, and tried again at the next start.
    shutil.rmtree(path, ignore_errors=True)


def _json(value: Mapping[str, str]) -> str:
    return msgspec.json.encode(dict(value)).decode()

# SPDX-License-Identifier: Apache-2.0
"""A machine as one file, to be kept or carried to another host.

    machine.json       what it is, and the name, digest and size of every file that follows
    <disk>.qcow2       its disks, without snapshots and holes
    kernel, initrd, firmware, variables.fd, tpm2-00.permall    when it has them

A tar, which may be compressed when it is read. What is in one is a stranger's: names are only keys, digests
and sizes must be those of ``machine.json``, and disks are rewritten as any stranger's image is.

Left out is what belongs to the host: the path of an installer image, autostart. So is what cloud-init has
been told and needs no more: passwords and documents of a machine that has been started.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path

import anyio.to_thread
import msgspec

from proa.image.archive_reader import ArchiveSpooler, SpooledArchive
from proa.image.archive_writer import Part
from proa.image.content import Spool
from proa.model.config import ApiStruct
from proa.model.errors import InvalidParameter
from proa.model.machine import CloudInit, Machine, MachineConfig

VERSION = 1
MANIFEST = "machine.json"
MAX_MANIFEST_BYTES = 2 << 20  # user data of 1 MiB, escaped
_BATCH_BYTES = 4 << 20  # a piece worth the way to a thread


class ArchivedFile(ApiStruct, frozen=True, kw_only=True):
    """A file of the archive. ``size`` in bytes, ``digest`` begins with ``sha256:``."""

    name: str
    digest: str
    size: int


class Manifest(ApiStruct, frozen=True, kw_only=True):
    """``machine.json``. ``instance_id``: what cloud-init knows the machine by; it shall not begin anew."""

    version: int
    name: str
    instance_id: str
    config: MachineConfig
    files: list[ArchivedFile]


def files_of(config: MachineConfig, *, has_variables: bool) -> list[str]:
    """Return the names of the files that a machine of this configuration has, without the seed."""
    names = [f"{disk.name}.qcow2" for disk in config.disks or ()]
    names += ["kernel"] if config.kernel or config.image else []
    names += ["initrd"] if config.initrd or config.image else []
    names += ["firmware"] if config.firmware.startswith("/") else []
    return [*names, *(["variables.fd"] if has_variables else [])]


async def plan_archive(machine: Machine, files: Sequence[Path]) -> list[Part]:
    """Return the members, the manifest first. Reads every file once."""
    listed = []
    for path in files:
        digest = f"sha256:{await anyio.to_thread.run_sync(_hash, path)}"
        listed.append(ArchivedFile(name=path.name, digest=digest, size=path.stat().st_size))
    manifest = Manifest(
        version=VERSION,
        name=machine.name,
        instance_id=machine.instance_id or machine.id,
        config=portable(machine),
        files=listed,
    )
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    parts = [Part(name=MANIFEST, data=data, size=len(data))]
    return parts + [
        Part(name=one.name, path=path, size=one.size) for one, path in zip(listed, files, strict=True)
    ]


def portable(machine: Machine) -> MachineConfig:
    """Return the configuration without what belongs to this host, and without secrets that are used up."""
    config = machine.config
    told = config.cloud_init
    if told is not None and machine.started_at_ns:
        told = CloudInit(user=told.user, ssh_keys=told.ssh_keys)
    disks = [msgspec.structs.replace(disk, source="") for disk in config.disks or ()]
    return msgspec.structs.replace(config, cdrom="", autostart=False, cloud_init=told, disks=disks)


async def read_archive(stream: AsyncIterator[bytes], folder: Path) -> tuple[Manifest, dict[str, Path]]:
    """Read an archive to its end, into files of ``folder``, and check it; return them by name.

    :raises InvalidParameter: it is none, it is cut or changed, or of a later version.
    :raises Internal: the host's disk is full.
    """
    with closing(ArchiveSpooler(Spool(folder))) as spooler:
        batch: list[bytes] = []
        async for data in stream:
            batch.append(data)
            if sum(map(len, batch)) >= _BATCH_BYTES:
                await anyio.to_thread.run_sync(spooler.feed, b"".join(batch))
                batch.clear()
        await anyio.to_thread.run_sync(spooler.feed, b"".join(batch))
        archive = await anyio.to_thread.run_sync(spooler.finish)
    manifest = _manifest_of(archive)
    files = {}
    for wanted in manifest.files:
        found = archive.files.get(wanted.name)
        if found is None:
            raise InvalidParameter(f"the archive is not whole: {wanted.name!r} is missing")
        if (found.size, found.digest) != (wanted.size, wanted.digest):
            raise InvalidParameter(f"the archive is damaged: {wanted.name!r} is not what it was")
        files[wanted.name] = found.path
    return manifest, files


def _manifest_of(archive: SpooledArchive) -> Manifest:
    if archive.files.get(MANIFEST) is None:
        raise InvalidParameter(f"not the archive of a virtual machine: it has no {MANIFEST}")
    data = archive.read(MANIFEST, MAX_MANIFEST_BYTES)
    try:
        version = msgspec.json.decode(data, type=_Versioned).version
        if version != VERSION:
            raise InvalidParameter(f"the archive is of version {version}: this proa knows {VERSION}")
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise InvalidParameter(f"the archive's {MANIFEST} cannot be read: {error}") from error


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Versioned(ApiStruct, frozen=True, kw_only=True):
    version: int

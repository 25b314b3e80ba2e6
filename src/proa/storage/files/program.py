# SPDX-License-Identifier: Apache-2.0
"""The child program that touches trees of files; started by ``proa.storage.files.trees``.

It goes into a mount namespace of its own in which the tree is the root and nothing else is left, without
devices and, unless it is to write, read-only; gives up the privileges that files do not need; then does one
thing. So whatever a tree or an archive contains, there is no path to a file of the host. The namespace, and
every mount in it, goes with the process, however it ends; the process goes with the daemon.

    usage: BOOTSTRAP answer_fd site_packages request

``request`` is a JSON object: ``do`` names one of the functions in ``_DEEDS``, the rest are its arguments and
where the tree is (see ``_enter``). A tar goes in by standard input and out by standard output. On
``answer_fd`` come lines of JSON: ``{"found": …}`` when what was asked for is there, then ``{"done": …}`` or
``{"error": [kind, message]}``. An end without either is a failure of the machinery.

Source: mount_namespaces(7), pivot_root(2), openat2(2).
"""

from __future__ import annotations

import gc
import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from proa.host import confinement, mount
from proa.storage.decompression import HEAD_BYTES, ZSTD_MAGIC, decompressor_maker, iter_chunks
from proa.storage.files.assemble import Assembler
from proa.storage.files.extract import Extractor
from proa.storage.files.owner import find_owner
from proa.storage.files.paths import Refusal, base_name, find, follow, readable
from proa.storage.files.rewrite import rewrite
from proa.storage.files.tar_writer import TarWriter
from proa.storage.files.upper import list_changes, write_layer
from proa.storage.files.walk import MemberWriter, Visit, read_xattrs, write_tree
from proa.storage.layer_image import write_own_image
from proa.storage.tar import BadTar, Stream

MEMORY_BYTES = 1 << 30  # address space; a tree of a million hard links needs a third of it
MAX_ENTRIES = 5_000_000  # of an archive put into a tree
RESERVE_BYTES = 64 << 20  # left free where a layer is written
_CHECK_EVERY_BYTES = 16 << 20
_IN, _OUT = 0, 1
_KERNEL_FILE_SYSTEMS = {
    confinement.PROC_SUPER_MAGIC: "proc",
    confinement.SYSFS_MAGIC: "sysfs",
    0x27E0EB: "cgroup",
    0x63677270: "cgroup2",
    0x1CD1: "devpts",
    0x19800202: "mqueue",
    0x64626720: "debugfs",
    0x74726163: "tracefs",
    0x73636673: "securityfs",
    0xCAFE4A11: "bpf",
    0x65735543: "fusectl",
}
_READS_ARCHIVE = ("write", "rewrite", "unpack_upper")
_READ = ("DAC_READ_SEARCH", "DAC_OVERRIDE")
_READ_TRUSTED = (*_READ, "SYS_ADMIN")  # overlayfs keeps its marks in trusted xattrs
_WRITE = (*_READ, "CHOWN", "FOWNER", "FSETID", "MKNOD", "SETFCAP")
_ATTRIBUTES = mount.MountAttr.NODEV | mount.MountAttr.NOSUID | mount.MountAttr.NOEXEC

Request = dict[str, Any]  # Any: JSON


class _Answers:
    """The lines that the parent reads."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def say(self, **message: object) -> None:
        line = memoryview(json.dumps(message).encode() + b"\n")
        while line:
            line = line[os.write(self._fd, line) :]


def main() -> None:
    """Run as described above, with the arguments of sys.argv."""
    confinement.die_with_parent()
    gc.disable()  # short-lived, and what it makes is not circular
    os.umask(0)
    answers = _Answers(int(sys.argv[1]))
    request: Request = json.loads(sys.argv[3])
    deed, keeps = _DEEDS[request["do"]]
    try:
        # Before the tree is entered: a module may have to be imported.
        source = _open_source(sys.argv[2]) if request["do"] in _READS_ARCHIVE else None
        if request.get("unpacks"):
            decompressor_maker(ZSTD_MAGIC, sys.argv[2])  # imports its module
        if request["do"] in ("layer", "assemble"):
            import hashlib  # slow, and reads a configuration, which must not be the tree's

            request["digest"] = hashlib.sha256()
        _forget_imports()
        _enter(request, writes=source is not None and request["do"] != "rewrite")
        confinement.keep_capabilities(keeps)
        confinement.limit(AS=MEMORY_BYTES, CORE=0)
        done = deed(request, answers, source)
    except Refusal as error:
        answers.say(error=[error.kind, readable(error.message)])
    except BadTar as error:
        answers.say(error=["invalid", f"Error processing tar file: {error}"])
    except MemoryError:
        answers.say(error=["invalid", f"it needs more than {MEMORY_BYTES} bytes of memory, the limit"])
    except BrokenPipeError:
        sys.exit(1)  # nobody wants it any more
    except (FileNotFoundError, NotADirectoryError) as error:  # it was there a moment ago
        answers.say(error=["missing", readable(os.fsdecode(error.filename or ""))])
    except OSError as error:
        what = readable(os.fsdecode(error.filename or request["do"]))
        answers.say(error=["failed", f"{what}: {(error.strerror or '').lower()}"])
    else:
        answers.say(done=done)


def _open_source(site_packages: str) -> Stream:
    """Open the archive on standard input."""
    head = b""
    while len(head) < HEAD_BYTES and (data := os.read(_IN, HEAD_BYTES - len(head))):
        head += data
    if not head:
        return Stream(iter(()))
    return Stream(iter_chunks(_IN, decompressor_maker(head, site_packages), head))


def _forget_imports() -> None:
    """Make every further import fail: a module would be looked for in the tree, which is a stranger's."""
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_importer_cache.clear()


# --- the way in ---


def _enter(request: Request, *, writes: bool) -> None:
    """Make the tree the root.

    ``namespace``: a descriptor of a mount namespace, of which the tree is the root. Otherwise ``root``: its
    directory, and ``mounts``: source, path inside of it, target and whether it is read-only, of what is
    mounted over it.
    """
    if request["namespace"] >= 0:
        confinement.enter_mounts(request["namespace"])
        os.close(request["namespace"])
        confinement.own_mounts()
    else:
        confinement.own_mounts()
        root = Path(request["root"])
        _attach(root)
        for source, subpath, target, read_only in request["mounts"]:
            _attach_inside(root, _copy_source(source, subpath), target, read_only=read_only)
        confinement.pivot_into(root)
    tree = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    attributes = _ATTRIBUTES if writes else _ATTRIBUTES | mount.MountAttr.RDONLY
    mount.mount_setattr(tree, set_attributes=attributes, recursive=True)
    os.close(tree)


def _attach(root: Path) -> None:
    """Mount the tree on itself: only a mount can become the root."""
    copy = mount.open_tree(root)
    mount.move_mount(copy, root)
    os.close(copy)


def _copy_source(source: str, subpath: str) -> int:
    """Copy the mount of what is to be mounted. What is inside of it is a stranger's: no link leads out."""
    try:
        fd = os.open(source, os.O_PATH | os.O_CLOEXEC)
        if subpath:
            resolve = mount.Resolve.IN_ROOT | mount.Resolve.NO_MAGICLINKS
            fd = mount.openat2(fd, subpath, os.O_PATH, resolve=resolve)
    except OSError:
        where = f"{source}/{subpath}".rstrip("/")
        raise Refusal("invalid", f"mount source path does not exist: {where}") from None
    return mount.copy_mount(fd)


def _attach_inside(root: Path, copy: int, target: str, *, read_only: bool) -> None:
    """Mount inside the tree, whose links may point anywhere and are taken as if it were the root already."""
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    resolve = mount.Resolve.IN_ROOT | mount.Resolve.NO_MAGICLINKS
    parts = [part for part in target.split("/") if part]
    fd = top
    for depth, name in enumerate(parts, start=1):
        above, path = fd, "/".join(parts[:depth])
        try:
            fd = mount.openat2(top, path, os.O_PATH, resolve=resolve)
        except FileNotFoundError:
            # As the runtime does at the start: the mount needs something to be on.
            if depth < len(parts) or stat.S_ISDIR(os.fstat(copy).st_mode):
                os.mkdir(name, 0o755, dir_fd=above)
            else:
                os.mknod(name, stat.S_IFREG | 0o644, dir_fd=above)
            fd = mount.openat2(top, path, os.O_PATH, resolve=resolve)
    if read_only:
        mount.mount_setattr(copy, set_attributes=mount.MountAttr.RDONLY, recursive=True)
    mount.move_mount_onto(copy, fd)


# --- deeds ---


def _stat(request: Request, answers: _Answers, source: Stream | None) -> object:
    answers.say(found=find(request["path"]).describe())
    return None


def _read(request: Request, answers: _Answers, source: Stream | None) -> object:
    found = find(request["path"])
    system = _KERNEL_FILE_SYSTEMS.get(confinement.file_system_type(found.fd))
    if system is not None:
        raise Refusal(
            "invalid", f"{found.path} is on a kernel file system ({system}), which cannot be copied"
        )
    name = os.fsencode(base_name(found.path))
    if not found.is_directory:
        os.fchdir(_open_directory(found.path.rpartition("/")[0] or "/"))
        status = os.lstat(name)
    answers.say(found=found.describe())
    tar = TarWriter(_to_fd(_OUT))
    members = MemberWriter(tar)
    if found.is_directory:
        # Docker calls the root "/", and what is in it "/name".
        prefix = b"" if name == b"/" else name
        fd = mount.openat2(found.fd, ".", os.O_RDONLY | os.O_DIRECTORY)
        status = os.fstat(fd)
        tar.add(prefix + b"/", status, xattrs=read_xattrs(fd))
        write_tree(
            fd, members, prefix=prefix + b"/", is_skipped=lambda visit: _is_kernels(visit, status.st_dev)
        )
    else:
        members.write(name, status, name)
    tar.finish()
    return None


def _is_kernels(visit: Visit, device: int) -> bool:
    """Whether a directory is where a file system of the kernel is mounted, or the devices."""
    if visit.status.st_dev == device:
        return False
    return visit.path == b"/dev" or confinement.file_system_type(visit.fd) in _KERNEL_FILE_SYSTEMS


def _export(request: Request, answers: _Answers, source: Stream | None) -> object:
    answers.say(found={})
    tar = TarWriter(_to_fd(_OUT))
    write_tree(_open_directory("/"), MemberWriter(tar))
    tar.finish()
    return None


def _layer(request: Request, answers: _Answers, source: Stream | None) -> object:
    sink = _LayerSink(request["out"], request["digest"])
    tar = TarWriter(sink.write)
    write_layer(_open_directory("/"), request["below"], tar, _ignored(request))
    return _finish_layer(request, tar, sink)


def _changes(request: Request, answers: _Answers, source: Stream | None) -> object:
    changes = list_changes(_open_directory("/"), request["below"], _ignored(request))
    answers.say(found={})
    put = _to_fd(_OUT)
    for start in range(0, len(changes), 1000):
        part = [[kind, path.decode("utf-8", "replace")] for kind, path in changes[start : start + 1000]]
        put(json.dumps(part).encode() + b"\n")
    return None


def _write(request: Request, answers: _Answers, source: Stream | None) -> object:
    path = follow(find(request["path"]).path)
    try:
        directory = _open_directory(path)
    except NotADirectoryError:
        raise Refusal("invalid", "extraction point is not a directory") from None
    except FileNotFoundError:
        raise Refusal("missing", path) from None
    _check_writable(request, path)
    owner = find_owner(request["user"]) if request["user"] else None
    extractor = Extractor(directory, path, strict=request["strict"], owner=owner, max_entries=MAX_ENTRIES)
    if source is not None and not source.is_over():
        extractor.extract(source)
    return None


def _rewrite(request: Request, answers: _Answers, source: Stream | None) -> object:
    """Check a stranger's archive and write it anew; see ``rewrite``."""
    answers.say(found={})
    tar = TarWriter(_to_fd(_OUT))
    if source is not None and not source.is_over():
        below = os.fsencode(request["below"]) if request["below"] is not None else None
        rewrite(source, tar, below=below, for_guest=request["for_guest"], max_entries=MAX_ENTRIES)
    tar.finish()
    return None


def _unpack_upper(request: Request, answers: _Answers, source: Stream | None) -> object:
    """Unpack an overlay's upper directory, as a guest wrote it, into the tree."""
    directory = _open_directory("/")
    extractor = Extractor(directory, "/", strict=False, owner=None, max_entries=MAX_ENTRIES, is_upper=True)
    if source is not None and not source.is_over():
        extractor.extract(source)
    return None


def _finish_layer(request: Request, tar: TarWriter, sink: _LayerSink) -> object:
    """End the tar, and write its image too when a place for it was given."""
    tar.finish()
    digest = sink.digest.hexdigest()
    if request["image"] >= 0 and tar.members:
        write_own_image(request["out"], request["image"], digest=bytes.fromhex(digest), size=sink.size)
    return {"digest": digest, "size": sink.size, "members": tar.members}


def _assemble(request: Request, answers: _Answers, source: Stream | None) -> object:
    """Write what a COPY or ADD of a build makes as a layer; see ``assemble``."""
    with os.fdopen(request["plan"], "rb") as file:
        plan = json.load(file)
    sink = _LayerSink(request["out"], request["digest"])
    tar = TarWriter(sink.write)
    Assembler(request["below"], tar, plan, sys.argv[2]).write(plan["items"])
    return _finish_layer(request, tar, sink)


_DEEDS: dict[str, tuple[Callable[[Request, _Answers, Stream | None], object], tuple[str, ...]]] = {
    "stat": (_stat, _READ),
    "read": (_read, _READ),
    "write": (_write, _WRITE),
    "export": (_export, _READ),
    "layer": (_layer, _READ_TRUSTED),
    "assemble": (_assemble, _READ),
    "changes": (_changes, _READ_TRUSTED),
    "rewrite": (_rewrite, ()),
    "unpack_upper": (_unpack_upper, (*_WRITE, "SYS_ADMIN")),
}


# --- machinery ---


class Digest(Protocol):
    """A running digest of hashlib."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


class _LayerSink:
    """Writes a layer to a file, hashing it, and stops before the disk is full."""

    def __init__(self, fd: int, digest: Digest) -> None:
        self._fd = fd
        self._put = _to_fd(fd)
        self._check_at = _CHECK_EVERY_BYTES
        self.digest = digest
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.digest.update(data)
        self._put(data)
        self.size += len(data)
        if self.size >= self._check_at:
            self._check_at = self.size + _CHECK_EVERY_BYTES
            space = os.fstatvfs(self._fd)
            if space.f_bavail * space.f_frsize < RESERVE_BYTES:
                raise Refusal("failed", "no space left on device")


def _check_writable(request: Request, path: str) -> None:
    """Refuse what the container may not write itself, in Docker's words."""
    here = path.rstrip("/") + "/"
    inside = [(target, writable) for target, writable in request["volumes"] if here.startswith(target + "/")]
    if inside:
        if not max(inside)[1]:  # the innermost: a target inside another one is longer
            raise Refusal("invalid", "mounted volume is marked read-only")
    elif request["read_only_root"]:
        raise Refusal("invalid", "container rootfs is marked read-only")


def _open_directory(path: str) -> int:
    return mount.openat2(
        mount.AT_FDCWD, os.fsencode(path), os.O_RDONLY | os.O_DIRECTORY, resolve=mount.Resolve.NO_MAGICLINKS
    )


def _ignored(request: Request) -> frozenset[bytes]:
    return frozenset(os.fsencode(path) for path in request["ignored"])


def _to_fd(fd: int) -> Callable[[bytes | bytearray | memoryview], None]:
    def put(data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    return put


if __name__ == "__main__":
    main()

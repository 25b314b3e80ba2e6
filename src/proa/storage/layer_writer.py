# SPDX-License-Identifier: Apache-2.0
"""The confined child that turns one layer blob into an EROFS image; started by ``proa.storage.layers``.

All parsing of a stranger's archive happens here: decompression, tar, the tree. Before the first byte is read
the process has no privileges, no files but the two it was given, limits on memory, output and processor
time, and dies with its parent. Decompression, digest and image go in one pass.

    usage: BOOTSTRAP blob_fd image_fd max_bytes max_inodes memory_bytes cpu_s site_packages

It answers with one line on standard output, ``ok HEX TAR_BYTES INODES`` or ``bad SENTENCE``, and exits with
0; the image is then synced to disk. Any other end (a signal, a traceback) is a failure of the machinery.

Source: OCI image-spec, layer.md, media types; prctl(2), setrlimit(2).
"""

from __future__ import annotations

import ctypes
import errno
import gc
import hashlib
import io
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator

from proa.storage.decompression import (
    CHUNK_BYTES,
    HEAD_BYTES,
    Decompressor,
    decompressor_maker,
    iter_chunks,
)
from proa.storage.erofs import ImageWriter
from proa.storage.tar import BadTar, Stream, iter_entries
from proa.storage.tree import Tree

NOBODY = 65534  # owns no file that matters; the kernel's overflow uid
INODE_BYTES = 1024  # of the image for each inode, at most: itself, its name of 255 bytes twice, its xattrs
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38


class _Digester:
    """Passes chunks on, counting and hashing them."""

    def __init__(self, chunks: Iterator[bytes], max_bytes: int) -> None:
        self._chunks = chunks
        self._max_bytes = max_bytes
        self._sha256 = hashlib.sha256()
        self.count = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.count += len(chunk)
            if self.count > self._max_bytes:
                raise BadTar(f"it has more than {self._max_bytes} bytes, the limit for a layer")
            self._sha256.update(chunk)
            yield chunk

    def digest(self) -> bytes:
        return self._sha256.digest()


def main() -> None:
    """Run as described above, with the arguments of sys.argv."""
    blob, image, max_bytes, max_inodes, memory_bytes, cpu_s = (int(word) for word in sys.argv[1:7])
    gc.disable()  # a tree of up to a million nodes, none of it garbage: looking costs a tenth of the time
    maker = decompressor_maker(os.pread(blob, HEAD_BYTES, 0), sys.argv[7])
    # A file of 2049 bytes takes a block; xattrs are in the tar as well.
    max_image_bytes = 2 * max_bytes + max_inodes * INODE_BYTES
    _confine(max_image_bytes=max_image_bytes, memory_bytes=memory_bytes, cpu_s=cpu_s)
    try:
        answer = _run(blob, image, maker, max_bytes=max_bytes, max_inodes=max_inodes)
    except BadTar as error:
        answer = f"bad {error}"
    except MemoryError:
        answer = f"bad it needs more than {memory_bytes} bytes of memory, the limit for a layer"
    except OSError as error:
        if error.errno != errno.EFBIG:
            # Not the archive's fault: the disk is full, or broken.
            print(error.strerror, file=sys.stderr)
            sys.exit(1)
        answer = f"bad its files have more than {max_image_bytes} bytes, the limit for a layer"
    print(answer)


def _run(
    blob: int, image: int, maker: Callable[[], Decompressor] | None, *, max_bytes: int, max_inodes: int
) -> str:
    digester = _Digester(iter_chunks(blob, maker), max_bytes)
    stream = Stream(iter(digester))
    tree = Tree(max_inodes)
    with io.BufferedWriter(io.FileIO(image, "w", closefd=False), buffer_size=CHUNK_BYTES) as file:
        writer = ImageWriter(file)
        for entry in iter_entries(stream):
            node = tree.add(entry)
            if node is None:
                stream.skip(entry.stored)
                continue
            if entry.size > max_bytes:
                raise BadTar(f"it has a file of {entry.size} bytes, the limit for a layer is {max_bytes}")
            node.size = entry.size
            if entry.pieces is None:
                writer.write_content(node, stream.pass_on)
            else:
                writer.write_sparse(node, entry.pieces, stream.pass_on)
        stream.drain()
        tree.finish()
        digest = digester.digest()
        inodes = writer.finish(tree.root, identity=digest[:16], tar_size=digester.count)
    os.fsync(image)
    return f"ok {digest.hex()} {digester.count} {inodes}"


def _confine(*, max_image_bytes: int, memory_bytes: int, cpu_s: int) -> None:
    """Give up everything that reading a stream and writing a file do not need.

    Modules are imported by now: the installation may lie where nobody may read.
    """
    for limit, value in (
        (resource.RLIMIT_FSIZE, max_image_bytes),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # The soft limit of processor time ends in SIGXCPU, which says why; the hard one in SIGKILL.
        spare = 1 if limit == resource.RLIMIT_CPU and value < hard % (1 << 64) else 0
        resource.setrlimit(limit, (value, value + spare))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    parent = os.getppid()
    for option, value in (
        (_PR_SET_NO_NEW_PRIVS, 1),
        (_PR_SET_DUMPABLE, 0),
        (_PR_SET_PDEATHSIG, signal.SIGKILL),
    ):
        if prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "prctl")
    if os.getppid() != parent:  # it died before it was watched
        os._exit(1)
    # After fork and exec fail with EAGAIN, for this uid and whatever it may become.
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


if __name__ == "__main__":
    main()

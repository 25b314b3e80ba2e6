# SPDX-License-Identifier: Apache-2.0
"""A layer's tar as an EROFS image, in one pass; runs in the confined children. Standard library only."""

from __future__ import annotations

import io
import os

from proa.storage.decompression import CHUNK_BYTES, iter_chunks
from proa.storage.erofs import ImageWriter
from proa.storage.tar import BadTar, Stream, iter_entries
from proa.storage.tree import Tree

MAX_INODES = 1_000_000  # of a layer that a child has made itself


def fill_image(stream: Stream, tree: Tree, writer: ImageWriter, *, max_bytes: int) -> None:
    """Put every member of the tar into the tree, and its content into the image. Raises BadTar."""
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


def write_own_image(tar: int, image: int, *, digest: bytes, size: int) -> None:
    """Write the image of a tar that this process has just written to the file ``tar``, and sync it.

    :param digest: of the tar's ``size`` bytes.
    :raises BadTar: there are too many files.
    """
    os.lseek(tar, 0, os.SEEK_SET)
    tree = Tree(MAX_INODES)
    with io.BufferedWriter(io.FileIO(image, "w", closefd=False), buffer_size=CHUNK_BYTES) as file:
        writer = ImageWriter(file)
        fill_image(Stream(iter_chunks(tar, None)), tree, writer, max_bytes=1 << 63)
        writer.finish(tree.root, identity=digest[:16], tar_size=size)
    os.fsync(image)

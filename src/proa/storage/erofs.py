# SPDX-License-Identifier: Apache-2.0
"""Writes an EROFS image in one pass: contents as they come, then the tree.

Uncompressed, 4 KiB blocks, 64-byte inodes, nothing newer than Linux 5.4 reads, so the guest's kernel and any
host agree on it. The same input gives the same bytes. Runs in the confined child: standard library only.

    block 0           1024 zero bytes, the superblock, zeros
    blocks 1…         contents, whole blocks, in the order of the archive
    metadata          inodes in slots of 32 bytes; each with its xattrs and, where short, the content's tail,
                      which must not cross a block boundary
    directories       directory blocks that are not tails

Because a layer's content is written before its tree is known, the superblock's ``meta_blkaddr`` is what
points at the metadata; inode numbers (slots) count from there.

Source: Linux, fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable
from typing import BinaryIO

from proa.storage.tar import BadTar
from proa.storage.tree import Node

BLOCK_BITS = 12
BLOCK = 1 << BLOCK_BITS
SUPERBLOCK_OFFSET = 1024
# volume_name[16] of the superblock carries the length of the tar stream as 15 hex digits: the Engine API
# reports it as the layer's size, and here it is made durable together with the layer.
VOLUME_NAME_OFFSET = SUPERBLOCK_OFFSET + 64
VOLUME_NAME_LENGTH = 15  # and a NUL, without which Linux 6.1 refuses the image
MAGIC = 0xE0F5E1E2

TAIL_MAX = 2048  # longer ends get a block: a tail twice this long would leave half of its block unused
TAILS_MAX = 64 << 20  # bytes of tails held in memory until the tree is written; later contents get blocks
_SLOT = 32
_INODE = 64
_FIRST_SLOT = 2  # 0 would be an inode number that readdir(3) hides
_DIRENT = 12
_FEATURE_COMPAT_MTIME = 2  # times in inodes are mtimes
_EXTENDED = 1  # i_format, bit 0
_FLAT_PLAIN, _FLAT_INLINE = 0 << 1, 2 << 1  # i_format, bits 1 to 3

_SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23s")
_INODE_STRUCT = struct.Struct("<HHHHQIIIIqIII12x")
_XATTR_ENTRY = struct.Struct("<BBH")
_XATTR_HEADER = 12

_XATTR_PREFIXES = (  # name index, prefix; a name without a known prefix cannot be stored, nor set on ext4
    (1, b"user."),
    (4, b"trusted."),
    (6, b"security."),
)
_XATTR_ACLS = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}
_FILE_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFLNK: 7,
}


class ImageWriter:
    """Writes one image to ``file``, an empty, seekable, buffered file that the caller closes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._next_block = 1
        self._tail_bytes = 0
        file.write(bytes(BLOCK))

    # --- contents, in any order ---

    def write_content(self, node: Node, copy: Callable[[int, Callable[[memoryview], object]], None]) -> None:
        """Store ``node.size`` bytes, which ``copy(count, sink)`` delivers in sequence."""
        length = node.size % BLOCK
        if length > TAIL_MAX or self._tail_bytes + length > TAILS_MAX:
            length = 0
        whole = node.size - length
        if whole:
            copy(whole, self._file.write)
            self._file.write(bytes(-whole % BLOCK))
            self._take_blocks(node, whole)
        if length:
            parts: list[bytes] = []
            copy(length, lambda part: parts.append(bytes(part)))
            node.tail = b"".join(parts)
            self._tail_bytes += length

    def write_sparse(
        self,
        node: Node,
        pieces: list[tuple[int, int]],
        copy: Callable[[int, Callable[[memoryview], object]], None],
    ) -> None:
        """Store a file of which only ``pieces`` (offset, length) are delivered; the rest is zero, and is a
        hole in the image too."""
        start = self._file.tell()
        for offset, length in pieces:
            self._file.seek(start + offset)
            copy(length, self._file.write)
        self._take_blocks(node, node.size)
        # The next content begins behind, and the file must reach that far even when nothing follows.
        self._file.seek(self._next_block * BLOCK)

    def _take_blocks(self, node: Node, length: int) -> None:
        node.block = self._next_block
        self._next_block += -(-length // BLOCK)
        if self._next_block >= 1 << 32:
            raise BadTar("the layer is larger than an EROFS image can be")

    # --- the tree ---

    def finish(self, root: Node, *, identity: bytes, tar_size: int) -> int:
        """Write the tree and the superblock; return the number of inodes.

        :param identity: 16 bytes for the superblock's uuid.
        """
        nodes = _in_order(root)
        xattrs = [_xattrs(node) for node in nodes]
        listings = [_Listing(node) if node.children is not None else None for node in nodes]
        end = self._place(nodes, xattrs, listings)
        metadata_block = self._next_block
        directory_block = metadata_block + -(-end // BLOCK)
        position = 0
        for number, (node, attributes, listing) in enumerate(zip(nodes, xattrs, listings, strict=True), 1):
            if listing is not None:
                node.block = directory_block
                directory_block += listing.whole_blocks
                node.size = listing.size
                listing.fill(node)
                node.tail = listing.tail
            self._file.write(bytes(node.slot * _SLOT - position))
            data = _inode(node, number, len(attributes)) + attributes + node.tail
            self._file.write(data)
            position = node.slot * _SLOT + len(data)
        self._file.write(bytes(-position % BLOCK))
        for listing in listings:
            if listing is not None:
                self._file.write(listing.blocks)
        self._write_superblock(root.slot, len(nodes), metadata_block, directory_block, identity, tar_size)
        return len(nodes)

    def _place(self, nodes: list[Node], xattrs: list[bytes], listings: list[_Listing | None]) -> int:
        """Give each inode its slot; return the end of the metadata in bytes."""
        at = _FIRST_SLOT * _SLOT
        for node, attributes, listing in zip(nodes, xattrs, listings, strict=True):
            if stat.S_ISLNK(node.mode) and len(node.tail) > TAIL_MAX:
                self._move_to_block(node)
            tail = len(node.tail) if listing is None else listing.tail_size
            head = _INODE + len(attributes)
            if tail and (at + head) // BLOCK != (at + head + tail - 1) // BLOCK:
                # Put the inode where its tail begins the next block.
                border = -(-(at + head) // BLOCK) * BLOCK
                at = max(at, -(-(border - head) // _SLOT) * _SLOT)
            node.slot = at // _SLOT
            at = -(-(at + head + tail) // _SLOT) * _SLOT
        return at

    def _move_to_block(self, node: Node) -> None:
        self._file.write(node.tail.ljust(BLOCK, b"\0"))
        node.tail = b""
        self._take_blocks(node, node.size)

    def _write_superblock(
        self, root_slot: int, inodes: int, metadata_block: int, blocks: int, identity: bytes, tar_size: int
    ) -> None:
        if blocks >= 1 << 32:
            raise BadTar("the layer is larger than an EROFS image can be")
        label = f"{tar_size:0{VOLUME_NAME_LENGTH}x}".encode()
        superblock = _SUPERBLOCK.pack(
            *(MAGIC, 0, _FEATURE_COMPAT_MTIME, BLOCK_BITS, 0, root_slot, inodes),
            *(0, 0, blocks, metadata_block, 0, identity, label),  # build time 0, no shared xattrs
            *(0, 0, 0, 0, 0, 0, 0, 0, 0, b""),  # no incompatible feature, compression, device or prefix
        )
        self._file.seek(SUPERBLOCK_OFFSET)
        self._file.write(superblock)


class _Listing:
    """The directory blocks of one directory: names in byte order, "." and ".." among them.

    A block begins with a 12-byte record for each name in it, the names follow. The number of the records is
    read from the first record's name offset; a last name ends at a NUL or the end of the block.
    """

    def __init__(self, node: Node) -> None:
        assert node.children is not None and node.parent is not None
        self._entries: list[tuple[bytes, Node]] = sorted(
            [(b".", node), (b"..", node.parent), *node.children.items()], key=lambda item: item[0]
        )
        self._cuts = [0]  # index of the first entry of each block
        used = 0
        for index, (name, _) in enumerate(self._entries):
            need = _DIRENT + len(name)
            if used + need > BLOCK:
                self._cuts.append(index)
                used = 0
            used += need
        self.tail_size = used if used <= TAIL_MAX else 0
        self.size = (len(self._cuts) - 1) * BLOCK + used
        self.whole_blocks = len(self._cuts) - (self.tail_size > 0)
        self.blocks = b""
        self.tail = b""

    def fill(self, node: Node) -> None:
        """Write the blocks, once every inode has its number."""
        ends = [*self._cuts[1:], len(self._entries)]
        data = [self._block(self._entries[a:b]) for a, b in zip(self._cuts, ends, strict=True)]
        if self.tail_size:
            self.tail = data.pop()
        self.blocks = b"".join(block.ljust(BLOCK, b"\0") for block in data)
        self._entries = []

    @staticmethod
    def _block(entries: list[tuple[bytes, Node]]) -> bytes:
        offset = _DIRENT * len(entries)
        records = []
        for name, child in entries:
            records.append(struct.pack("<QHBB", child.slot, offset, _FILE_TYPES[stat.S_IFMT(child.mode)], 0))
            offset += len(name)
        return b"".join([*records, *(name for name, _ in entries)])


def _in_order(root: Node) -> list[Node]:
    """All inodes, each once, a directory's children together: what is read together lies together."""
    nodes = [root]
    seen = {id(root)}
    for node in nodes:  # grows while it is walked
        if node.children is None:
            continue
        for _, child in sorted(node.children.items()):
            if child.links > 1 or child.children is not None:
                if id(child) in seen:
                    continue
                seen.add(id(child))
            nodes.append(child)
    return nodes


def _inode(node: Node, number: int, xattr_bytes: int) -> bytes:
    links = node.links
    if node.children is not None:
        links = 2 + sum(1 for child in node.children.values() if child.children is not None)
    return _INODE_STRUCT.pack(
        _EXTENDED | (_FLAT_INLINE if node.tail else _FLAT_PLAIN),
        (xattr_bytes - _XATTR_HEADER) // 4 + 1 if xattr_bytes else 0,
        node.mode,
        0,
        node.size,
        node.rdev if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode) else node.block,
        number & 0xFFFFFFFF,
        node.uid,
        node.gid,
        node.mtime,
        node.mtime_nsec,
        links,
        0,
    )


def _xattrs(node: Node) -> bytes:
    """The inline xattr area: a header, then entries padded to four bytes."""
    if not node.xattrs:
        return b""
    entries = []
    for name, value in sorted(node.xattrs.items()):
        index, suffix = _xattr_index(name)
        if index:
            entry = _XATTR_ENTRY.pack(len(suffix), index, len(value)) + suffix + value
            entries.append(entry + bytes(-len(entry) % 4))
    return bytes(_XATTR_HEADER) + b"".join(entries) if entries else b""


def _xattr_index(name: bytes) -> tuple[int, bytes]:
    if acl := _XATTR_ACLS.get(name):
        return acl, b""
    for index, prefix in _XATTR_PREFIXES:
        if name.startswith(prefix) and len(name) > len(prefix):
            return index, name[len(prefix) :]
    return 0, b""

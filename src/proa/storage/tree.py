# SPDX-License-Identifier: Apache-2.0
"""What a layer's tar stream means: a tree of files in memory, without their contents.

Gives names their meaning as Docker and containerd do when they unpack, only that nothing is unpacked, so a
name or link can at worst spoil the layer that it came with: names are taken below the layer's root, a
symbolic link among the parents is followed inside the tree, a later entry replaces an earlier one, a missing
parent is made 0755 root:root. Whiteouts become what overlayfs understands: a 0:0 character device in place of
what is hidden, and the xattr ``trusted.overlay.opaque`` on a directory that hides all below. Other
``trusted.overlay`` xattrs are dropped, because with them a layer could redirect names. Runs in the confined
child: standard library only.

Source: OCI image-spec, layer.md, Changesets and Whiteouts; Linux, Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence

from proa.storage.tar import BadTar, Entry, Kind, find_components

NAME_MAX = 255  # bytes of one component; EROFS_NAME_LEN
PATH_MAX = 4095  # bytes of a whole name or link target; PATH_MAX without its NUL
LINKS_MAX = 40  # symbolic links followed on one path, as the kernel does
XATTR_NAME_MAX = 255  # XATTR_NAME_MAX
XATTRS_MAX = 64 * 1024  # bytes of all xattrs of a file; the kernel's limit for one value

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS_META = b".wh..wh."
_XATTR_OPAQUE = b"trusted.overlay.opaque"
_XATTR_ORIGIN = b"trusted.overlay.origin"
_XATTR_OVERLAY = b"trusted.overlay."

_TYPES = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}


class Node:
    """One inode. ``mode`` has the type bits. ``children`` is None unless it is a directory.

    :ivar block: number of the first content block in the image, ``tail`` the end of the content that is kept
        beside the inode (of a symbolic link: its target); ``slot`` is the inode's number. All three are
        the image writer's.
    """

    __slots__ = (
        "block",
        "children",
        "gid",
        "hidden",
        "links",
        "mode",
        "mtime",
        "mtime_nsec",
        "parent",
        "rdev",
        "size",
        "slot",
        "tail",
        "uid",
        "xattrs",
    )

    def __init__(self, mode: int, *, uid: int = 0, gid: int = 0, mtime: int = 0, mtime_nsec: int = 0) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.mtime_nsec = mtime_nsec
        self.xattrs: dict[bytes, bytes] | None = None
        self.children: dict[bytes, Node] | None = {} if stat.S_ISDIR(mode) else None
        self.parent: Node | None = None
        self.hidden = False  # stands for something that is not there: a whiteout
        self.links = 1
        self.size = 0
        self.rdev = 0
        self.block = 0
        self.tail = b""
        self.slot = 0

    def set_xattr(self, name: bytes, value: bytes) -> None:
        if self.xattrs is None:
            self.xattrs = {}
        self.xattrs[name] = value


class Tree:
    """The tree that a layer's entries make, added in the order of the archive.

    :param max_inodes: how many files and directories there may be, those made for missing parents included.
    """

    def __init__(self, max_inodes: int) -> None:
        self._max_inodes = max_inodes
        self._made = 0
        self.root = Node(stat.S_IFDIR | 0o755)
        self.root.parent = self.root
        self._root_seen = False

    def add(self, entry: Entry) -> Node | None:
        """Put an entry in its place. Returns the node whose content follows in the stream, or None.

        :raises BadTar: the name leads out of the layer, a link points to nothing in it, a limit is exceeded.
        """
        parts = _components(entry.name)
        if not parts:
            if entry.kind is not Kind.DIRECTORY:
                raise BadTar(f"the root of the layer is a {entry.kind.value}")
            self._root_seen = True
            _describe(self.root, entry)
            return None
        if not self._root_seen:
            # Something has to be its time, the same each time the layer is stored.
            self._root_seen, self.root.mtime, self.root.mtime_nsec = True, entry.mtime, entry.mtime_nsec
        parent = self._directory(parts[:-1], entry)
        name = parts[-1]
        if name.startswith(_WHITEOUT):
            self._hide(parent, name, entry)
            return None
        if entry.kind is Kind.HARDLINK:
            self._link(parent, name, entry)
            return None
        node = self._place(parent, name, entry)
        return node if entry.kind is Kind.FILE else None

    def finish(self) -> None:
        """Mark the directories that hold whiteouts, so that overlayfs filters their listing even where no
        other layer has the directory.

        Source: Linux b79e05aaa166, "ovl: no direct iteration for dir with origin xattr".
        """
        pending = [self.root]
        while pending:
            directory = pending.pop()
            for child in (directory.children or {}).values():
                if child.hidden:
                    directory.set_xattr(_XATTR_ORIGIN, b"")
                elif child.children is not None:
                    pending.append(child)

    def _place(self, parent: Node, name: bytes, entry: Entry) -> Node:
        assert parent.children is not None
        mode = _TYPES[entry.kind] | entry.mode
        old = parent.children.get(name)
        if old is not None and old.children is not None and entry.kind is Kind.DIRECTORY:
            _describe(old, entry)
            return old
        node = Node(mode)
        _describe(node, entry)
        if entry.kind is Kind.SYMLINK:
            if not entry.link or len(entry.link) > PATH_MAX:
                raise BadTar(f"{_show(entry.name)}: a symbolic link of {len(entry.link)} bytes")
            node.size = len(entry.link)
            node.tail = entry.link
            node.mode = stat.S_IFLNK | 0o777
        elif entry.kind in (Kind.CHARACTER, Kind.BLOCK):
            node.rdev = _device_number(entry)
        if old is not None and old.hidden and node.children is not None:
            node.set_xattr(_XATTR_OPAQUE, b"y")
        self._attach(parent, name, node, old)
        return node

    def _link(self, parent: Node, name: bytes, entry: Entry) -> None:
        assert parent.children is not None
        target = self._find(_components(entry.link), entry)
        if target is None or target.children is not None or target.hidden:
            raise BadTar(
                f"{_show(entry.name)}: hard link to {_show(entry.link)}, which is no file of the layer"
            )
        old = parent.children.get(name)
        if old is target:
            return
        target.links += 1
        self._attach(parent, name, target, old)

    def _hide(self, parent: Node, name: bytes, entry: Entry) -> None:
        assert parent.children is not None
        if name == _OPAQUE:
            parent.set_xattr(_XATTR_OPAQUE, b"y")
            return
        if name.startswith(_AUFS_META):
            return  # bookkeeping of aufs (.wh..wh.plnk), in layers of its time
        hidden = name[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise BadTar(f"{_show(entry.name)}: a whiteout of nothing")
        old = parent.children.get(hidden)
        if old is None:
            node = Node(stat.S_IFCHR, mtime=entry.mtime, mtime_nsec=entry.mtime_nsec)
            node.hidden = True
            self._attach(parent, hidden, node, None)
        elif old.children is not None:
            # A whiteout concerns lower layers only: what this layer itself put there stays.
            old.set_xattr(_XATTR_OPAQUE, b"y")

    def _directory(self, parts: Sequence[bytes], entry: Entry) -> Node:
        """Walk to a directory, making what is missing."""
        node = self._walk(parts, entry, make=True)
        assert node is not None
        return node

    def _find(self, parts: Sequence[bytes], entry: Entry) -> Node | None:
        """Find what a hard link names: parents are followed, the last component is not."""
        if not parts:
            return self.root
        parent = self._walk(parts[:-1], entry, make=False)
        return parent.children.get(parts[-1]) if parent is not None and parent.children is not None else None

    def _walk(self, parts: Sequence[bytes], entry: Entry, *, make: bool) -> Node | None:
        node = self.root
        followed = 0
        todo = [*reversed(parts)]
        while todo:
            name = todo.pop()
            if name == b"..":  # only from links: the root's parent is the root
                assert node.parent is not None
                node = node.parent
                continue
            assert node.children is not None
            child = node.children.get(name)
            if child is not None and stat.S_ISLNK(child.mode):
                followed += 1
                if followed > LINKS_MAX:
                    raise BadTar(f"{_show(entry.name)}: too many levels of symbolic links")
                if child.tail.startswith(b"/"):
                    node = self.root
                todo.extend(part for part in reversed(child.tail.split(b"/")) if part not in (b"", b"."))
                continue
            if child is None or child.hidden:
                if not make:
                    return None
                made = Node(stat.S_IFDIR | 0o755, mtime=entry.mtime, mtime_nsec=entry.mtime_nsec)
                if child is not None:
                    made.set_xattr(_XATTR_OPAQUE, b"y")
                self._attach(node, name, made, child)
                child = made
            elif child.children is None:
                if not make:
                    return None
                raise BadTar(f"{_show(entry.name)}: a parent of it is not a directory")
            node = child
        return node

    def _attach(self, parent: Node, name: bytes, node: Node, old: Node | None) -> None:
        assert parent.children is not None
        self._made += 1
        if self._made > self._max_inodes:
            raise BadTar(f"it has more than {self._max_inodes} files, the limit for a layer")
        if node.children is not None:
            node.parent = parent
        if old is not None:
            for gone in _iter_nodes(old):
                gone.links -= 1
        parent.children[name] = node


def _components(name: bytes) -> tuple[bytes, ...]:
    """Cut a name into components below the layer's root."""
    if len(name) > PATH_MAX:
        raise BadTar(f"a name of {len(name)} bytes, at most {PATH_MAX} allowed")
    parts = find_components(name)
    if parts is None:
        raise BadTar(f"{_show(name)} is outside of the layer")
    # Of all that is written, also what a ".." takes away again.
    if len(name) > NAME_MAX and any(len(part) > NAME_MAX for part in name.split(b"/")):
        raise BadTar(f"{_show(name)}: file name too long")
    return parts


def _iter_nodes(node: Node) -> Iterator[Node]:
    pending = [node]
    while pending:
        node = pending.pop()
        yield node
        if node.children:
            pending.extend(node.children.values())


def _describe(node: Node, entry: Entry) -> None:
    node.mode = stat.S_IFMT(node.mode) | entry.mode
    node.uid, node.gid = entry.uid, entry.gid
    node.mtime, node.mtime_nsec = entry.mtime, entry.mtime_nsec
    opaque = node.xattrs is not None and _XATTR_OPAQUE in node.xattrs
    node.xattrs = None
    if opaque:
        node.set_xattr(_XATTR_OPAQUE, b"y")
    total = 0
    for name, value in entry.xattrs.items():
        if name.startswith(_XATTR_OVERLAY):
            continue
        total += len(name) + len(value)
        if len(name) > XATTR_NAME_MAX or not name or b"\0" in name or total > XATTRS_MAX:
            raise BadTar(f"{_show(entry.name)}: its extended attributes are too long")
        node.set_xattr(name, value)


def _device_number(entry: Entry) -> int:
    """Encode as the kernel does (new_encode_dev): 12 bits of major, 20 of minor."""
    major, minor = entry.device
    if major > 0xFFF or minor > 0xFFFFF:
        raise BadTar(f"{_show(entry.name)}: device {major}:{minor} does not exist")
    return (minor & 0xFF) | major << 8 | (minor & 0xFFF00) << 12


def _show(name: bytes) -> str:
    """A name for a message: short, without control characters."""
    text = name.decode(errors="replace")
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return f'"{text if len(text) <= 200 else text[:200] + "…"}"'

# SPDX-License-Identifier: Apache-2.0
"""The child program in which ``mke2fs`` makes an ext4 disk of an image's files; started by ``root_disk``.

The tree is a stranger's, and mke2fs a large program in C: it runs in a mount namespace of its own, in which
there are the host's programs (read-only), the tree and the directory of the new disk, as root with the one
right to read any file, without network. It goes with the daemon.

    usage: BOOTSTRAP tree_fd directory mke2fs WORD...

``tree_fd`` is the tree's directory, and becomes the working directory. ``directory`` has an empty ``root``,
and ``out``, which is /out for mke2fs.

Source: mount_namespaces(7), pivot_root(2), mke2fs(8).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from proa.host import confinement, mount

MEMORY_BYTES = 2 << 30
TIME_S = 3600  # processor time
_PROGRAMS = (
    "/bin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/sbin",
    "/usr",
    "/nix",
)  # where a loader may look
_CONFIGURATION = "/etc/mke2fs.conf"


def main() -> None:
    """Run as described above, with the arguments of sys.argv."""
    confinement.die_with_parent()
    tree, directory, words = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    confinement.own_mounts()
    confinement.own_network()
    root = directory / "root"
    mount.mount("tmpfs", root, "tmpfs", data="mode=755,size=1m")
    for path in _PROGRAMS:
        _show(Path(path), root)
    (root / "etc").mkdir()
    if Path(_CONFIGURATION).exists():
        (root / "etc" / "mke2fs.conf").write_bytes(Path(_CONFIGURATION).read_bytes())
    (root / "out").mkdir()
    _attach(directory / "out", root / "out", mount.MountAttr.NODEV | mount.MountAttr.NOSUID)
    confinement.pivot_into(root)
    os.fchdir(tree)
    os.close(tree)
    confinement.keep_capabilities(("DAC_READ_SEARCH",))
    confinement.limit(AS=MEMORY_BYTES, CPU=TIME_S, CORE=0)
    os.execv(words[0], words)


def _show(path: Path, root: Path) -> None:
    """Have a directory of the host in the new root, or the link that it is."""
    target = root / path.relative_to("/")
    if path.is_symlink():
        target.symlink_to(path.readlink())
    elif path.is_dir():
        target.mkdir()
        _attach(path, target, mount.MountAttr.RDONLY | mount.MountAttr.NODEV | mount.MountAttr.NOSUID)


def _attach(source: Path, target: Path, attributes: mount.MountAttr) -> None:
    copy = mount.open_tree(source)
    mount.mount_setattr(copy, set_attributes=attributes)
    mount.move_mount(copy, target)
    os.close(copy)

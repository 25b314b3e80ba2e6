# SPDX-License-Identifier: Apache-2.0
"""The mounted layers: one EROFS mount for each, shared by everything that runs from it.

Owns the mounts at ``exec_root/layers/<hex diff id>`` and nothing else: files are ``proa.storage.layers``'s,
overlays above them ``proa.storage.rootfs``'s. One mount for all users means one page cache for all. A mount
is made on first use and kept, because its users come and go in milliseconds; an overlay keeps what it needs
of it, so a mount may be taken away at any time, and the only loss is that the next user mounts afresh.
The state is the kernel's: what an earlier daemon mounted is found by looking.

Source: Linux, Documentation/filesystems/erofs.rst (file-backed mounts since 6.12).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection
from pathlib import Path

from proa.host import loop, mount
from proa.model.ids import Digest

# A layer's devices and set-user-id files take effect through the overlay, which has its own attributes.
_ATTRIBUTES = mount.MountAttr.RDONLY | mount.MountAttr.NODEV | mount.MountAttr.NOSUID | mount.MountAttr.NOEXEC
# What a kernel says that mounts EROFS from block devices only.
_NOT_FROM_FILES = (errno.ENOTBLK, errno.EINVAL, errno.EOPNOTSUPP)


class LayerMounts:
    """Mounts under ``directory``; ``path`` gives the image file of a layer.

    :param from_files: False to use loop devices from the start, as on kernels before 6.12.
    """

    def __init__(self, directory: Path, path: Callable[[Digest], Path], *, from_files: bool = True) -> None:
        self._directory = directory
        self._path = path
        self._from_files = from_files

    def ensure(self, diff_id: Digest) -> Path:
        """Return where the layer is mounted, mounting it if need be (0.1 ms).

        :raises OSError: the kernel cannot mount it.
        """
        target = self._target(diff_id)
        if not mount.is_mount_point(target):
            target.mkdir(parents=True, exist_ok=True)
            self._mount(self._path(diff_id), target)
        return target

    def mounted(self) -> set[Digest]:
        """Return the layers that are mounted."""
        if not self._directory.is_dir():
            return set()
        return {
            Digest(f"sha256:{target.name}")
            for target in self._directory.iterdir()
            if mount.is_mount_point(target)
        }

    def unmount(self, diff_ids: Collection[Digest]) -> None:
        """Take mounts away. Idempotent. Waits for the kernel: call it in a worker thread."""
        for diff_id in diff_ids:
            target = self._target(diff_id)
            mount.ensure_unmounted(target)
            target.rmdir() if target.exists() else None

    def _target(self, diff_id: Digest) -> Path:
        return self._directory / diff_id.removeprefix("sha256:")

    def _mount(self, file: Path, target: Path) -> None:
        if self._from_files:
            try:
                _attach(file, target)
            except OSError as error:
                if error.errno not in _NOT_FROM_FILES:
                    raise
                self._from_files = False
            else:
                return
        descriptor, device = loop.attach(file)
        try:
            _attach(device, target)
        finally:
            os.close(descriptor)


def _attach(source: Path, target: Path) -> None:
    context = mount.fsopen("erofs")
    try:
        with mount.option_path(source) as name:
            mount.fsconfig_string(context, "source", name)
            mount.fsconfig_flag(context, "ro")
            mount.fsconfig_create(context, source)
        attached = mount.fsmount(context, _ATTRIBUTES)
    finally:
        os.close(context)
    try:
        mount.move_mount(attached, target)
    finally:
        os.close(attached)

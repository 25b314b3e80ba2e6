# SPDX-License-Identifier: Apache-2.0
"""The mount calls against the kernel."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from proa.host import mount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def test_a_file_system_is_configured_mounted_found_and_unmounted(tmp_path: Path) -> None:
    target = tmp_path / "a b"
    target.mkdir()
    context = mount.fsopen("tmpfs")
    mount.fsconfig_string(context, "size", "64k")
    mount.fsconfig_flag(context, "ro")
    mount.fsconfig_create(context, target)
    attached = mount.fsmount(context, mount.MountAttr.NODEV | mount.MountAttr.NOEXEC)
    os.close(context)
    mount.move_mount(attached, target)
    os.close(attached)
    (info,) = [info for info in mount.mount_table() if info.mount_point == target]
    assert info.fs_type == "tmpfs" and {"nodev", "noexec"} <= set(info.options) and "ro" in info.super_options
    assert mount.is_mount_point(target)
    mount.ensure_unmounted(target)
    mount.ensure_unmounted(target)
    assert not mount.is_mount_point(target)


def test_a_bind_mount_is_cloned_and_made_read_only(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    tree = mount.open_tree(source)
    mount.mount_setattr(
        tree, set_attributes=mount.MountAttr.RDONLY, propagation=mount.Propagation.PRIVATE, recursive=True
    )
    mount.move_mount(tree, target)
    os.close(tree)
    with pytest.raises(OSError) as caught:
        (target / "file").touch()
    assert caught.value.errno == errno.EROFS
    mount.unmount(target)


def test_errors_name_the_path_and_carry_the_kernels_reason(tmp_path: Path) -> None:
    context = mount.fsopen("tmpfs")
    with pytest.raises(OSError, match="nonsense") as caught:
        mount.fsconfig_string(context, "nonsense", "1")
    os.close(context)
    assert caught.value.errno == errno.EINVAL and "Unknown parameter" in str(caught.value)
    with pytest.raises(OSError, match=str(tmp_path)):
        mount.unmount(tmp_path)
    with pytest.raises(OSError) as caught:
        mount.fsopen("no-such-fs")
    assert caught.value.errno == errno.ENODEV


def test_openat2_stays_in_the_root_it_is_given(tmp_path: Path) -> None:
    inside = tmp_path / "root"
    inside.mkdir()
    (tmp_path / "passwd").write_text("outside")
    (inside / "passwd").write_text("inside")
    (inside / "link").symlink_to("../../passwd")
    directory = os.open(inside, os.O_PATH)
    found = mount.openat2(directory, "link", os.O_RDONLY, resolve=mount.Resolve.IN_ROOT)
    assert os.read(found, 100) == b"inside"
    with pytest.raises(OSError) as caught:
        mount.openat2(directory, "link", os.O_RDONLY, resolve=mount.Resolve.BENEATH)
    assert caught.value.errno == errno.EXDEV
    os.close(found)
    os.close(directory)

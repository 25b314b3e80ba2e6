# SPDX-License-Identifier: Apache-2.0
"""What a machine that is made of an image boots."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from proa.machines import image_boot, root_disk
from proa.machines.image_boot import Program
from proa.model.errors import InvalidParameter


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[int]:
    """A descriptor of an image's directory, which is ``tmp_path / "tree"``."""
    (tmp_path / "tree" / "boot").mkdir(parents=True)
    fd = os.open(tmp_path / "tree", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def put(tmp_path: Path, *names: str) -> None:
    for name in names:
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), None),
        (("vmlinuz-6.1",), None),  # it could not find its disk
        (("vmlinuz-6.1", "initrd.img-6.1"), ("boot/vmlinuz-6.1", "boot/initrd.img-6.1")),
        (
            ("vmlinuz-6.1.0-9", "initrd.img-6.1.0-9", "vmlinuz-6.1.0-10", "initrd.img-6.1.0-10"),
            ("boot/vmlinuz-6.1.0-10", "boot/initrd.img-6.1.0-10"),
        ),
        (("vmlinuz-virt", "initramfs-virt"), ("boot/vmlinuz-virt", "boot/initramfs-virt")),
        (
            ("vmlinuz-6.9.fc40", "initramfs-6.9.fc40.img"),
            ("boot/vmlinuz-6.9.fc40", "boot/initramfs-6.9.fc40.img"),
        ),
    ],
)
def test_the_newest_kernel_is_found(
    tmp_path: Path, tree: int, names: tuple[str, ...], expected: tuple[str, str] | None
) -> None:
    put(tmp_path, *(f"boot/{name}" for name in names))
    assert image_boot.find_kernel(tree) == expected


def test_a_link_does_not_lead_out_of_the_image(tmp_path: Path, tree: int) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "tree" / "boot" / "vmlinuz-1").symlink_to("../../../../secret")
    (tmp_path / "tree" / "boot" / "vmlinuz-2").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "tree" / "boot" / "vmlinuz-3")
    for number in (1, 2, 3):
        with pytest.raises(InvalidParameter):
            image_boot.copy_out(tree, f"boot/vmlinuz-{number}", tmp_path / f"out{number}", limit=100)


def test_a_large_file_is_refused(tmp_path: Path, tree: int) -> None:
    put(tmp_path, "boot/vmlinuz-1")
    image_boot.copy_out(tree, "boot/vmlinuz-1", tmp_path / "out", limit=100)
    assert (tmp_path / "out").read_text() == "boot/vmlinuz-1"
    with pytest.raises(InvalidParameter, match="more than 3 bytes"):
        image_boot.copy_out(tree, "boot/vmlinuz-1", tmp_path / "other", limit=3)


def test_an_init_may_be_a_link_into_the_image(tmp_path: Path, tree: int) -> None:
    assert not image_boot.has_init(tree)
    put(tmp_path, "lib/systemd/systemd")
    (tmp_path / "tree" / "sbin").mkdir()
    (tmp_path / "tree" / "sbin" / "init").symlink_to("/lib/systemd/systemd")
    assert image_boot.has_init(tree)


PROGRAM = Program(
    uid=1, gid=2, groups=(2, 3), directory="/w", stop_signal=15, arguments=("a", "b c"), environment=("X=1",)
)


def test_the_description_of_a_program() -> None:
    assert image_boot.describe(PROGRAM) == b"1\x002\x002,3\x00/w\x0015\x002\x00a\x00b c\x00X=1\x00"


def test_a_description_too_large_is_refused() -> None:
    large = Program(
        uid=0, gid=0, groups=(), directory="/", stop_signal=15, arguments=("x" * (1 << 20),), environment=()
    )
    with pytest.raises(InvalidParameter):
        image_boot.describe(large)


def test_a_kernel_reads_the_archive(tmp_path: Path) -> None:
    """As cpio does, which knows the format."""
    base = tmp_path / "base"
    base.write_bytes(b"")
    image_boot.write_initrd([base], tmp_path / "initrd", PROGRAM)
    listed = subprocess.run(
        ["cpio", "-t", "--quiet"], input=(tmp_path / "initrd").read_bytes(), capture_output=True, check=True
    )
    assert listed.stdout == b"proa/run\n"


def test_sizes_of_root_disks() -> None:
    assert root_disk.size_for(0, 1 << 20) == root_disk.USUAL_BYTES
    assert root_disk.size_for(0, 10 << 30) == 20 << 30
    assert root_disk.size_for(32 << 20, 1) == 32 << 20
    for wanted in (1, 1 << 60):
        with pytest.raises(InvalidParameter):
            root_disk.size_for(wanted, 1)

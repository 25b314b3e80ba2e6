# SPDX-License-Identifier: Apache-2.0
"""Kernels of a container's own, and the modules of proa's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from proa.model.errors import InvalidParameter
from proa.model.ids import ContainerId
from proa.model.task import (
    BlockRootfs,
    Mount,
    MountKind,
    NetworkAttachment,
    ProcessSpec,
    TaskSpec,
    tmpfs_options,
)
from proa.runtime.seam import KERNEL_ANNOTATION, KERNEL_ARGUMENTS_ANNOTATION
from proa.runtime.vm.kernels import Choice, parse_choice, with_modules


def test_nothing_chosen_is_the_daemons_kernel() -> None:
    assert parse_choice({"other": "x"}) == Choice()


def test_a_kernel_and_its_arguments(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.touch()
    asked = {KERNEL_ANNOTATION: str(kernel), KERNEL_ARGUMENTS_ANNOTATION: " a=1   b "}
    assert parse_choice(asked) == Choice(kernel=kernel, arguments="a=1 b")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({KERNEL_ANNOTATION: "vmlinuz"}, "an absolute path"),
        ({KERNEL_ANNOTATION: "/nonesuch"}, "no such file"),
        ({KERNEL_ANNOTATION: "/etc"}, "no such file"),
        ({KERNEL_ARGUMENTS_ANNOTATION: "a\nb"}, "printable ASCII"),
        ({KERNEL_ARGUMENTS_ANNOTATION: "ä"}, "printable ASCII"),
        ({KERNEL_ARGUMENTS_ANNOTATION: "a" * 1025}, "longer than 1024"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        parse_choice(asked)


def test_modules_are_mounted_unless_something_is_there(tmp_path: Path) -> None:
    spec = TaskSpec(
        id=ContainerId("a" * 64),
        rootfs=BlockRootfs(layers=(), writable=Path("/w"), blank=Path("/b"), is_new=True),
        process=ProcessSpec(args=("true",)),
        network=NetworkAttachment(),
        hostname="h",
        log_path=Path("/l"),
    )
    assert with_modules(spec, tmp_path) == spec
    modules = tmp_path / "kernel" / "tree" / "6.1"
    modules.mkdir(parents=True)
    (tmp_path / "kernel" / "version").write_text("6.1\n")
    (mount,) = with_modules(spec, tmp_path).mounts
    assert (mount.source, mount.target, mount.read_only) == (modules, "/lib/modules/6.1", True)
    taken = replace(spec, mounts=(Mount(kind=MountKind.TMPFS, target="/lib/modules"),))
    assert with_modules(taken, tmp_path) == taken
    near = replace(spec, mounts=(Mount(kind=MountKind.TMPFS, target="/lib/mod"),))
    assert len(with_modules(near, tmp_path).mounts) == 2


def test_a_tmpfs_keeps_dockers_defaults_unless_they_are_turned_round() -> None:
    def options(*given: str, read_only: bool = False) -> tuple[str, ...]:
        return tmpfs_options(Mount(kind=MountKind.TMPFS, target="/t", options=given, read_only=read_only))

    assert options("size=1m") == ("noexec", "nosuid", "nodev", "size=1m")
    assert options("exec", "nodev") == ("nosuid", "exec", "nodev")
    assert options(read_only=True)[-1] == "ro"

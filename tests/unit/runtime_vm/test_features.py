# SPDX-License-Identifier: Apache-2.0
"""What cannot be bound into a guest: names of things in the host's kernel."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from proa.model.config import HostConfig
from proa.model.errors import FeatureMissing
from proa.model.task import Mount, MountKind, Security
from proa.runtime.seam import Asked
from proa.runtime.vm import features
from proa.runtime.vm.pods import features as pods


def judge(source: Path) -> None:
    mount = Mount(kind=MountKind.BIND, target="/x", source=source)
    features.judge(Asked(host=HostConfig(), security=Security(), mounts=(mount,)))


def test_a_socket_and_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FeatureMissing, match=r"binding the pipe .*/pipe is not supported with runtime vm"):
        judge(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        with pytest.raises(FeatureMissing, match="binding the socket"):
            judge(tmp_path / "s")


def test_a_device_is_refused_unless_each_kernel_has_it() -> None:
    judge(Path("/dev/null"))
    with pytest.raises(FeatureMissing, match="binding the device /dev/tty"):
        judge(Path("/dev/tty"))


def test_files_directories_and_what_is_not_there_are_not_judged(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for source in (tmp_path, tmp_path / "f", tmp_path / "nonesuch"):
        judge(source)


def test_a_machine_that_is_shared_has_one_kernel() -> None:
    host = HostConfig(annotations={"proa.vm.kernel-args": "a=b"})
    asked = Asked(host=host, security=Security(), mounts=())
    features.judge(asked)
    with pytest.raises(FeatureMissing, match="it would hold for all containers of the virtual machine"):
        pods.FEATURES.judge(asked)

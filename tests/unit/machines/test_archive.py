# SPDX-License-Identifier: Apache-2.0
"""What is in the archive of a machine, and what is not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from proa.engine.machines.copies import forked_config
from proa.image.archive_writer import write_archive
from proa.machines.archive import files_of, plan_archive, portable, read_archive
from proa.model.config import PortBinding
from proa.model.errors import InvalidParameter
from proa.model.machine import (
    CloudInit,
    Machine,
    MachineConfig,
    MachineDisk,
    MachineId,
    MachineNic,
    MachineState,
)

MACHINE = Machine(
    id=MachineId("ab" * 32),
    name="one",
    created_at_ns=1,
    state=MachineState.STOPPED,
    config=MachineConfig(
        kernel="/k",
        cdrom="/installer.iso",
        disks=[MachineDisk(name="disk0", source="/image", size=4096)],
        cloud_init=CloudInit(user="me", password="secret", user_data=""),
        nics=[MachineNic(network="n", address="10.0.0.2", mac="52:54:00:00:00:01", aliases=["www"])],
        port_bindings={"80/tcp": [PortBinding(host_port="8080")]},
        hostname="host",
        autostart=True,
    ),
)


def test_what_belongs_to_the_host_stays() -> None:
    config = portable(MACHINE)
    assert (config.cdrom, config.autostart) == ("", False)
    assert [disk.source for disk in config.disks or ()] == [""]
    assert config.nics == MACHINE.config.nics


def test_secrets_go_along_only_while_they_are_needed() -> None:
    never_started = portable(MACHINE).cloud_init
    started = portable(msgspec.structs.replace(MACHINE, started_at_ns=1)).cloud_init
    assert never_started is not None
    assert started is not None
    assert (never_started.password, started.password, started.user) == ("secret", "", "me")


def test_a_fork_has_nothing_that_can_be_there_only_once() -> None:
    config = forked_config(MACHINE.config)
    assert config.nics == [MachineNic(network="n")]
    assert (config.port_bindings, config.hostname, config.autostart) == (None, "", False)


def test_its_files() -> None:
    assert files_of(MACHINE.config, has_variables=True) == ["disk0.qcow2", "kernel", "variables.fd"]
    assert files_of(MachineConfig(firmware="/f", kernel="/k", initrd="/i"), has_variables=False) == [
        "kernel",
        "initrd",
        "firmware",
    ]


@pytest.mark.anyio
async def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"k" * 5000)
    parts = await plan_archive(MACHINE, [tmp_path / "kernel"])
    content = b"".join([piece async for piece in write_archive(parts)])
    spool = tmp_path / "spool"
    spool.mkdir()
    manifest, files = await read_archive(_stream(content), spool)
    assert (manifest.name, manifest.instance_id) == ("one", MACHINE.id)
    assert manifest.config == portable(MACHINE)
    assert files["kernel"].read_bytes() == b"k" * 5000
    damaged = content.replace(b"kkkk", b"kkkx", 1)
    for number, (wrong, why) in enumerate(((damaged, "not what it was"), (content[:-6000], "EOF"))):
        spool = tmp_path / str(number)
        spool.mkdir()
        with pytest.raises(InvalidParameter, match=why):
            await read_archive(_stream(wrong), spool)


async def _stream(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 700):
        yield content[start : start + 700]

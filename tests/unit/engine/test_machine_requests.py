# SPDX-License-Identifier: Apache-2.0
"""What is asked of machines: completed, or refused before anything is made."""

from __future__ import annotations

import pytest

from proa.engine.machines.request import check_name, complete, hostname_of
from proa.model.config import PortBinding
from proa.model.errors import InvalidParameter
from proa.model.machine import Machine, MachineConfig, MachineDisk, MachineId, MachineNic, MachineState

MIB = 1 << 20


def test_it_is_completed() -> None:
    config = complete(MachineConfig(disks=[MachineDisk(size=MIB), MachineDisk(name="data", size=MIB)]))
    assert [disk.name for disk in config.disks or ()] == ["disk0", "data"]
    assert config.nics is not None
    (nic,) = config.nics
    assert nic.network == "bridge"
    assert nic.mac.startswith("52:54:00:")
    assert complete(MachineConfig(kernel="/k", nics=[])).nics == []


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (MachineConfig(), "nothing to boot"),
        (MachineConfig(kernel="k"), "absolute"),
        (MachineConfig(kernel="/k\0"), "absolute"),
        (MachineConfig(initrd="/i", cdrom="/c"), "initrd needs a kernel"),
        (MachineConfig(kernel_arguments="x", cdrom="/c"), "need a kernel"),
        (MachineConfig(kernel="/k", kernel_arguments="x" * 5000), "kernel arguments"),
        (MachineConfig(kernel="/k", cpus=0), "0 CPUs"),
        (MachineConfig(kernel="/k", cpus=5000), "5000 CPUs"),
        (MachineConfig(kernel="/k", memory=1), "1 bytes of memory"),
        (MachineConfig(kernel="/k", memory=1 << 60), "bytes of memory"),
        (MachineConfig(kernel="/k", hostname="a_b"), "hostname"),
        (MachineConfig(disks=[MachineDisk()]), "size or a source"),
        (MachineConfig(disks=[MachineDisk(size=-1)]), "a disk of -1 bytes"),
        (MachineConfig(disks=[MachineDisk(size=1 << 60)]), "a disk of"),
        (MachineConfig(disks=[MachineDisk(name="../x", size=MIB)]), "invalid name"),
        (MachineConfig(disks=[MachineDisk(name="seed", size=MIB)]), "invalid name"),
        (MachineConfig(disks=[MachineDisk(name="a", size=MIB)] * 2), "two disks"),
        (MachineConfig(disks=[MachineDisk(size=MIB)] * 17), "17 disks"),
        (MachineConfig(kernel="/k", nics=[MachineNic(mac="zz")]), "MAC"),
        (MachineConfig(kernel="/k", nics=[MachineNic(mac="01:00:00:00:00:00")]), "MAC"),
        (MachineConfig(kernel="/k", nics=[MachineNic(address="1.2")]), "IPv4"),
        (MachineConfig(kernel="/k", nics=[MachineNic(network="host")]), "network host"),
        (MachineConfig(kernel="/k", nics=[MachineNic()] * 9), "9 networks"),
        (MachineConfig(kernel="/k", port_bindings={"x": [PortBinding()]}), "port"),
    ],
)
def test_what_is_refused(config: MachineConfig, why: str) -> None:
    with pytest.raises(InvalidParameter, match=why):
        complete(config)


@pytest.mark.parametrize("name", ["", "-a", "a/b", "a b", "x" * 64, "ä"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidParameter, match="Invalid virtual machine name"):
        check_name(name)


def test_the_host_name_is_one_that_every_system_takes() -> None:
    machine = Machine(
        id=MachineId("ab" * 32),
        name="web.1_x",
        created_at_ns=0,
        config=MachineConfig(kernel="/k"),
        state=MachineState.CREATED,
    )
    assert hostname_of(machine) == "web-1-x"

# SPDX-License-Identifier: Apache-2.0
"""The payload of REHEARSE: a container that is nobody's, for a machine of the pool to practise on.

Its values only have to be of the usual kinds; the guest takes all of them back.

Source: docs/reference/agent-protocol.md, REHEARSE.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface

from proa.model.ids import ContainerId, NetworkId
from proa.model.task import (
    BlockRootfs,
    Interface,
    NetworkAttachment,
    ProcessSpec,
    Resources,
    Security,
    TaskSpec,
)
from proa.runtime.vm import messages, privileges
from proa.runtime.vm.machine import Shape
from proa.runtime.vm.messages import MAIN_PROCESS

_AGENT = ("/proc/self/exe", "rehearse")  # inside the container's root, where no path leads to it
_FIRST = int(IPv4Address("198.18.0.2"))  # RFC 2544: of nobody
_FILES = {"/etc/hostname": b"rehearsal\n", "/etc/hosts": b"127.0.0.1 localhost\n", "/etc/resolv.conf": b"\n"}


def rehearse(shape: Shape, program: str, rootfs: BlockRootfs, *, entropy: bytes, now_ns: int) -> bytes:
    """CONFIGURE and START of such a container.

    :param program: what the guest should read ahead, if it is there; as in ``ProcessSpec.args``.
    """
    spec = TaskSpec(
        id=ContainerId("0" * 64),
        hostname="rehearsal",
        process=ProcessSpec(args=(*_AGENT, program)),
        rootfs=rootfs,
        log_path=rootfs.writable,
        files=_FILES,
        network=NetworkAttachment(interfaces=tuple(_interface(index) for index in range(shape.nics))),
        resources=Resources(memory_bytes=shape.memory_bytes, pids=32768),
        shm_size_bytes=0,
    )
    configure = messages.configure(
        spec, layers=(), is_new=True, entropy=entropy, now_ns=now_ns, machine_id=b"rehearsal\n"
    )
    process = messages.process(
        spec.process,
        number=MAIN_PROCESS,
        capabilities=privileges.capability_mask(Security()),
        no_new_privileges=False,
        credit=None,
    )
    return configure + process


def _interface(index: int) -> Interface:
    address = IPv4Address(_FIRST + 256 * index)
    return Interface(
        name=f"eth{index}",
        device="",
        network_id=NetworkId(""),
        mac=f"02:00:00:00:00:{index:02x}",
        address=IPv4Interface(f"{address}/24"),
        gateway=address + 1 if index == 0 else None,
    )

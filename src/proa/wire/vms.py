# SPDX-License-Identifier: Apache-2.0
"""Messages about full machines. Source: docs/reference/vms.yaml."""

from __future__ import annotations

from proa.model.config import ApiStruct, PortBinding
from proa.model.machine import MachineConfig


class VmCreated(ApiStruct, frozen=True, kw_only=True):
    id: str
    name: str = ""


class VmImage(ApiStruct, frozen=True, kw_only=True):
    id: str


class VmNetwork(ApiStruct, frozen=True, kw_only=True):
    """Where a running machine is."""

    network: str
    address: str  # with the length of the prefix
    gateway: str = ""
    mac: str = ""


class VmDisk(ApiStruct, frozen=True, kw_only=True):
    name: str
    size: int  # bytes, what the guest sees
    held: int  # bytes, what the host has on its disk


class Vm(ApiStruct, frozen=True, kw_only=True):
    """One machine. Times are RFC 3339, empty when there is none."""

    id: str
    name: str
    state: str
    reason: str = ""
    created: str = ""
    started_at: str = ""
    finished_at: str = ""
    pid: int = 0
    config: MachineConfig
    networks: list[VmNetwork] | None = None
    ports: dict[str, list[PortBinding]] | None = None
    disks: list[VmDisk] | None = None


class VmUpdate(ApiStruct, frozen=True, kw_only=True):
    """What is null stays."""

    cpus: int | None = None
    memory: int | None = None  # bytes
    autostart: bool | None = None


class VmDiskResize(ApiStruct, frozen=True, kw_only=True):
    size: int  # bytes


class VmPruned(ApiStruct, frozen=True, kw_only=True):
    """What images that were fetched by address took on disk."""

    space_reclaimed: int  # bytes


class VmDiskAdded(ApiStruct, frozen=True, kw_only=True):
    name: str


class VmVnc(ApiStruct, frozen=True, kw_only=True):
    """A VNC client is let in with this password for some seconds."""

    host: str
    port: int
    password: str
    valid_seconds: int


class VmStats(ApiStruct, frozen=True, kw_only=True):
    """What QEMU takes of the host."""

    cpu_ns: int
    memory_bytes: int
    read_bytes: int
    write_bytes: int


class VmExec(ApiStruct, frozen=True, kw_only=True):
    """A command for the guest's agent; ``stdin`` is base64 in JSON."""

    cmd: list[str]
    env: list[str] | None = None
    stdin: bytes = b""
    timeout: int = 60  # seconds


class VmExecResult(ApiStruct, frozen=True, kw_only=True):
    """What it wrote is base64 in JSON."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False


class VmSnapshotSave(ApiStruct, frozen=True, kw_only=True):
    name: str


class VmSnapshot(ApiStruct, frozen=True, kw_only=True):
    name: str
    created: str
    memory_bytes: int = 0  # 0: of the disks alone

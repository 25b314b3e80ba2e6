# SPDX-License-Identifier: Apache-2.0
"""Routes of full machines. Source: docs/reference/vms.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from proa.api.request import Request
from proa.api.response import NO_CONTENT, Response, json_response
from proa.api.router import Router
from proa.api.streams import detach_keys, hijack_type, pump
from proa.api.vm_copies import CopiesBackend
from proa.api.vm_files import GuestFilesBackend
from proa.api.vm_images import Backend as VmImageBackend
from proa.engine.filters import Filters
from proa.engine.machines.machines import MachineChange, MachineUsage, MachineView
from proa.host.cgroup_usage import Usage
from proa.machines.agent import GuestResult
from proa.machines.running import VncAccess
from proa.machines.snapshots import Snapshot
from proa.model.config import PortBinding
from proa.model.errors import InvalidParameter
from proa.model.machine import Machine, MachineConfig, MachineDisk, MachineNic
from proa.runtime.seam import Stdio
from proa.wire import vm_routes as routes
from proa.wire import vms as wire
from proa.wire.times import format_time

PNG = "image/png"
TEXT = "text/plain; charset=utf-8"
DEFAULT_STOP_S = 60
MAX_STOP_S = 24 * 3600


class LivesBackend(Protocol):
    """What these routes need to start and end machines."""

    async def start(self, ref: str) -> None: ...
    async def stop(self, ref: str, *, timeout_s: float) -> None: ...
    async def kill(self, ref: str) -> None: ...
    async def reboot(self, ref: str, *, hard: bool, timeout_s: float) -> None: ...
    async def pause(self, ref: str) -> None: ...
    async def resume(self, ref: str) -> None: ...


class Backend(Protocol):
    """What these routes need of the engine."""

    @property
    def lives(self) -> LivesBackend: ...
    @property
    def to_image(self) -> VmImageBackend: ...
    @property
    def copies(self) -> CopiesBackend: ...
    @property
    def files(self) -> GuestFilesBackend: ...
    def get(self, ref: str) -> MachineView: ...
    def list(self, filters: Filters) -> Sequence[MachineView]: ...
    def logs(self, ref: str) -> bytes: ...
    def open_console(self, ref: str) -> Stdio: ...
    async def screenshot(self, ref: str) -> bytes: ...
    async def open_vnc(self, ref: str) -> VncAccess: ...
    def usage(self, ref: str) -> Usage: ...
    async def disk_usage(self) -> Sequence[MachineUsage]: ...
    async def prune_downloads(self) -> int: ...
    async def create(self, name: str, wanted: MachineConfig) -> Machine: ...
    async def rename(self, ref: str, name: str) -> None: ...
    async def remove(self, ref: str, *, force: bool) -> None: ...
    async def update(self, ref: str, change: MachineChange) -> None: ...
    async def exec(
        self, ref: str, command: Sequence[str], *, env: Sequence[str], stdin: bytes, timeout_s: float
    ) -> GuestResult: ...
    async def snapshots(self, ref: str) -> Sequence[Snapshot]: ...
    async def save_snapshot(self, ref: str, name: str) -> None: ...
    async def load_snapshot(self, ref: str, name: str) -> None: ...
    async def delete_snapshot(self, ref: str, name: str) -> None: ...
    async def add_disk(self, ref: str, disk: MachineDisk) -> str: ...
    async def resize_disk(self, ref: str, name: str, size: int) -> None: ...
    async def remove_disk(self, ref: str, name: str) -> None: ...
    async def connect(self, ref: str, nic: MachineNic) -> None: ...
    async def disconnect(self, ref: str, network: str) -> None: ...


class VmRoutes:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def register(self, router: Router) -> None:
        router.add(routes.VM_LIST, self.list)
        router.add(routes.VM_CREATE, self.create)
        router.add(routes.VM_INSPECT, self.inspect)
        router.add(routes.VM_DELETE, self.delete)
        router.add(routes.VM_START, self.start)
        router.add(routes.VM_STOP, self.stop)
        router.add(routes.VM_KILL, self.kill)
        router.add(routes.VM_REBOOT, self.reboot)
        router.add(routes.VM_PAUSE, self.pause)
        router.add(routes.VM_RESUME, self.resume)
        router.add(routes.VM_RENAME, self.rename)
        router.add(routes.VM_UPDATE, self.update)
        router.add(routes.VM_PRUNE, self.prune)
        router.add(routes.VM_LOGS, self.logs)
        router.add(routes.VM_CONSOLE, self.console)
        router.add(routes.VM_SCREENSHOT, self.screenshot)
        router.add(routes.VM_VNC, self.vnc)
        router.add(routes.VM_STATS, self.stats)
        router.add(routes.VM_DISK_ADD, self.add_disk)
        router.add(routes.VM_DISK_RESIZE, self.resize_disk)
        router.add(routes.VM_DISK_DELETE, self.remove_disk)
        router.add(routes.VM_EXEC, self.exec)
        router.add(routes.VM_SNAPSHOT_LIST, self.snapshots)
        router.add(routes.VM_SNAPSHOT_SAVE, self.save_snapshot)
        router.add(routes.VM_SNAPSHOT_LOAD, self.load_snapshot)
        router.add(routes.VM_SNAPSHOT_DELETE, self.delete_snapshot)
        router.add(routes.VM_CONNECT, self.connect)
        router.add(routes.VM_DISCONNECT, self.disconnect)

    # --- making and looking ---

    async def list(self, request: Request) -> Response:
        return json_response([shape(one) for one in self._backend.list(request.query.filters())])

    async def create(self, request: Request) -> Response:
        wanted = await request.json(MachineConfig)
        if wanted is None:
            raise InvalidParameter("config cannot be empty in order to create a virtual machine")
        made = await self._backend.create(request.query.text("name"), wanted)
        return json_response(wire.VmCreated(id=made.id, name=made.name), 201)

    async def inspect(self, request: Request) -> Response:
        return json_response(shape(self._backend.get(request.params["id"])))

    async def logs(self, request: Request) -> Response:
        return Response(content_type=TEXT, body=self._backend.logs(request.params["id"]))

    async def screenshot(self, request: Request) -> Response:
        return Response(content_type=PNG, body=await self._backend.screenshot(request.params["id"]))

    async def vnc(self, request: Request) -> Response:
        found = await self._backend.open_vnc(request.params["id"])
        return json_response(
            wire.VmVnc(host=found.host, port=found.port, password=found.password, valid_seconds=found.valid_s)
        )

    async def stats(self, request: Request) -> Response:
        usage = self._backend.usage(request.params["id"])
        return json_response(
            wire.VmStats(
                cpu_ns=usage.cpu_total_ns,
                memory_bytes=usage.memory_usage,
                read_bytes=usage.read_bytes,
                write_bytes=usage.write_bytes,
            )
        )

    async def console(self, request: Request) -> None:
        """Take over the connection: raw bytes, as of a process with a terminal."""
        keys = detach_keys(request.query.text("detachKeys"))
        stdio = self._backend.open_console(request.params["id"])
        raw = await request.hijack(hijack_type(request, tty=True))
        await pump(stdio, raw, tty=True, detach_keys=keys)

    async def exec(self, request: Request) -> Response:
        body = await request.json(wire.VmExec)
        if body is None:
            raise InvalidParameter("No exec command specified")
        if not 1 <= body.timeout <= MAX_STOP_S:
            raise InvalidParameter(f"a time-out of {body.timeout} seconds: 1 to {MAX_STOP_S} are possible")
        done = await self._backend.exec(
            request.params["id"], body.cmd, env=body.env or (), stdin=body.stdin, timeout_s=body.timeout
        )
        return json_response(
            wire.VmExecResult(
                exit_code=done.exit_code, stdout=done.stdout, stderr=done.stderr, truncated=done.truncated
            )
        )

    # --- snapshots ---

    async def snapshots(self, request: Request) -> Response:
        found = await self._backend.snapshots(request.params["id"])
        shapes = [
            wire.VmSnapshot(name=one.name, created=_time(one.created_at_ns), memory_bytes=one.memory_bytes)
            for one in found
        ]
        return json_response(shapes)

    async def save_snapshot(self, request: Request) -> Response:
        body = await request.json(wire.VmSnapshotSave)
        if body is None:
            raise InvalidParameter("the Name of the snapshot is missing")
        await self._backend.save_snapshot(request.params["id"], body.name)
        return Response(status=201)

    async def load_snapshot(self, request: Request) -> Response:
        await self._backend.load_snapshot(request.params["id"], request.params["snapshot"])
        return NO_CONTENT

    async def delete_snapshot(self, request: Request) -> Response:
        await self._backend.delete_snapshot(request.params["id"], request.params["snapshot"])
        return NO_CONTENT

    # --- life ---

    async def start(self, request: Request) -> Response:
        await self._backend.lives.start(request.params["id"])
        return NO_CONTENT

    async def stop(self, request: Request) -> Response:
        await self._backend.lives.stop(request.params["id"], timeout_s=_timeout(request))
        return NO_CONTENT

    async def kill(self, request: Request) -> Response:
        await self._backend.lives.kill(request.params["id"])
        return NO_CONTENT

    async def reboot(self, request: Request) -> Response:
        await self._backend.lives.reboot(
            request.params["id"], hard=request.query.flag("hard"), timeout_s=_timeout(request)
        )
        return NO_CONTENT

    async def pause(self, request: Request) -> Response:
        await self._backend.lives.pause(request.params["id"])
        return NO_CONTENT

    async def resume(self, request: Request) -> Response:
        await self._backend.lives.resume(request.params["id"])
        return NO_CONTENT

    # --- changing ---

    async def delete(self, request: Request) -> Response:
        await self._backend.remove(request.params["id"], force=request.query.flag("force"))
        return NO_CONTENT

    async def prune(self, request: Request) -> Response:
        return json_response(wire.VmPruned(space_reclaimed=await self._backend.prune_downloads()))

    async def rename(self, request: Request) -> Response:
        await self._backend.rename(request.params["id"], request.query.text("name"))
        return NO_CONTENT

    async def update(self, request: Request) -> Response:
        body = await request.json(wire.VmUpdate) or wire.VmUpdate()
        change = MachineChange(cpus=body.cpus, memory=body.memory, autostart=body.autostart)
        await self._backend.update(request.params["id"], change)
        return NO_CONTENT

    async def add_disk(self, request: Request) -> Response:
        disk = await request.json(MachineDisk) or MachineDisk()
        name = await self._backend.add_disk(request.params["id"], disk)
        return json_response(wire.VmDiskAdded(name=name), 201)

    async def resize_disk(self, request: Request) -> Response:
        body = await request.json(wire.VmDiskResize)
        if body is None:
            raise InvalidParameter("the new Size of the disk is missing")
        await self._backend.resize_disk(request.params["id"], request.params["disk"], body.size)
        return NO_CONTENT

    async def remove_disk(self, request: Request) -> Response:
        await self._backend.remove_disk(request.params["id"], request.params["disk"])
        return NO_CONTENT

    async def connect(self, request: Request) -> Response:
        await self._backend.connect(request.params["id"], await request.json(MachineNic) or MachineNic())
        return NO_CONTENT

    async def disconnect(self, request: Request) -> Response:
        await self._backend.disconnect(request.params["id"], request.params["network"])
        return NO_CONTENT


def shape(view: MachineView) -> wire.Vm:
    """Return a machine as the API shows it."""
    machine, attached = view.machine, view.attached
    names = {nic.mac: nic.network for nic in machine.config.nics or ()}
    ports: dict[str, list[PortBinding]] = {}
    networks = []
    if attached is not None:
        for port in attached.ports:
            binding = PortBinding(host_ip=str(port.host_ip), host_port=str(port.host_port))
            ports.setdefault(f"{port.container_port}/{port.protocol}", []).append(binding)
        for one in attached.endpoints:
            networks.append(
                wire.VmNetwork(
                    network=names.get(one.mac, one.network_id),
                    address=str(one.address),
                    gateway=str(one.gateway or ""),
                    mac=one.mac,
                )
            )
    disks = [wire.VmDisk(name=name, size=size, held=held) for name, (size, held) in view.disk_sizes.items()]
    return wire.Vm(
        id=machine.id,
        name=machine.name,
        state=machine.state.value,
        reason=machine.reason,
        created=_time(machine.created_at_ns),
        started_at=_time(machine.started_at_ns),
        finished_at=_time(machine.finished_at_ns),
        pid=view.pid,
        config=machine.config,
        networks=networks,
        ports=ports,
        disks=disks,
    )


def _time(ns: int) -> str:
    return format_time(ns) if ns else ""


def _timeout(request: Request) -> float:
    seconds = request.query.number("t")
    if seconds is None:
        return DEFAULT_STOP_S
    if not 0 <= seconds <= MAX_STOP_S:
        raise InvalidParameter(f"a time-out of {seconds} seconds: 0 to {MAX_STOP_S} are possible")
    return seconds

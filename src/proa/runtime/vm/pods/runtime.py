# SPDX-License-Identifier: Apache-2.0
"""The ``Runtime`` of containers that share a virtual machine: makes machines, gives seats, finds both again.

A machine is made for the first container of its name and ended with the last. Which seats are taken is
written nowhere but in the records of the containers, so no death of the daemon leaves two truths: the record
is there before anything is plugged in, and is removed after all has been taken away.

Source: proa.runtime.seam.Runtime; docs/decisions/0044-pods.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import anyio
import msgspec
from anyio.abc import TaskGroup

from proa.host.loose_tap import LooseTap
from proa.model.errors import (
    EngineError,
    InvalidParameter,
    OutcomeUnknown,
    StartFailed,
    Unavailable,
    WrongState,
)
from proa.model.ids import ContainerId
from proa.model.task import BlockRootfs, TaskSpec
from proa.runtime.seam import Features, Task
from proa.runtime.vm import limits, messages, protocol, qemu
from proa.runtime.vm.channel import AgentError, Channel
from proa.runtime.vm.clone import (
    CONFIGURE_TIMEOUT_S,
    ENTROPY_BYTES,
    Clone,
    Tools,
    end,
    guest_of,
    pid_of,
    record_of,
    start_fs_server,
)
from proa.runtime.vm.guest import Guest
from proa.runtime.vm.home import Home, Pid, Record
from proa.runtime.vm.machine import MIB, Incoming, Machine, Ports, Shape, memory_for
from proa.runtime.vm.messages import LayerExtent
from proa.runtime.vm.pods import features
from proa.runtime.vm.pods.pod import PREFIX, Pod, Seat, State, Use, spare_tap
from proa.runtime.vm.pods.task import PodTask, SeatProcess, cpu_limits
from proa.runtime.vm.protocol import Frame, FrameType, Key, u32
from proa.runtime.vm.qemu import Console, HostProcess
from proa.runtime.vm.task import FIND_TIMEOUT_S
from proa.runtime.vm.template import Templates, load_state

log = logging.getLogger(__name__)

LEAST_MEMORY_BYTES = 1024 * MIB  # of a machine; the host gives what is touched
MOST_VCPUS = 4
_FIND_TIMEOUT_S = 2 * FIND_TIMEOUT_S
_FRESH_TIMEOUT_S = 60.0  # for an agent to end, writing what is dirty, and another to take its place
_FRESH_ANSWER_S = 5.0
_FRESH_PAUSE_S = 0.02
_SYNC_TIMEOUT_S = 10.0  # for the file systems of a container that is over to be unmounted
_LINKS = ("monitor", "qemu.log")  # of the machine, seen from the container's directory


class _Unheard:
    """A link whose other end may still speak of a container that is over."""

    def on_frame(self, frame: Frame) -> None:
        pass

    def on_link_down(self) -> None:
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a new container will be."""

    pod: Pod
    seat: Seat
    joins: int | None


class PodRuntime:
    """Containers in machines that have names.

    :param templates: the store of the VM hull.
    :param exec_root: of the VM hull: a directory for each container and for each machine.
    """

    def __init__(self, *, templates: Templates, tools: Tools, exec_root: Path, tasks: TaskGroup) -> None:
        self._templates = templates
        self._tools = tools
        self._exec_root = exec_root
        self._tasks = tasks
        self._changing = anyio.Lock()  # who is in which seat; held while a machine is made or ended
        self._changed = anyio.Event()  # replaced each time a seat has been left
        self._pods: list[Pod] = []
        self._find_pods()

    @property
    def name(self) -> str:
        return features.NAME

    @property
    def features(self) -> Features:
        return features.FEATURES

    async def create(self, spec: TaskSpec) -> Task:
        features.check(spec)
        if not isinstance(spec.rootfs, BlockRootfs) or not spec.machine:
            raise InvalidParameter("a shared virtual machine has a name, and block devices")
        home = Home(self._exec_root, spec.id)
        home.create()
        async with AsyncExitStack() as undo:
            undo.callback(home.remove)
            place = await self._take_seat(spec, spec.rootfs)
            undo.push_async_callback(self._leave, place.pod, place.seat, spec.id, is_synced=False)
            clone = await self._seat(spec, place, home, undo)
            undo.pop_all()
        return self._supervised(PodTask(spec.id, clone, home, spec, place.pod))

    async def find(self, container_id: ContainerId) -> Task | None:
        home = Home(self._exec_root, container_id)
        record = home.read()
        if record is None:
            return None
        pod, seat = self._place_of(record, container_id)
        is_over = pod is None or seat is None or home.read_exit() is not None
        if pod is not None and seat is not None and not is_over:
            with contextlib.suppress(Unavailable):  # then ``take_up`` will say more
                is_over = await _is_fresh(pod.control(seat))
        clone = self._clone_of(home, record, container_id, is_over=is_over)
        if is_over:
            clone.guest.main.link_down()
            return self._supervised(PodTask(container_id, clone, home, None, pod))
        task = PodTask(container_id, clone, home, None, pod)
        try:
            with anyio.fail_after(_FIND_TIMEOUT_S):
                has_begun = await task.take_up()
        except (EngineError, TimeoutError):
            has_begun = True  # it runs but does not answer: it can still be waited for, and removed
        if not has_begun and home.read_exit() is None:
            await task.delete()
            return None
        return self._supervised(task)

    async def forget(self, container_id: ContainerId) -> None:
        home = Home(self._exec_root, container_id)
        record = home.read()
        with anyio.CancelScope(shield=True):
            if record is not None:
                clone = self._clone_of(home, record, container_id, is_over=True)
                await clone.process.end()
                if clone.fs_server is not None:
                    await clone.fs_server.end()
                    clone.fs_server.close()
            home.remove()

    # --- seats ---

    async def _take_seat(self, spec: TaskSpec, rootfs: BlockRootfs) -> _Place:
        """Return a seat in the machine of that name, which is made when it is not there.

        Waits for one that is being left. Raises Unavailable when all are taken, InvalidParameter, WrongState.
        """
        if self._find_named(spec.machine) is None:  # seconds the first time: others need not wait
            await self._templates.ensure(_shape_for(spec), rootfs.blank)
        deadline = anyio.current_time() + _FRESH_TIMEOUT_S
        while True:
            changed = self._changed
            async with self._changing:
                pod = self._find_named(spec.machine)
                joins = _seat_joined(pod, spec)
                if pod is None:
                    pod = await self._make(spec, rootfs)
                try:
                    pod.check_fits(spec.resources.memory_bytes, spec.resources.cpus)
                except BaseException:
                    await self._end_unused(pod)
                    raise
                seat = pod.find_free()
                if seat is not None:
                    seat.use, seat.container, seat.joins = Use.TAKEN, spec.id, joins
                    seat.memory_bytes = max(0, spec.resources.memory_bytes)
                    return _Place(pod=pod, seat=seat, joins=joins)
            is_hopeless = all(seat.use is not Use.LEAVING for seat in pod.seats)
            if is_hopeless or anyio.current_time() > deadline:
                raise Unavailable(
                    f"the virtual machine {pod.name} is full: it takes {len(pod.seats)} containers"
                )
            with anyio.move_on_after(1.0):
                await changed.wait()

    def _find_named(self, name: str) -> Pod | None:
        return next(
            (pod for pod in self._pods if pod.name == name and pod.is_used() and not pod.process.has_ended()),
            None,
        )

    async def _seat(self, spec: TaskSpec, place: _Place, home: Home, undo: AsyncExitStack) -> Clone:
        """Put the container into its seat, configured."""
        pod, seat = place.pod, place.seat
        for name in _LINKS:
            (home.path / name).symlink_to(pod.home / name)
        home.control.symlink_to(pod.control(seat))
        guest = guest_of(spec, home)
        undo.callback(guest.close)
        with contextlib.ExitStack() as inherited, _explained(pod):
            fs_server, fs_fd = start_fs_server(self._tools, spec.mounts, home, inherited)
            if fs_server is not None:
                undo.push_async_callback(end, fs_server)
            record = msgspec.structs.replace(
                record_of(spec, _shape_of(pod), pod.process, fs_server),
                cgroup=limits.path_for(spec),
                log_chardev=f"log-{seat.number}",
                pod=pod.home.name,
                seat=seat.number,
                memory_limit_bytes=seat.memory_bytes,
                joins=seat.joins,
            )
            home.write(record)
            layers = await pod.plug(seat, spec, home, fs_fd)
            await self._configure(spec, place, layers, await guest.connect())
        return Clone(
            record=record,
            process=self._process_of(pod, seat, spec.id, guest),
            fs_server=fs_server,
            guest=guest,
            console=Console(),
        )

    async def _configure(
        self, spec: TaskSpec, place: _Place, layers: tuple[LayerExtent, ...], channel: Channel
    ) -> None:
        payload = messages.configure(
            spec,
            layers=layers,
            is_new=False,
            entropy=os.urandom(ENTROPY_BYTES),
            now_ns=time.time_ns(),
            machine_id=spec.id[:32].encode() + b"\n",
            disks=place.seat.disks,
        )
        payload += cpu_limits(spec.resources)
        if place.joins is not None:
            payload += u32(Key.JOIN_SEAT, place.joins)
        await channel.request(FrameType.CONFIGURE, payload, timeout_s=CONFIGURE_TIMEOUT_S)

    async def _leave(self, pod: Pod, seat: Seat, container: ContainerId, *, is_synced: bool) -> None:
        """Give up a seat; the machine ends when it was the last one in use. Idempotent.

        :param is_synced: the agent has let go of the disks; it need not be gone before they are taken away.
        """
        with anyio.CancelScope(shield=True):
            async with self._changing:
                if seat.container != container or seat.use is not Use.TAKEN:
                    return
                seat.use = Use.LEAVING
                if await self._end_unused(pod):
                    return
            if is_synced:
                await self._trying(pod, seat, lambda: pod.unplug(seat))
                self._tasks.start_soon(self._renew, pod, seat)
            else:
                await self._renew(pod, seat)

    async def _renew(self, pod: Pod, seat: Seat) -> None:
        """Have a seat that was left ready for another container."""

        async def renew() -> None:
            await _renew_agent(pod.control(seat))
            await pod.unplug(seat)

        done = await self._trying(pod, seat, renew)
        seat.container = seat.joins = None
        seat.memory_bytes = 0
        seat.use = Use.FREE if done else Use.BROKEN
        self._changed.set()
        self._changed = anyio.Event()

    async def _trying(self, pod: Pod, seat: Seat, step: Callable[[], Awaitable[None]]) -> bool:
        try:
            await step()
        except (EngineError, AgentError, OSError) as error:
            if pod in self._pods:  # else it was ended meanwhile
                log.warning("seat %d of the virtual machine %s is lost: %s", seat.number, pod.name, error)
            return False
        return True

    async def _end_unused(self, pod: Pod) -> bool:
        """End the machine if nobody is in it, and say whether it was so."""
        if pod.is_used():
            return False
        if pod in self._pods:
            self._pods.remove(pod)
        await pod.end()
        return True

    # --- machines ---

    async def _make(self, spec: TaskSpec, rootfs: BlockRootfs) -> Pod:
        """Start a machine for the first of its containers."""
        shape = _shape_for(spec)
        template = await self._templates.ensure(shape, rootfs.blank)
        identifier = secrets.token_hex(4)
        home = self._exec_root / f"{PREFIX}{identifier}"
        async with AsyncExitStack() as undo:
            home.mkdir(mode=0o700, parents=True)
            undo.callback(shutil.rmtree, home, ignore_errors=True)
            with contextlib.ExitStack() as inherited:
                state = inherited.enter_context(template.state_file.open("rb"))
                fds = [_open_tap(spare_tap(identifier, seat), inherited) for seat in range(shape.seats)]

                def plan(ports: Ports) -> Machine:
                    return Machine(
                        qemu=self._tools.qemu,
                        name=f"proa-vm-{spec.machine}",
                        accelerator=self._tools.accelerator,
                        shape=shape,
                        memory_file=template.memory_file,
                        begins=Incoming(state_fd=state.fileno()),
                        ports=ports,
                        taps=fds,
                        run_as=qemu.rights_of(identifier, home, self._tools.qemu_version),
                    )

                child = qemu.launch(home, plan, pass_fds=(state.fileno(), *fds), seats=shape.seats)
                undo.push_async_callback(end, child)
                pod = Pod(home, _state_of(spec.machine, shape, child, fds), child)
                pod.write()
                with _explained(pod):
                    await load_state(home / "monitor", state.fileno())
            self._pods.append(pod)
            undo.pop_all()
        return pod

    def _find_pods(self) -> None:
        """Take up the machines of an earlier daemon, and have those ended that no container is in."""
        for directory in sorted(self._exec_root.glob(f"{PREFIX}*")):
            try:
                state = msgspec.json.decode((directory / "state.json").read_bytes(), type=State)
            except (OSError, msgspec.DecodeError):
                shutil.rmtree(directory, ignore_errors=True)
                continue
            process = HostProcess.find(state.qemu.pid, state.qemu.start_time)
            if process is None:
                shutil.rmtree(directory, ignore_errors=True)
                continue
            self._pods.append(Pod(directory, state, process))
        for path in self._exec_root.glob("*/state.json"):
            container = ContainerId(path.parent.name)
            record = Home(self._exec_root, container).read()
            pod = self._pod_named(record.pod) if record is not None and record.pod else None
            if record is not None and pod is not None and 0 <= record.seat < len(pod.seats):
                seat = pod.seats[record.seat]
                seat.use, seat.container = Use.TAKEN, container
                seat.memory_bytes, seat.joins = record.memory_limit_bytes, record.joins
        for pod in list(self._pods):
            self._tasks.start_soon(self._settle, pod)

    async def _settle(self, pod: Pod) -> None:
        """What an earlier daemon may have left: a machine that is empty, seats that were being left."""
        async with self._changing:
            if await self._end_unused(pod):
                return
            free = [seat for seat in pod.seats if seat.use is Use.FREE]
            for seat in free:
                seat.use = Use.LEAVING
        for seat in free:
            await self._renew(pod, seat)

    def _pod_named(self, directory: str) -> Pod | None:
        return next((pod for pod in self._pods if pod.home.name == directory), None)

    def _place_of(self, record: Record, container: ContainerId) -> tuple[Pod | None, Seat | None]:
        pod = self._pod_named(record.pod)
        return pod, pod.find_seat(container) if pod is not None else None

    def _process_of(
        self,
        pod: Pod | None,
        seat: Seat | None,
        container: ContainerId,
        guest: Guest,
        *,
        is_over: bool = False,
    ) -> SeatProcess:
        async def leave() -> None:
            if guest.main.status is not None and guest.is_linked:
                with anyio.move_on_after(_SYNC_TIMEOUT_S):
                    await guest.synced.wait()
            guest.close()  # QEMU serves one client of a port at a time
            if pod is not None and seat is not None:
                await self._leave(pod, seat, container, is_synced=guest.synced.is_set())

        pid = pod.process.pid if pod is not None else 0
        return SeatProcess(None if is_over else pod, pid, leave)

    def _clone_of(self, home: Home, record: Record, container: ContainerId, *, is_over: bool) -> Clone:
        guest = Guest(
            home.control, tty=record.tty, open_stdin=record.open_stdin, stdin_once=record.stdin_once
        )
        server = record.fs_server
        return Clone(
            record=record,
            process=self._process_of(*self._place_of(record, container), container, guest, is_over=is_over),
            fs_server=HostProcess.find(server.pid, server.start_time) if server is not None else None,
            guest=guest,
            console=Console(),
        )

    def _supervised(self, task: PodTask) -> PodTask:
        self._tasks.start_soon(task.supervise, name=f"pod {task.id[:12]}")
        return task


def _seat_joined(pod: Pod | None, spec: TaskSpec) -> int | None:
    """Return the seat whose network a container shares. Raises WrongState."""
    if spec.network.joins is None:
        return None
    seat = pod.find_seat(spec.network.joins) if pod is not None else None
    if seat is None:
        raise WrongState(f"container {spec.network.joins} does not run in the virtual machine {spec.machine}")
    return seat.number


def _shape_for(spec: TaskSpec) -> Shape:
    """Return the machine that is made for the first container."""
    memory = memory_for(spec.resources.memory_bytes, LEAST_MEMORY_BYTES)
    return Shape(
        memory_bytes=max(memory, LEAST_MEMORY_BYTES),
        vcpus=min(MOST_VCPUS, os.cpu_count() or 1),
        nics=features.MAX_SEATS,
        seats=features.MAX_SEATS,
    )


def _open_tap(name: str, held: contextlib.ExitStack) -> int:
    """Make a tap that goes with its descriptor. Raises Unavailable."""
    try:
        tap = LooseTap(name)
    except OSError as error:
        raise Unavailable(f"a virtual machine needs taps: {error}") from error
    held.callback(tap.close)
    return tap.fd


async def _is_fresh(control: Path) -> bool:
    """Tell whether no container has been given to a seat's agent: what was there before is over.

    One that is just being replaced hears nothing of what its predecessor was told, so it is asked anew.

    :raises Unavailable: there is no answer.
    """
    deadline = anyio.current_time() + _FIND_TIMEOUT_S
    while True:
        channel = await Channel.connect(control, _Unheard())
        try:
            answer = await channel.request(
                FrameType.HELLO, messages.hello(protocol.VERSION), timeout_s=_FRESH_ANSWER_S
            )
            return answer.number(Key.FRESH) != 0
        except (OutcomeUnknown, Unavailable, AgentError) as error:
            if anyio.current_time() > deadline:
                raise Unavailable("the container's agent does not answer") from error
        finally:
            channel.close()


async def _renew_agent(control: Path) -> None:
    """Have the agent of a seat replaced, and wait for the new one.

    :raises Unavailable: it is not there in time.
    """
    asked = False
    with anyio.move_on_after(_FRESH_TIMEOUT_S):
        while True:
            channel = await Channel.connect(control, _Unheard())
            with contextlib.closing(channel), contextlib.suppress(OutcomeUnknown, Unavailable, AgentError):
                answer = await channel.request(
                    FrameType.HELLO, messages.hello(protocol.VERSION), timeout_s=_FRESH_ANSWER_S
                )
                if answer.number(Key.FRESH):
                    return
                if not asked:
                    await channel.request(FrameType.POWEROFF, timeout_s=_FRESH_TIMEOUT_S)
                    asked = True
            await anyio.sleep(_FRESH_PAUSE_S)
    raise Unavailable("the agent of a container that is over does not go")


def _shape_of(pod: Pod) -> Shape:
    seats = len(pod.seats)
    return Shape(memory_bytes=pod.state.memory_bytes, vcpus=pod.state.vcpus, nics=seats, seats=seats)


def _state_of(name: str, shape: Shape, child: HostProcess, taps: list[int]) -> State:
    pid: Pid = pid_of(child)
    return State(name=name, qemu=pid, memory_bytes=shape.memory_bytes, vcpus=shape.vcpus, taps=taps)


@contextlib.contextmanager
def _explained(pod: Pod) -> Iterator[None]:
    try:
        yield
    except (OutcomeUnknown, Unavailable, AgentError, OSError) as error:
        said = "\n".join(filter(None, (str(error.args[0] if error.args else error), qemu.log_tail(pod.home))))
        raise StartFailed(
            f"the container could not be started in the virtual machine {pod.name}: {said}"
        ) from error

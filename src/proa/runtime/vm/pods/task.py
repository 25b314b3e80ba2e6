# SPDX-License-Identifier: Apache-2.0
"""A container in a shared machine as the engine's task: the VM hull's, but that QEMU is not its own.

What ends with it is its seat, not QEMU; what stands still in a pause is its control group in the guest, not
the machine; its share of the processors is held by that group too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import msgspec

from proa.model.errors import FeatureMissing, Internal, Unavailable, WrongState
from proa.model.ids import ContainerId
from proa.model.task import Resources, TaskSpec
from proa.runtime.vm import limits, messages
from proa.runtime.vm.channel import AgentError
from proa.runtime.vm.clone import Clone
from proa.runtime.vm.home import Home
from proa.runtime.vm.pods import features
from proa.runtime.vm.pods.pod import Pod
from proa.runtime.vm.protocol import Fields, FrameType, Key, u32, u64
from proa.runtime.vm.qemu import HostProcess
from proa.runtime.vm.task import FIND_TIMEOUT_S, VmTask

_DEFAULT_PERIOD_US = 100_000
_DEFAULT_SHARES, _DEFAULT_WEIGHT = 1024, 100


class SeatProcess(HostProcess):
    """What a task takes for its QEMU: it ends when the machine does, and ending it gives up the seat.

    :param pod: None when what ran there is over.
    :param leave: gives up the seat; called once.
    """

    def __init__(self, pod: Pod | None, pid: int, leave: Callable[[], Awaitable[None]]) -> None:
        super().__init__(None, pid=pid, start_time=0)
        self._pod = pod
        self._leave = leave
        self._leaving = anyio.Lock()
        self._left = anyio.Event()
        self._killed = anyio.Event()

    async def wait(self) -> None:
        if self._pod is None:
            return
        async with anyio.create_task_group() as racing:
            for over in (self._pod.process.wait, self._left.wait, self._killed.wait):
                racing.start_soon(_first, over, racing.cancel_scope)

    def kill(self) -> None:
        """The machine is not this container's to kill: it ends when its seat is given up."""
        self._killed.set()

    async def end(self) -> None:
        async with self._leaving:
            if not self._left.is_set():
                await self._leave()
            self._left.set()


async def _first(over: Callable[[], Awaitable[None]], others: anyio.CancelScope) -> None:
    await over()
    others.cancel()


class PodTask(VmTask):
    """The task. Made by ``PodRuntime``.

    :param pod: None when the machine is gone.
    """

    def __init__(
        self, container_id: ContainerId, clone: Clone, home: Home, spec: TaskSpec | None, pod: Pod | None
    ) -> None:
        super().__init__(container_id, clone, home, spec)
        self._pod = pod

    async def pause(self) -> None:
        self._require_running()
        await self._freeze(u32(Key.STATE, 1))
        self._is_paused = True

    async def resume(self) -> None:
        self._require_running()
        await self._freeze(u32(Key.STATE, 0))
        self._is_paused = False

    async def update(self, resources: Resources) -> None:
        self._require_running()
        record = self._clone.record
        seat = self._pod.find_seat(self.id) if self._pod is not None else None
        if self._pod is None or seat is None:
            raise WrongState(f"container {self.id} is not running")
        self._pod.check_fits(resources.memory_bytes, resources.cpus, seat=seat)
        if limits.around_qemu(_in_guest(resources), record.vcpus) is not None:
            raise FeatureMissing(
                features.NAME, "such a limit", "it would hold for all containers of the virtual machine"
            )
        payload = messages.update(memory_bytes=resources.memory_bytes, pids=resources.pids)
        try:
            await self._guest.channel.request(FrameType.UPDATE, payload + cpu_limits(resources))
        except AgentError as error:
            raise Internal(f"the virtual machine could not change the limits: {error.message}") from error
        seat.memory_bytes = max(0, resources.memory_bytes)
        self._clone.record = msgspec.structs.replace(record, memory_limit_bytes=seat.memory_bytes)
        self._home.write(self._clone.record)

    async def take_up(self) -> bool:
        try:
            await self._guest.take_up(timeout_s=FIND_TIMEOUT_S)
            self._is_paused = (await self._freeze(b"")).number(Key.STATE) != 0
        except AgentError as error:
            raise Unavailable(f"the container's agent does not answer: {error.message}") from error
        return self._guest.main.is_started

    async def _freeze(self, payload: bytes) -> Fields:
        try:
            return await self._guest.channel.request(FrameType.FREEZE, payload)
        except AgentError as error:
            raise Internal(f"the container cannot be paused: {error.message}") from error


def cpu_limits(resources: Resources) -> bytes:
    """Fields of CONFIGURE and UPDATE. A weight is Docker's share, scaled as the kernel's own defaults are."""
    weight = max(1, min(10_000, resources.cpu_shares * _DEFAULT_WEIGHT // _DEFAULT_SHARES))
    return (
        u64(Key.CPU_QUOTA_US, max(0, resources.cpu_quota_us))
        + u64(Key.CPU_PERIOD_US, resources.cpu_period_us or _DEFAULT_PERIOD_US)
        + u64(Key.CPU_WEIGHT, weight if resources.cpu_shares else _DEFAULT_WEIGHT)
    )


def _in_guest(resources: Resources) -> Resources:
    """Return what is left of limits when those that the guest holds are taken away."""
    return Resources(
        memory_reservation_bytes=resources.memory_reservation_bytes,
        cpuset_cpus=resources.cpuset_cpus,
        cpuset_mems=resources.cpuset_mems,
        blkio_weight=resources.blkio_weight,
    )

# SPDX-License-Identifier: Apache-2.0
"""Which seat a container gets, and what its agent is told of processors."""

from __future__ import annotations

from pathlib import Path

from proa.model.ids import ContainerId
from proa.model.task import Resources
from proa.runtime.vm.home import Pid
from proa.runtime.vm.pods.pod import Pod, State, Use
from proa.runtime.vm.pods.task import cpu_limits
from proa.runtime.vm.protocol import Fields, Key
from proa.runtime.vm.qemu import HostProcess


def pod() -> Pod:
    state = State(name="x", qemu=Pid(pid=1, start_time=1), memory_bytes=1 << 30, vcpus=2, taps=[5, 6, 7])
    return Pod(Path("/run/.pod-0a0b0c0d"), state, HostProcess.ended(1))


def take(pod: Pod, container: str, joins: int | None = None) -> int:
    seat = pod.find_free()
    assert seat is not None
    seat.use, seat.container, seat.joins = Use.TAKEN, ContainerId(container), joins
    return seat.number


def test_a_seat_whose_network_is_shared_is_not_given_away() -> None:
    shared = pod()
    assert [take(shared, "a"), take(shared, "b", joins=0)] == [0, 1]
    shared.seats[0].use, shared.seats[0].container = Use.FREE, None
    assert take(shared, "c") == 2
    assert shared.find_free() is None
    shared.seats[1].use = Use.FREE
    assert take(shared, "d") == 0


def test_disks_follow_the_order_of_devices_and_devices_fit_their_names() -> None:
    assert [seat.disks for seat in pod().seats] == [("vda", "vdb"), ("vdc", "vdd"), ("vde", "vdf")]
    assert len(pod().spare_tap(5)) <= 15  # IFNAMSIZ


def test_limits_of_processors() -> None:
    def read(resources: Resources) -> list[int]:
        fields = Fields(cpu_limits(resources))
        return [fields.number(key) for key in (Key.CPU_QUOTA_US, Key.CPU_PERIOD_US, Key.CPU_WEIGHT)]

    assert read(Resources()) == [0, 100_000, 100]
    assert read(Resources(cpu_quota_us=50_000, cpu_period_us=200_000, cpu_shares=512)) == [
        50_000,
        200_000,
        50,
    ]
    assert read(Resources(cpu_shares=2, cpu_quota_us=-1)) == [0, 100_000, 1]

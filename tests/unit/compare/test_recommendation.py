# SPDX-License-Identifier: Apache-2.0
"""What is recommended follows from the rows."""

from __future__ import annotations

from proa.compare import footprint, isolation, performance, startup
from proa.compare.command import NAME as COMMAND
from proa.compare.figures import Cell, Fact, Missing, Row, measured
from proa.compare.recommendation import advise


def table(
    *,
    start: tuple[float, float] = (40, 200),
    cpu: tuple[float, float] = (100, 98),
    memory: tuple[float, float] = (4, 60),
    command: tuple[list[float], list[float]] | None = None,
    kernel: str = "its own, 6.1",
) -> list[Row]:
    host = measured([100.0], "hashes/s", "m")
    rows = [
        Row(
            topic=startup.TOPIC,
            name=startup.WARM,
            container=measured([start[0]], "ms", "m"),
            vm=measured([start[1]], "ms", "m"),
        ),
        Row(
            topic=performance.TOPIC,
            name=performance.CPU,
            host=host,
            container=measured([cpu[0]], "hashes/s", "m", base=host),
            vm=measured([cpu[1]], "hashes/s", "m", base=host),
        ),
        Row(
            topic=footprint.MEMORY,
            name=footprint.IDLE,
            container=measured([memory[0]], "MiB", "m"),
            vm=measured([memory[1]], "MiB", "m"),
        ),
        Row(
            topic=isolation.ISOLATION,
            name=isolation.KERNEL,
            container=Fact(text="the host's, 6.18", method="m"),
            vm=Fact(text=kernel, method="m"),
        ),
    ]
    if command:
        cells = [measured(values, "ms", "m") for values in command]
        rows.append(Row(topic=performance.TOPIC, name=COMMAND, container=cells[0], vm=cells[1]))
    return rows


def test_a_cheap_vm_is_recommended_for_its_kernel() -> None:
    advice = advise(table(), accelerator="kvm")
    assert advice.hull == "vm"
    assert "a kernel of its own" in advice.reasons[0]
    assert advice.otherwise


def test_an_emulated_vm_is_too_slow() -> None:
    advice = advise(table(cpu=(99, 8)), accelerator="tcg")
    assert advice.hull == "container"
    assert advice.reasons == (
        "the VM's CPU does 8% of the host's work (emulated: KVM is not usable on this host)",
    )
    assert advice.otherwise[0].startswith("take the VM for code that you do not trust")


def test_every_price_that_is_too_high_is_named() -> None:
    advice = advise(table(start=(40, 3000), memory=(4, 500)), accelerator="kvm")
    assert advice.reasons == (
        "the VM starts in 3000 ms, the container in 40",
        "the VM takes 500 MiB of the host's memory, the container 4",
    )


def test_a_command_counts_with_its_figures() -> None:
    slow = advise(table(command=([10, 11, 12], [100, 110, 120])), accelerator="kvm")
    assert "your command takes 10.0 times as long in the VM" in slow.reasons
    equal = advise(table(command=([10, 11, 12], [10, 11, 13])), accelerator="kvm")
    assert "your command takes about as long in both" in equal.reasons


def test_a_vm_that_isolates_nothing_is_not_recommended() -> None:
    assert advise(table(kernel="the host's, 6.18"), accelerator="").hull == "container"


def test_one_hull_that_does_not_start_decides() -> None:
    missing = Missing(reason="no QEMU")
    works = measured([40.0], "ms", "m")

    def start(container: Cell, vm: Cell) -> list[Row]:
        return [Row(topic=startup.TOPIC, name=startup.WARM, container=container, vm=vm)]

    assert advise(start(works, missing), accelerator="").reasons == ("the VM does not start here: no QEMU",)
    assert advise(start(missing, works), accelerator="").hull == "vm"
    assert advise(start(missing, missing), accelerator="").hull == "none"


def test_no_rows_at_all_are_survived() -> None:
    assert advise([], accelerator="").hull == "container"

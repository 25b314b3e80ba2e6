# SPDX-License-Identifier: Apache-2.0
"""Which hull to take, from the rows alone. Pure.

The rule: a VM's isolation is worth its price when that is small (it keeps most of the host's CPU, starts
quickly and takes little memory); otherwise the container, unless what runs is not trusted. Each reason names
the figures it rests on, so that a reader can weigh them differently.
"""

from __future__ import annotations

from collections.abc import Sequence

from proa.compare import footprint, isolation, performance, startup
from proa.compare.command import NAME as COMMAND
from proa.compare.figures import Advice, Cell, Fact, Measured, Missing, Row, find_row
from proa.compare.statistics import overlap

CONTAINER = "container"
VM = "vm"

# What counts as a small price. Beyond these the VM's isolation has to be wanted for its own sake.
CPU_KEPT = 0.85  # of the host's speed
START_MS = 1000.0  # what a person still takes for "at once"
MEMORY_MIB = 160.0  # of the host, for an idle instance


def advise(rows: Sequence[Row], *, accelerator: str) -> Advice:
    """Weigh the rows.

    :param accelerator: kvm, tcg, or "" when not known.
    """
    start = _pair(rows, startup.TOPIC, startup.WARM)
    memory = _pair(rows, footprint.MEMORY, footprint.IDLE)
    kernel = find_row(rows, isolation.ISOLATION, isolation.KERNEL)
    if start is not None and (lone := _only_one_works(start)) is not None:
        return lone
    cpu = find_row(rows, performance.TOPIC, performance.CPU)
    kept = cpu.vm.relative if cpu is not None and isinstance(cpu.vm, Measured) else None
    prices = [
        _cpu_price(kept, accelerator),
        _price(start, "starts", START_MS, "ms"),
        _price(memory, "takes", MEMORY_MIB, "MiB of the host's memory"),
    ]
    known = [price for price in prices if price is not None]
    isolated = _isolation_reason(kernel)
    dear = [text for small, text in known if not small]
    cheap = [text for small, text in known if small]
    own_command = _command_reason(find_row(rows, performance.TOPIC, COMMAND))
    if dear or not isolated:
        return Advice(
            hull=CONTAINER,
            reasons=(*dear, *own_command) or ("the VM shows no isolation that the container lacks",),
            otherwise=tuple(f"take the VM for code that you do not trust: {reason}" for reason in isolated),
        )
    return Advice(
        hull=VM,
        reasons=(*isolated, *cheap, *own_command),
        otherwise=(
            "take the container where many short runs follow each other, "
            "or where the host's devices or kernel must be seen",
        ),
    )


def _pair(rows: Sequence[Row], topic: str, name: str) -> tuple[Cell, Cell] | None:
    row = find_row(rows, topic, name)
    return None if row is None else (row.container, row.vm)


def _only_one_works(start: tuple[Cell, Cell]) -> Advice | None:
    container, vm = start
    if isinstance(vm, Missing) and isinstance(container, Missing):
        return Advice(
            hull="none",
            reasons=(f"container: {container.reason}", f"VM: {vm.reason}"),
            otherwise=(),
        )
    if isinstance(vm, Missing):
        return Advice(hull=CONTAINER, reasons=(f"the VM does not start here: {vm.reason}",), otherwise=())
    if isinstance(container, Missing):
        return Advice(
            hull=VM, reasons=(f"the container does not start here: {container.reason}",), otherwise=()
        )
    return None


def _cpu_price(kept: float | None, accelerator: str) -> tuple[bool, str] | None:
    if kept is None:
        return None
    why = " (emulated: KVM is not usable on this host)" if accelerator == "tcg" else ""
    return kept >= CPU_KEPT, f"the VM's CPU does {kept:.0%} of the host's work{why}"


def _price(pair: tuple[Cell, Cell] | None, verb: str, limit: float, unit: str) -> tuple[bool, str] | None:
    if pair is None:
        return None
    container, vm = pair
    if not isinstance(container, Measured) or not isinstance(vm, Measured):
        return None
    ours, theirs = vm.spread.median, container.spread.median
    how = "in " if verb == "starts" else ""
    return ours <= limit, f"the VM {verb} {how}{ours:.0f} {unit}, the container {how}{theirs:.0f}"


def _isolation_reason(kernel: Row | None) -> list[str]:
    if kernel is None or not isinstance(kernel.vm, Fact) or not isinstance(kernel.container, Fact):
        return []
    if kernel.vm.text.startswith("its own") and kernel.container.text.startswith("the host's"):
        return ["it has a kernel of its own, where the container's system calls go to the host's"]
    return []


def _command_reason(row: Row | None) -> list[str]:
    if row is None or not isinstance(row.container, Measured) or not isinstance(row.vm, Measured):
        return []
    container, vm = row.container.spread, row.vm.spread
    if overlap(container, vm):
        return ["your command takes about as long in both"]
    slower, ratio = ("VM", vm.median / container.median)
    if ratio < 1:
        slower, ratio = "container", 1 / ratio
    return [f"your command takes {ratio:.1f} times as long in the {slower}"]

# SPDX-License-Identifier: Apache-2.0
"""Boots a machine from the guest kernel to the agent's greeting: the beginning of every template, and the
test whether an accelerator works.

Source: kernel Documentation/admin-guide/kernel-parameters.txt; docs/reference/agent-protocol.md, HELLO.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from proa.model.errors import EngineError, Internal, Unavailable
from proa.runtime.vm import cmdline, messages, protocol, qemu
from proa.runtime.vm.channel import AgentError, Channel
from proa.runtime.vm.machine import Boot, Disk, Machine, Ports, Shape
from proa.runtime.vm.protocol import Frame, FrameType
from proa.runtime.vm.qemu import Console, HostProcess

BOOT_TIMEOUT_S = (
    120.0  # 3 s here under emulation; a host that is busy with much else may take many times that
)
_CALIBRATION_S = 0.05  # over which the time stamp counter is compared with the clock: some parts in a million

# The answer "in use" leaves a name to the kernel; the tap vanishes with the QEMU that opened it.
TEMPLATE_TAP = "proatmpl%d"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """What is booted: the kernel and the initramfs with the agent, by which QEMU."""

    qemu: Path
    kernel: Path
    initramfs: Path
    accelerator: str
    more_arguments: str = ""  # at the end of the kernel's command line


@dataclass(frozen=True, slots=True, kw_only=True)
class Booted:
    """A machine whose agent has answered."""

    process: HostProcess
    monitor: Path
    kernel_release: str


class Deaf:
    """Nothing is said unasked before a machine is configured."""

    def on_frame(self, frame: Frame) -> None:
        raise protocol.ProtocolError(f"{frame.kind.name} before CONFIGURE")

    def on_link_down(self) -> None:
        pass


@asynccontextmanager
async def open_booted(
    guest: Guest, shape: Shape, home: Path, *, new_disk: Path | None = None, timeout_s: float = BOOT_TIMEOUT_S
) -> AsyncIterator[Booted]:
    """Boot a machine with its memory in ``home/mem``, for the span of the block; then QEMU is gone.

    :param new_disk: what the guest mounts (and does not write) as a container's new disk.
    :raises Unavailable: the agent did not answer in time; the message has the console's last lines.
    """
    arguments = _arguments_of(guest, await measure_tsc_khz())
    console = Console()
    process: HostProcess | None = None
    release = ""
    try:
        process = qemu.launch(
            home, lambda ports: plan(guest, shape, home, arguments, ports, new_disk), seats=shape.seats
        )
        await console.connect(home)
        (home / "pid").write_text(f"{process.pid} {process.start_time}\n")
        for control in [f"control-{seat}" for seat in range(shape.seats)] or ["control"]:
            release = await _greet(home / control, timeout_s)
        yield Booted(process=process, monitor=home / "monitor", kernel_release=release)
    except EngineError as error:
        said = "\n".join(filter(None, (qemu.log_tail(home), console.text()[-2048:])))
        raise Unavailable(f"{error.message}\n{said}".strip()) from error
    finally:
        if process is not None:
            with anyio.CancelScope(shield=True):
                await process.end()
        console.close()


def plan(
    guest: Guest, shape: Shape, home: Path, arguments: str, ports: Ports, new_disk: Path | None = None
) -> Machine:
    """Return the machine that boots."""
    return Machine(
        qemu=guest.qemu,
        name=f"proa-template-{shape.memory_bytes >> 20}m",
        accelerator=guest.accelerator,
        shape=shape,
        memory_file=home / "mem",
        begins=Boot(
            kernel=guest.kernel,
            initramfs=guest.initramfs,
            arguments=f"{arguments} proa.seats={shape.seats}" if shape.seats else arguments,
        ),
        ports=ports,
        is_template=True,
        new=Disk(path=new_disk),
        taps=(TEMPLATE_TAP,) * shape.nics,
    )


def recipe(guest: Guest) -> str:
    """Return all that a template depends on beside the content of files, the processor and the shape."""
    ports = Ports(monitor_fd=0, control_fd=0, console_fd=0, seat_fds=(0,))
    arguments = _arguments_of(guest, 0)
    shapes = [Shape(memory_bytes=0, vcpus=1, nics=1, seats=seats) for seats in (0, 1)]
    words = (cmdline.render(plan(guest, shape, Path("/"), arguments, ports)) for shape in shapes)
    return "\n".join(word for each in words for word in each)


def _arguments_of(guest: Guest, tsc_khz: int) -> str:
    return f"{kernel_arguments(guest.accelerator, tsc_khz)} {guest.more_arguments}".rstrip()


async def _greet(control: Path, timeout_s: float) -> str:
    """Wait for the agent's greeting, or the end of QEMU; return the release of the guest's kernel."""
    release = ""
    try:
        with anyio.fail_after(timeout_s):
            channel = await Channel.connect(control, Deaf())
            try:
                answer = await channel.request(
                    FrameType.HELLO, messages.hello(protocol.VERSION), timeout_s=timeout_s
                )
                release = answer.text(protocol.Key.KERNEL)
            finally:
                channel.close()
    except AgentError as error:
        raise Internal(f"the guest agent does not fit this engine: {error.message}") from error
    except TimeoutError as error:
        raise Unavailable(f"the guest did not boot within {timeout_s:g} s") from error
    return release


def kernel_arguments(accelerator: str, tsc_khz: int) -> str:
    """Return the guest kernel's command line.

    :param tsc_khz: of the host; under TCG the guest sees the host's counter and hangs while measuring it.
    """
    words = ["console=ttyS0", "quiet", "panic=-1", "reboot=t", "pci=off", "cryptomgr.notests"]
    # The timer's self-test and the measurement of delays take the emulator's jitter for a broken chip.
    words += ["no_timer_check", "tsc=reliable"]
    # Making mounts, interfaces and cgroups waits for RCU many times; a guest that starts is in a hurry.
    words.append("rcupdate.rcu_expedited=1")
    # Nobody loads a policy in a guest: without it security modules and auditing only cost time in every call.
    words += ["lsm=capability", "audit=0"]
    # Both are for machines that people sit at, or that are watched for pressure from inside.
    words += ["noautogroup", "psi=0"]
    if accelerator == "tcg":
        # Emulated processors do not speculate: the mitigations would cost much and protect nothing.
        words += [f"tsc_early_khz={tsc_khz}", "mitigations=off"]
        # A fork takes half the time when pages are not cleared twice and page tables have four levels.
        words += ["init_on_alloc=0", "no5lvl"]
    return " ".join(words)


async def measure_tsc_khz() -> int:
    """Return the frequency of the host's time stamp counter.

    No file of /proc or /sys tells it on all hosts (``cpu MHz`` changes with load), so it is measured: by
    executing RDTSC twice.
    """
    # rdtsc; shl $32,%rdx; or %rdx,%rax; ret
    code = bytes.fromhex("0f31 48c1e220 4809d0 c3")
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    anchor = ctypes.c_char.from_buffer(page)
    read_counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(anchor))
    clock_0, counter_0 = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), read_counter()
    await anyio.sleep(_CALIBRATION_S)
    clock_1, counter_1 = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), read_counter()
    del read_counter, anchor
    page.close()
    return int((counter_1 - counter_0) * 1_000_000 // (clock_1 - clock_0))

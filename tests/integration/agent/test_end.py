# SPDX-License-Identifier: Apache-2.0
"""The beginning and the end of a machine: twins, the log, the exit record, power off."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest

from tests.integration.agent import link as wire
from tests.integration.agent.conftest import MAIN, Disks, Guest, Template, clone, configuration, description
from tests.integration.agent.link import Pair, Refused


def start(
    guest: Guest, disks: Disks, *args: str, more: tuple[Pair, ...] = (), configure: tuple[Pair, ...] = ()
) -> None:
    first = guest.link.begin(wire.CONFIGURE, *configuration(disks, *configure))
    second = guest.link.begin(wire.START, (wire.PROCESS, MAIN), *description(*args), *more)
    guest.link.answer(first)
    guest.link.answer(second)


def test_log_exit_record_and_power_off(fresh: Guest, disks: Disks) -> None:
    script = "echo one; echo two >&2; printf part; sleep 0.2; echo ial; seq 20000; exit 42"
    begin = time.time_ns()
    start(fresh, disks, "sh", "-c", script)
    assert fresh.link.wait(MAIN) == 42
    while MAIN not in fresh.link.synced:
        fresh.link.step()
    code, oom, finished = fresh.machine.read("exit").split()
    assert (code, oom) == ("42", "0")
    assert begin < int(finished) < time.time_ns()
    records = [line.split(" ", 3) for line in fresh.machine.read("log").splitlines()]
    assert {tuple(record[1:]) for record in records[:2]} == {("stdout", "F", "one"), ("stderr", "F", "two")}
    assert [record[2:] for record in records[2:4]] == [["P", "part"], ["F", "ial"]]
    output = "".join(
        text + ("\n" if flag == "F" else "") for _, stream, flag, text in records if stream == "stdout"
    )
    assert output == "one\npartial\n" + "".join(f"{n}\n" for n in range(1, 20001))
    assert records[0][0].endswith("+00:00") and len(records[0][0]) == 35
    # Nobody ends the machine, so it does so itself.
    assert fresh.machine.process.wait(timeout=10) == 0


def test_everything_is_kept_while_no_host_is_there(fresh: Guest, disks: Disks) -> None:
    start(fresh, disks, "sh", "-c", "sleep 0.3; seq 100000; kill -9 $$", more=((wire.INIT, 1),))
    fresh.link.close()
    assert fresh.machine.process.wait(timeout=20) == 0
    assert fresh.machine.read("exit").startswith("137 0 ")
    assert fresh.machine.read("log").splitlines()[-1].endswith(" stdout F 100000")
    whole = [line for line in fresh.machine.read("log").splitlines() if line.split(" ", 3)[2] == "F"]
    assert len(whole) == 100000


def test_init_forwards_and_reaps(fresh: Guest, disks: Disks) -> None:
    script = "trap 'exit 9' TERM; echo $$; (sleep 0.1 &) ; while :; do sleep 0.05; done"
    start(fresh, disks, "sh", "-c", script, more=((wire.INIT, 1),))
    fresh.link.wait_output(MAIN, b"2\n")
    time.sleep(0.4)
    assert "Z" not in fresh.shell("ps -o stat")
    fresh.link.request(wire.SIGNAL, (wire.PROCESS, MAIN), (wire.SIGNAL_NUMBER, 15))
    assert fresh.link.wait(MAIN) == 9


def test_main_without_a_handler_ignores_term_but_not_kill(fresh: Guest, disks: Disks) -> None:
    start(fresh, disks, "sleep", "1000")
    fresh.link.request(wire.SIGNAL, (wire.PROCESS, MAIN), (wire.SIGNAL_NUMBER, 15))
    process = fresh.spawn("sleep", "1000")
    fresh.link.request(wire.SIGNAL, (wire.PROCESS, MAIN), (wire.SIGNAL_NUMBER, 9))
    assert fresh.link.wait(MAIN) == 137
    assert fresh.link.wait(process) == 137  # all of the container ends with its first process
    with pytest.raises(Refused, match="container is not running"):
        fresh.spawn("true")


def test_out_of_memory(fresh: Guest, disks: Disks) -> None:
    start(fresh, disks, "tail", "/dev/zero", configure=((wire.MEMORY_MAX, 32 << 20),))
    assert fresh.link.wait(MAIN) == 137
    assert fresh.link.exits[MAIN].number(wire.OOM) == 1
    assert fresh.machine.read("exit").startswith("137 1 ")


def test_a_failed_start(fresh: Guest, disks: Disks) -> None:
    fresh.link.request(wire.CONFIGURE, *configuration(disks))
    with pytest.raises(Refused) as caught:
        fresh.link.request(wire.START, (wire.PROCESS, MAIN), *description("nothing"))
    assert caught.value.code == 127
    with pytest.raises(Refused, match="the container's first process is gone"):
        fresh.link.request(wire.START, (wire.PROCESS, MAIN), *description("true"))


def test_read_only_root(fresh: Guest, disks: Disks) -> None:
    fresh.link.request(wire.CONFIGURE, *configuration(disks))
    fields = ((wire.READ_ONLY_ROOT, 1), (wire.TTY, 1), (wire.ROWS, 30), (wire.COLUMNS, 90))
    script = "touch /x; echo $?; stty size; echo console >/dev/console; sleep 0.2"
    fresh.link.request(wire.START, (wire.PROCESS, MAIN), *description("sh", "-c", script), *fields)
    assert fresh.link.wait(MAIN) == 0
    text = fresh.link.output[MAIN, 1].decode().replace("\r", "").splitlines()
    assert text == ["touch: /x: Read-only file system", "1", "30 90", "console"]


def test_twins_differ(template: Template, disks: Disks) -> None:
    seen = []
    for _ in range(2):
        with tempfile.TemporaryDirectory(prefix="pa-", dir="/tmp") as directory:
            guest = clone(template, Path(directory) / "vm", layers=disks.layers)
            try:
                script = "head -c 16 /dev/urandom | od -An -tx1; cd /proc/sys/kernel/random; cat boot_id uuid"
                start(guest, disks, "sh", "-c", script)
                assert guest.link.wait(MAIN) == 0
                seen.append(guest.link.output[MAIN, 1].decode().splitlines())
            finally:
                guest.machine.stop()
    assert not set(seen[0]) & set(seen[1])


def test_power_off(fresh: Guest) -> None:
    fresh.link.request(wire.POWEROFF)
    assert fresh.machine.process.wait(timeout=10) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([(wire.WALL_CLOCK_NS, 1)], "entropy and clock: Invalid argument"),
        (
            [(wire.INTERFACE, [(wire.IF_NAME, "eth0"), (wire.IF_MATCH_MAC, bytes(6))])],
            "network: the machine has no such network device",
        ),
        (
            [(wire.SYSCTL, [(wire.NAME, "no.such"), (wire.VALUE, "1")])],
            "write sysctl key no.such: No such file or directory",
        ),
        (
            [(wire.LAYER, [(wire.OFFSET, 1), (wire.LENGTH, 512)])],
            "layer 0: offset and length are not multiples of 512",
        ),
    ],
)
def test_bad_configurations(fresh: Guest, fields: list[Pair], message: str) -> None:
    base: list[Pair] = (
        []
        if fields[0][0] == wire.WALL_CLOCK_NS
        else [(wire.ENTROPY, bytes(32)), (wire.WALL_CLOCK_NS, time.time_ns())]
    )
    with pytest.raises(Refused) as caught:
        fresh.link.request(wire.CONFIGURE, *base, *fields)
    assert caught.value.message == message


def test_privileged(fresh: Guest, disks: Disks) -> None:
    script = "head -c 4 /dev/vda | wc -c; ls /dev/pts/ptmx; touch /sys/x 2>&1; sysctl -w kernel.printk=3"
    everything = tuple(
        field if field[0] != wire.CAPABILITIES else (wire.CAPABILITIES, 2**41 - 1)
        for field in description("sh", "-c", script)
    )
    fresh.link.request(wire.CONFIGURE, *configuration(disks, (wire.PRIVILEGED, 1)))
    fresh.link.request(wire.START, (wire.PROCESS, MAIN), *everything)
    assert fresh.link.wait(MAIN) == 0
    output = fresh.link.output[MAIN, 1].decode()
    assert output.startswith("4\n/dev/pts/ptmx\n")
    assert "Read-only" not in output

# SPDX-License-Identifier: Apache-2.0
"""Processes of a running guest: starts that fail, users, terminals, streams. The words are Docker's."""

from __future__ import annotations

import pytest

from tests.integration.agent import link as wire
from tests.integration.agent.conftest import MAIN, Guest, description
from tests.integration.agent.link import Link, Refused


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("foo", 127, 'exec: "foo": executable file not found in $PATH'),
        ("/x", 127, 'exec: "/x": stat /x: no such file or directory'),
        ("/etc/passwd/x", 127, 'exec: "/etc/passwd/x": stat /etc/passwd/x: not a directory'),
        ("/not-executable", 126, 'exec: "/not-executable": permission denied'),
        ("/tmp", 126, 'exec: "/tmp": is a directory'),
        ("/no-format", 126, "exec /no-format: exec format error"),
    ],
)
def test_programs_that_do_not_start(guest: Guest, command: str, code: int, message: str) -> None:
    with pytest.raises(Refused) as caught:
        guest.spawn(command)
    assert (caught.value.code, caught.value.message) == (code, message)


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ("nobody", "unable to find user nobody: no matching entries in passwd file"),
        ("app:nothing", "unable to find group nothing: no matching entries in group file"),
    ],
)
def test_users_that_do_not_exist(guest: Guest, user: str, message: str) -> None:
    with pytest.raises(Refused) as caught:
        guest.spawn("id", fields=((wire.USER, user),))
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", "uid=0(root) gid=0(root) groups=0(root),10(wheel)"),
        ("app", "uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)"),
        ("1000:10", "uid=1000(app) gid=10(wheel) groups=10(wheel)"),
        ("4711", "uid=4711 gid=0(root) groups=0(root)"),
    ],
)
def test_users(guest: Guest, user: str, expected: str) -> None:
    assert guest.run("id", fields=((wire.USER, user),))[1].strip() == expected


def test_home_path_and_directory(guest: Guest) -> None:
    fields = ((wire.USER, "app"), (wire.CWD, "/home"), (wire.ENV, "A=b c"))
    assert guest.run("sh", "-c", "echo $HOME $PATH $A; pwd", fields=fields)[1] == (
        "/home/app /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin b c\n/home\n"
    )
    with pytest.raises(Refused) as caught:
        guest.spawn("pwd", fields=((wire.CWD, "/nowhere"),))
    assert caught.value.message == (
        'chdir to cwd ("/nowhere") set in config.json failed: no such file or directory'
    )


def test_capabilities_and_limits(guest: Guest) -> None:
    limit = [(wire.RESOURCE, 7), (wire.SOFT, 77), (wire.HARD, 88)]  # RLIMIT_NOFILE
    fields = ((wire.RLIMIT, limit), (wire.NO_NEW_PRIVS, 1), (wire.OOM_SCORE_ADJ, 5))
    text = guest.run(
        "sh",
        "-c",
        "grep -E 'Cap|NoNew' /proc/self/status; ulimit -n; cat /proc/self/oom_score_adj",
        fields=fields,
    )[1]
    assert "CapBnd:\t00000000a80425fb" in text
    assert "CapEff:\t00000000a80425fb" in text
    assert "CapInh:\t0000000000000000" in text
    assert "NoNewPrivs:\t1" in text
    assert text.endswith("77\n5\n")
    assert (
        "CapEff:\t0000000000000000"
        in guest.run("grep", "Cap", "/proc/self/status", fields=((wire.USER, "app"),))[1]
    )


def test_exit_codes(guest: Guest) -> None:
    assert guest.run("sh", "-c", "echo out; echo err >&2; exit 3") == (3, "out\n", "err\n")
    assert guest.run("sh", "-c", "kill -9 $$")[0] == 137


def test_signals(guest: Guest) -> None:
    process = guest.spawn(
        "sh", "-c", "trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.05; done"
    )
    guest.link.wait_output(process, b"ready")
    guest.link.request(wire.SIGNAL, (wire.PROCESS, process), (wire.SIGNAL_NUMBER, 10))
    assert guest.link.wait(process) == 5
    assert guest.link.output[process, 1] == b"ready\ncaught\n"
    with pytest.raises(Refused) as caught:
        guest.link.request(wire.SIGNAL, (wire.PROCESS, process), (wire.SIGNAL_NUMBER, 10))
    assert caught.value.errno == 3


def test_terminal(guest: Guest) -> None:
    fields = ((wire.TTY, 1), (wire.ROWS, 40), (wire.COLUMNS, 100), (wire.OPEN_STDIN, 1))
    process = guest.spawn("sh", "-c", "tty; stty size; read x; stty size; echo $x", fields=fields)
    guest.link.wait_output(process, b"40 100\r\n")
    guest.link.request(wire.RESIZE, (wire.PROCESS, process), (wire.ROWS, 50), (wire.COLUMNS, 132))
    guest.link.feed(process, b"typed\n")
    assert guest.link.wait(process) == 0
    assert guest.link.output[process, 1] == b"/dev/pts/0\r\n40 100\r\ntyped\r\n50 132\r\ntyped\r\n"
    assert not guest.link.output[process, 2]


def test_interrupt_from_the_terminal(guest: Guest) -> None:
    process = guest.spawn("sh", "-c", "echo ready; sleep 100", fields=((wire.TTY, 1), (wire.OPEN_STDIN, 1)))
    guest.link.wait_output(process, b"ready")
    guest.link.feed(process, b"\x03")
    assert guest.link.wait(process) == 130


def test_input_and_its_end(guest: Guest) -> None:
    data = bytes(range(256)) * 4000
    process = guest.spawn("cat", fields=((wire.OPEN_STDIN, 1),))
    guest.link.feed(process, data)
    guest.link.send(wire.STDIN_EOF, process)
    assert guest.link.wait(process) == 0
    assert guest.link.output[process, 1] == data


def test_without_input(guest: Guest) -> None:
    assert guest.run("cat") == (0, "", "")


def test_input_nobody_reads(guest: Guest) -> None:
    process = guest.spawn("sh", "-c", "exec <&-; echo closed; sleep 0.3", fields=((wire.OPEN_STDIN, 1),))
    guest.link.wait_output(process, b"closed")
    guest.link.feed(process, b"x" * 100)
    assert guest.link.wait(process) == 0
    assert process in guest.link.stdin_closed


def test_a_stalled_reader_holds_back_its_process_alone(guest: Guest) -> None:
    guest.link.auto_credit = False
    process = guest.spawn("yes", credit=5000)
    guest.link.quiet(0.3)
    assert len(guest.link.output[process, 1]) == 5000
    guest.link.auto_credit = True
    assert guest.shell("seq 20000").endswith("20000\n")
    assert len(guest.link.output[process, 1]) == 5000
    guest.link.credit(process, 1, 1000)
    guest.link.quiet(0.3)
    assert len(guest.link.output[process, 1]) > 6000 - 1
    guest.link.request(wire.SIGNAL, (wire.PROCESS, process), (wire.SIGNAL_NUMBER, 9))
    assert guest.link.wait(process) == 137


def test_a_full_input_holds_back_its_sender_alone(guest: Guest) -> None:
    process = guest.spawn("sleep", "1000", fields=((wire.OPEN_STDIN, 1),))
    sent = 0
    while guest.link.stdin_credit[process] and sent < 1 << 20:
        size = min(guest.link.stdin_credit[process], 8192)
        guest.link.feed(process, b"x" * size)
        sent += size
        guest.link.quiet(0.02)
    assert sent == 65536 * 2  # what the pipe holds, and the agent
    assert guest.shell("echo alive") == "alive\n"
    guest.link.request(wire.SIGNAL, (wire.PROCESS, process), (wire.SIGNAL_NUMBER, 9))
    assert guest.link.wait(process) == 137


def test_detach_and_attach(guest: Guest) -> None:
    process = guest.spawn(
        "sh", "-c", "read a; echo $a; read a; echo $a; read a; echo $a", fields=((wire.OPEN_STDIN, 1),)
    )
    guest.link.feed(process, b"one\n")
    guest.link.wait_output(process, b"one")
    guest.link.request(wire.DETACH, (wire.PROCESS, process))
    guest.link.feed(process, b"two\n")
    guest.link.quiet(0.2)
    guest.link.request(
        wire.ATTACH, (wire.PROCESS, process), (wire.CREDIT_STDOUT, 1000), (wire.CREDIT_STDERR, 1000)
    )
    guest.link.feed(process, b"three\n")
    assert guest.link.wait(process) == 0
    assert guest.link.output[process, 1] == b"one\nthree\n"


def test_many_at_once(guest: Guest) -> None:
    processes = [guest.spawn("sh", "-c", f"seq 1000; exit {n}") for n in range(20)]
    assert [guest.link.wait(process) for process in processes] == list(range(20))
    assert {len(guest.link.output[process, 1]) for process in processes} == {3893}
    states = {
        record.number(wire.PROCESS): record.number(wire.STATE)
        for record in guest.link.request(wire.LIST).nested(wire.RECORD)
    }
    assert all(states[process] == 3 for process in processes)
    for process in processes:
        guest.link.request(wire.RELEASE, (wire.PROCESS, process))
    assert guest.link.request(wire.STATS).number(wire.PIDS) <= 3


def test_an_orphan_of_an_exec(guest: Guest) -> None:
    code, output, _ = guest.run("sh", "-c", "(sleep 0.2; echo late) & echo early")
    assert (code, output) == (0, "early\nlate\n")  # the stream ends with its last writer


def test_the_host_comes_back(guest: Guest) -> None:
    process = guest.spawn(
        "sh", "-c", "echo before; while read a; do echo $a; done; exit 6", fields=((wire.OPEN_STDIN, 1),)
    )
    guest.link.wait_output(process, b"before")
    flood = guest.spawn("yes", credit=1 << 30)
    guest.link.quiet(0.05)
    for _ in range(3):
        guest.link.close()  # in the middle of a frame
        guest.link = Link(guest.machine.directory / "control")
        assert guest.link.request(wire.HELLO, (wire.VERSION, 1)).number(wire.CONFIGURED) == 1
    records = {
        record.number(wire.PROCESS): record for record in guest.link.request(wire.LIST).nested(wire.RECORD)
    }
    assert records[MAIN].number(wire.FLAGS) == 1
    assert records[process].number(wire.STATE) == 2
    assert records[process].number(wire.STDIN_CREDIT) == 65536
    guest.link.request(wire.SIGNAL, (wire.PROCESS, flood), (wire.SIGNAL_NUMBER, 9))
    assert guest.link.wait_exit(flood) == 137
    guest.link.request(
        wire.ATTACH, (wire.PROCESS, process), (wire.CREDIT_STDOUT, 1000), (wire.CREDIT_STDERR, 1000)
    )
    guest.link.feed(process, b"again\n")
    guest.link.send(wire.STDIN_EOF, process)
    assert guest.link.wait(process) == 6
    assert guest.link.output[process, 1] == b"again\n"


def test_a_broken_rule_closes_the_link(guest: Guest) -> None:
    guest.link.send(0x77, 1)
    with pytest.raises(TimeoutError):
        guest.link.timeout_s = 0.5
        guest.link.request(wire.HELLO, (wire.VERSION, 1))
    guest.link.close()
    guest.link = Link(guest.machine.directory / "control")
    assert guest.shell("echo alive") == "alive\n"


def test_the_main_process_reads_and_is_logged(guest: Guest) -> None:
    guest.link.request(
        wire.ATTACH, (wire.PROCESS, MAIN), (wire.CREDIT_STDOUT, 1000), (wire.CREDIT_STDERR, 1000)
    )
    guest.link.feed(MAIN, b"word\n")
    guest.link.wait_output(MAIN, b"got word\n")
    line = guest.machine.read("log").splitlines()[-1]
    assert line.endswith(" stdout F got word")
    guest.link.request(wire.SYNC)


def test_only_one_main_process(guest: Guest) -> None:
    with pytest.raises(Refused, match="started already"):
        guest.link.request(wire.START, (wire.PROCESS, 2), *description("true"))
    with pytest.raises(Refused, match="configured already"):
        guest.link.request(wire.CONFIGURE)

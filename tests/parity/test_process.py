# SPDX-License-Identifier: Apache-2.0
"""The program, and those that exec adds: who they are, what they are given, how they end."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from tests.support.daemon import DOCKER, TIME_FACTOR, Daemon, Result

NO_USER = "unable to find user nosuch: no matching entries in passwd file"


def shell(daemon: Daemon, *arguments: str) -> list[str]:
    *options, script = arguments
    return daemon.docker("run", "--rm", *options, "busybox", "sh", "-c", script).out.splitlines()


def execute(daemon: Daemon, *arguments: str, check: bool = False) -> Result:
    return daemon.docker("exec", *arguments, check=check)


def terminal(daemon: Daemon, *arguments: str, keys: str) -> subprocess.CompletedProcess[str]:
    command = " ".join([DOCKER, "--host", daemon.host, *arguments])
    return subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        input=keys,
        capture_output=True,
        text=True,
        timeout=60 * TIME_FACTOR,
        env=dict(daemon.env),
    )


@pytest.mark.sample
def test_user(daemon: Daemon) -> None:
    """users: by name, by number, with a group, with more groups"""
    script = "echo $(id -u) $(id -g) $(id -G)"
    assert shell(daemon, "-u", "nobody", script) == ["65534 65534 65534"]
    assert shell(daemon, "-u", "5:6", "--group-add", "7", "--group-add", "nogroup", script) == [
        "5 6 6 7 65534"
    ]


def test_user_missing(daemon: Daemon) -> None:
    """a user that does not exist is refused with Docker's words"""
    done = daemon.docker("run", "--rm", "-u", "nosuch", "busybox", "true", check=False)
    assert NO_USER in done.err
    assert done.status in (125, 126)


def test_workdir(daemon: Daemon) -> None:
    """a working directory that is missing is made"""
    assert shell(daemon, "-w", "/made/here", "pwd; stat -c %u:%a .") == ["/made/here", "0:755"]


def test_workdir_bad(daemon: Daemon) -> None:
    """a working directory that is a file ends with a clear error"""
    done = daemon.docker("run", "--rm", "-w", "/etc/passwd", "busybox", "true", check=False)
    assert done.status in (125, 126, 127)
    assert "not a directory" in done.err.lower()


def test_environment(daemon: Daemon) -> None:
    """environment: one's own, PATH, HOME, HOSTNAME, TERM with a terminal"""
    out = shell(daemon, "-e", "A=b c", "-h", "boat", "echo $A; echo $PATH; echo $HOME; echo $HOSTNAME")
    assert out == ["b c", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "/root", "boat"]
    assert shell(daemon, "-u", "nobody", "echo $HOME") == ["/home"]
    assert shell(daemon, "-t", "echo $TERM") == ["xterm"]


def test_hostname(daemon: Daemon) -> None:
    """hostname and domain name"""
    out = shell(
        daemon, "-h", "boat", "--domainname", "sea", "hostname; cat /proc/sys/kernel/domainname; hostname -f"
    )
    assert out == ["boat", "sea", "boat.sea"]


def test_hosts(daemon: Daemon) -> None:
    """/etc/hosts, /etc/resolv.conf: --add-host, --dns, --dns-search, --dns-option"""
    options = (
        "--add-host",
        "x:1.2.3.4",
        "--dns",
        "9.9.9.9",
        "--dns-search",
        "sea",
        "--dns-option",
        "ndots:3",
    )
    out = shell(daemon, *options, "grep x /etc/hosts | tail -1; cat /etc/resolv.conf")
    assert out[0].split() == ["1.2.3.4", "x"]
    assert {"nameserver 9.9.9.9", "search sea", "options ndots:3"} <= set(out)


def test_exec(daemon: Daemon, sleeper: str) -> None:
    """exec: environment, user, working directory, exit code, detached"""
    done = execute(
        daemon, "-e", "A=1", "-u", "1:2", "-w", "/tmp", sleeper, "sh", "-c", "echo $A $(id -u) $PWD; exit 9"
    )
    assert (done.status, done.out) == (9, "1 1 /tmp\n")
    execute(daemon, "-d", sleeper, "sh", "-c", "echo x >/tmp/detached", check=True)
    loop = "for i in 1 2 3 4 5 6 7 8 9; do test -s /tmp/detached && break; sleep 0.2; done; cat /tmp/detached"
    assert execute(daemon, sleeper, "sh", "-c", loop).out == "x\n"


def test_exec_terminal(daemon: Daemon, sleeper: str) -> None:
    """exec with a terminal: its size, its exit code"""
    done = terminal(daemon, "exec", "-it", sleeper, "sh", keys="stty size; echo $((6*7)); exit 5\n")
    assert "42" in done.stdout
    assert done.returncode == 5


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        pytest.param(("nonesuch",), 127, "executable file not found", id="no such program"),
        pytest.param(("/etc/passwd",), 126, "permission denied", id="not executable"),
    ],
)
def test_exec_fails(daemon: Daemon, sleeper: str, command: tuple[str, ...], status: int, words: str) -> None:
    """exec of what cannot run: status and words"""
    done = execute(daemon, sleeper, *command)
    assert done.status == status
    assert words in (done.out + done.err).lower()


def test_exec_workdir_missing(daemon: Daemon, sleeper: str) -> None:
    """exec in a directory that does not exist ends with 126 or 127"""
    done = execute(daemon, "-w", "/nosuch", sleeper, "true")
    assert done.status in (126, 127)
    assert "no such file or directory" in (done.out + done.err)


def test_exec_user_missing(daemon: Daemon, sleeper: str) -> None:
    """exec as a user that does not exist"""
    done = execute(daemon, "-u", "nosuch", sleeper, "true")
    assert done.status == 126
    assert NO_USER in done.out + done.err


def test_exec_privileged(daemon: Daemon, sleeper: str) -> None:
    """exec --privileged has all capabilities"""
    ask = (sleeper, "grep", "CapEff", "/proc/self/status")
    plain = int(execute(daemon, *ask, check=True).out.split()[1], 16)
    raised = int(execute(daemon, "--privileged", *ask, check=True).out.split()[1], 16)
    assert plain == 0xA80425FB
    assert raised & (1 << 21), "CAP_SYS_ADMIN"


@pytest.mark.parametrize(
    ("options", "status"),
    [
        pytest.param(("busybox", "nonesuch"), 127, id="127 no such program"),
        pytest.param(("busybox", "/etc/passwd"), 126, id="126 not executable"),
        pytest.param(("--restart", "bad", "busybox", "true"), 125, id="125 a bad option"),
        pytest.param(("busybox", "sh", "-c", "kill -9 $$"), None, id="the program's own"),
    ],
)
def test_exit_codes(daemon: Daemon, options: tuple[str, ...], status: int | None) -> None:
    """exit codes of docker run"""
    done = daemon.docker("run", "--rm", *options, check=False)
    assert done.status == (0 if status is None else status)


def test_detach_keys(daemon: Daemon, name: str) -> None:
    """attach, and detach by keys; the program goes on"""
    daemon.docker("run", "-dit", "--name", name, "busybox", "sh")
    command = f"{DOCKER} --host {daemon.host} attach --detach-keys x {name}"
    attached = subprocess.Popen(
        ["script", "-qfec", command, "/dev/null"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert attached.stdin and attached.stdout
    attached.stdin.write(b"echo $((6*7))\n")
    seen = b""
    while b"42" not in seen:
        seen += (piece := attached.stdout.read(1000))
        assert piece, seen
    attached.stdin.write(b"x")
    attached.communicate(timeout=60 * TIME_FACTOR)
    assert daemon.docker("inspect", "-f", "{{.State.Running}}", name).out == "true\n"


def test_resize(daemon: Daemon, name: str) -> None:
    """resize of a terminal"""
    daemon.docker("run", "-dit", "--name", name, "busybox", "sh")
    for size in ("h=33&w=111", "h=44&w=122"):
        url = f"http://x/containers/{name}/resize?{size}"
        subprocess.run(["curl", "-sf", "--unix-socket", str(daemon.socket), "-X", "POST", url], check=True)
    out = execute(daemon, name, "sh", "-c", "stty size </proc/1/fd/0", check=True).out
    assert out == "44 122\n"


def test_signals(daemon: Daemon, name: str) -> None:
    """kill with a signal; a signal that does not exist"""
    script = "trap 'echo one' USR1; trap 'echo hup; exit 4' HUP; echo up; while :; do sleep 0.05; done"
    daemon.docker("run", "-d", "--name", name, "busybox", "sh", "-c", script)
    deadline = time.monotonic() + 30 * TIME_FACTOR
    while "up" not in daemon.docker("logs", name).out:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "invalid signal: NOPE" in daemon.docker("kill", "-s", "NOPE", name, check=False).err
    execute(daemon, name, "sh", "-c", "kill -USR1 1", check=True)
    daemon.docker("kill", "-s", "HUP", name)
    assert daemon.docker("wait", name).out == "4\n"
    assert "hup" in daemon.docker("logs", name).out


def test_stop(daemon: Daemon, name: str) -> None:
    """stop: signal and time-out of the container's own"""
    script = "trap '' TERM; trap 'exit 6' INT; echo up; while :; do sleep 0.05; done"

    def wait_until_up(times: int) -> None:
        deadline = time.monotonic() + 30 * TIME_FACTOR
        while daemon.docker("logs", name).out.count("up") < times:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    run = ("run", "-d", "--name", name, "--stop-signal", "INT", "--stop-timeout", "20")
    daemon.docker(*run, "busybox", "sh", "-c", script)
    wait_until_up(1)
    daemon.docker("stop", name)
    assert daemon.docker("wait", name).out == "6\n"
    daemon.docker("start", name)
    wait_until_up(2)
    daemon.docker("stop", "-s", "TERM", "-t", "1", name)
    assert daemon.docker("wait", name).out == "137\n"


@pytest.mark.parametrize("condition", ["not-running", "next-exit", "removed"])
def test_wait(daemon: Daemon, name: str, condition: str) -> None:
    """wait: its conditions"""
    run = ("run", "-d", "--name", name, *(("--rm",) if condition == "removed" else ()))
    daemon.docker(*run, "busybox", "sh", "-c", "sleep 1; exit 3")
    url = f"http://x/containers/{name}/wait?condition={condition}"
    asked = ["curl", "-sf", "--unix-socket", str(daemon.socket), "-X", "POST", url]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["StatusCode"] == 3


def test_top(daemon: Daemon, sleeper: str) -> None:
    """top, with options of ps"""
    assert "sleep 10000" in daemon.docker("top", sleeper).out
    lines = daemon.docker("top", sleeper, "-eo", "pid,user,args").out.splitlines()
    assert lines[0].split() == ["PID", "USER", "COMMAND"]
    assert any(line.split()[1:] == ["root", "sleep", "10000"] for line in lines[1:])
    assert "RSS" in daemon.docker("top", sleeper, "aux").out
    assert daemon.docker("top", sleeper, "-o", "nonesuch", check=False).status == 1


def test_init(daemon: Daemon) -> None:
    """--init is process 1, reaps and forwards"""
    out = shell(daemon, "--init", "(sleep 0.1 &) ; sleep 0.5; ps -o stat | grep -c Z; echo $(( $$ > 1 ))")
    assert out == ["0", "1"]

# SPDX-License-Identifier: Apache-2.0
"""``docker run`` in both hulls: the same words, the same results."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.daemon import DOCKER, TIME_FACTOR, Daemon


def run(daemon: Daemon, hull: str, *arguments: str, **options: object) -> str:
    return daemon.docker("run", "--rm", "--isolation", hull, *arguments, **options).out  # type: ignore[arg-type]


def test_output_and_exit_code(daemon: Daemon, hull: str) -> None:
    result = daemon.docker(
        "run",
        "--rm",
        "--isolation",
        hull,
        "busybox",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
        check=False,
    )
    assert (result.status, result.out, result.err) == (7, "out\n", "err\n")


def test_standard_input(daemon: Daemon, hull: str) -> None:
    assert run(daemon, hull, "-i", "busybox", "wc", "-c", stdin="x" * 100_000).strip() == "100000"


def test_large_output_is_whole(daemon: Daemon, hull: str) -> None:
    out = run(daemon, hull, "busybox", "seq", "1", "200000")
    assert out.splitlines() == [str(number) for number in range(1, 200_001)]


def test_environment_user_and_workdir(daemon: Daemon, hull: str) -> None:
    out = run(
        daemon, hull, "-e", "A=b c", "-u", "nobody", "-w", "/tmp", "-h", "boat",
        "busybox", "sh", "-c", "echo $A; id -u; pwd; hostname; echo $HOSTNAME",
    )  # fmt: skip
    assert out.splitlines() == ["b c", "65534", "/tmp", "boat", "boat"]


def test_entrypoint_and_terminal(daemon: Daemon, hull: str) -> None:
    assert run(daemon, hull, "--entrypoint", "echo", "busybox", "a").strip() == "a"
    out = run(daemon, hull, "-t", "busybox", "sh", "-c", "test -t 1 && echo tty")
    assert out == "tty\n", "the test reads CR LF as one newline"


def test_volume_keeps_its_content(daemon: Daemon, hull: str, name: str) -> None:
    try:
        run(
            daemon,
            hull,
            "-v",
            f"{name}:/data",
            "busybox",
            "sh",
            "-c",
            "echo kept >/data/f; chown 5:6 /data/f",
        )
        out = run(daemon, hull, "-v", f"{name}:/data:ro", "busybox", "sh", "-c",
                  "cat /data/f; stat -c %u:%g /data/f; touch /data/g || echo refused")  # fmt: skip
    finally:
        daemon.docker("volume", "rm", name)
    assert out.splitlines()[:2] == ["kept", "5:6"]
    assert out.splitlines()[-1] == "refused"


def test_bind_mounts_of_directory_and_file(daemon: Daemon, hull: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("from the host\n")
    out = run(daemon, hull, "-v", f"{tmp_path}:/d", "-v", f"{tmp_path}/f:/single:ro", "busybox", "sh", "-c",
              "cat /single; echo from inside >/d/new; cat /d/f")  # fmt: skip
    assert out == "from the host\nfrom the host\n"
    assert (tmp_path / "new").read_text() == "from inside\n"


def test_tmpfs_and_read_only_root(daemon: Daemon, hull: str) -> None:
    out = run(daemon, hull, "--read-only", "--tmpfs", "/t:size=1m", "busybox", "sh", "-c",
              "touch /t/a && echo ok; touch /x 2>&1 | grep -c Read-only")  # fmt: skip
    assert out.splitlines() == ["ok", "1"]


def test_what_was_written_survives_a_restart(daemon: Daemon, hull: str, name: str) -> None:
    daemon.docker(
        "run", "--name", name, "--isolation", hull, "busybox", "sh", "-c", "echo x >>/count; wc -l </count"
    )
    daemon.docker("start", "-a", name)
    assert daemon.docker("logs", name).out.split() == ["1", "2"]


def test_exec_of_what_cannot_be_started(daemon: Daemon, name: str) -> None:
    daemon.docker("run", "-d", "--name", name, "busybox", "sleep", "600")
    for options, code, words in (
        (("-w", "/no", name, "true"), 127, 'chdir to cwd ("/no") set in config.json failed: no such file or'),
        (("-w", "/etc/passwd", name, "true"), 127, "set in config.json failed: not a directory"),
        (("-u", "nobody-here", name, "true"), 126, "unable to find user nobody-here: no matching entries in"),
        (("-u", "0:none", name, "true"), 126, "unable to find group none: no matching entries in group file"),
        ((name, "/etc"), 126, "is a directory"),
        ((name, "/etc/passwd"), 126, 'exec: "/etc/passwd": permission denied'),
        ((name, "/no/such"), 127, 'exec: "/no/such": stat /no/such: no such file or directory'),
    ):
        for detached in ((), ("-d",)):
            result = daemon.docker("exec", *detached, *options, check=False)
            assert result.status == (1 if detached else code), result
            assert words in result.out + result.err


def test_run_of_what_cannot_be_started(daemon: Daemon) -> None:
    for arguments, code, words in (
        (
            ("-u", "nobody-here", "busybox", "true"),
            125,
            "unable to find user nobody-here: no matching entries",
        ),
        (("busybox", "/etc"), 126, "is a directory"),
        (("-w", "/etc/passwd", "busybox", "true"), 125, "Cannot mkdir: /etc/passwd is not a directory"),
        (
            ("-v", "/etc:/etc/passwd", "busybox", "true"),
            125,
            "Are you trying to mount a directory onto a file",
        ),
    ):
        result = daemon.docker("run", "--rm", *arguments, check=False)
        assert (result.status, words in result.err) == (code, True), result


def test_exec(daemon: Daemon, hull: str, name: str) -> None:
    daemon.docker("run", "-d", "--name", name, "--isolation", hull, "busybox", "sleep", "600")
    assert daemon.docker("exec", name, "echo", "hi").out == "hi\n"
    assert daemon.docker("exec", "-i", name, "cat", stdin="through").out == "through"
    assert daemon.docker("exec", name, "sh", "-c", "exit 3", check=False).status == 3
    assert daemon.docker("exec", "-e", "A=1", "-w", "/tmp", "-u", "1:2", name, "sh", "-c",
                         "echo $A $PWD $(id -u) $(id -g)").out == "1 /tmp 1 2\n"  # fmt: skip
    missing = daemon.docker("exec", name, "nonesuch", check=False)
    assert missing.status == 127
    assert "executable file not found" in missing.out + missing.err


def test_stop_kill_and_exit_codes(daemon: Daemon, hull: str, name: str) -> None:
    daemon.docker("run", "-d", "--name", name, "--isolation", hull, "busybox", "sh", "-c",
                  "trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.1; done")  # fmt: skip
    wait_for_output(daemon, name, "ready\n")
    daemon.docker("stop", name)
    assert daemon.docker("logs", name).out == "ready\nterm\n"
    assert state(daemon, name)["ExitCode"] == 5
    daemon.docker("start", name)
    daemon.docker("kill", name)
    assert state(daemon, name)["ExitCode"] == 137


def test_other_signals(daemon: Daemon, hull: str, name: str) -> None:
    # With an init: the kernel drops signals to process 1 that it has no handler for.
    daemon.docker("run", "-d", "--init", "--name", name, "--isolation", hull, "busybox", "sleep", "600")
    daemon.docker("kill", "-s", "USR1", name)
    assert daemon.docker("wait", name).out == "138\n"


def test_pause(daemon: Daemon, hull: str, name: str) -> None:
    daemon.docker("run", "-d", "--name", name, "--isolation", hull, "busybox", "sleep", "600")
    daemon.docker("pause", name)
    assert state(daemon, name)["Status"] == "paused"
    assert "(Paused)" in daemon.docker("ps").out
    refused = daemon.docker("exec", name, "true", check=False)
    assert "is paused, unpause the container before exec" in refused.err
    daemon.docker("unpause", name)
    assert daemon.docker("exec", name, "echo", "back").out == "back\n"


def test_top_and_stats(daemon: Daemon, hull: str, name: str) -> None:
    daemon.docker("run", "-d", "--name", name, "--isolation", hull, "-m", "128m", "busybox", "sleep", "600")
    assert "sleep 600" in daemon.docker("top", name).out
    line = json.loads(daemon.docker("stats", "--no-stream", "--format", "json", name).out)
    assert line["Name"] == name
    assert int(line["PIDs"]) >= 1
    assert line["MemUsage"] != "0B / 0B"


def test_detached_and_logs(daemon: Daemon, hull: str, name: str) -> None:
    daemon.docker("run", "-d", "--name", name, "--isolation", hull, "busybox", "sh", "-c",
                  "for i in 1 2 3; do echo $i; done; echo e >&2; sleep 600")  # fmt: skip
    wait_for_output(daemon, name, "e\n")
    assert daemon.docker("logs", name).out == "1\n2\n3\n"
    assert daemon.docker("logs", "--tail", "2", name).out + "" in ("3\n", "2\n3\n")
    stamped = daemon.docker("logs", "-t", name).out.splitlines()[0]
    assert stamped[10] == "T"
    assert stamped.endswith("Z 1")


def test_logs_follow_until_the_end(daemon: Daemon, hull: str, name: str) -> None:
    daemon.docker("run", "-d", "--name", name, "--isolation", hull, "busybox", "sh", "-c",
                  "for i in 1 2 3; do echo $i; sleep 0.2; done")  # fmt: skip
    assert daemon.docker("logs", "-f", name).out == "1\n2\n3\n"


def test_published_port(daemon: Daemon, hull: str, name: str) -> None:
    daemon.docker("run", "-d", "--name", name, "--isolation", hull, "-p", "127.0.0.1::80", "busybox",
                  "sh", "-c", "mkdir /w; echo served >/w/index.html; httpd -f -p 80 -h /w")  # fmt: skip
    address = daemon.docker("port", name, "80").out.strip()
    assert fetch(f"http://{address}/index.html") == "served\n"


def test_names_on_a_network_reach_both_hulls(daemon: Daemon, name: str) -> None:
    daemon.docker("network", "create", name)
    try:
        for hull in ("container", "vm"):
            daemon.docker("run", "-d", "--name", f"{name}-{hull}", "--isolation", hull, "--network", name,
                          "busybox", "sh", "-c", f"mkdir /w; echo {hull} >/w/i; httpd -f -h /w")  # fmt: skip
        for asking in ("container", "vm"):
            for asked in ("container", "vm"):
                out = run(daemon, asking, "--network", name, "busybox", "sh", "-c",
                          f"for i in 1 2 3 4 5 6 7 8; do wget -q -O- http://{name}-{asked}/i && break; sleep 0.3; done")  # fmt: skip  # noqa: E501
                assert out == f"{asked}\n"
    finally:
        daemon.docker("rm", "-f", f"{name}-container", f"{name}-vm", check=False)
        daemon.docker("network", "rm", name)


def test_network_none_has_only_loopback(daemon: Daemon, hull: str) -> None:
    out = run(daemon, hull, "--network", "none", "busybox", "ls", "/sys/class/net")
    assert out.split() == ["lo"]


def test_init_reaps_and_forwards(daemon: Daemon, hull: str, name: str) -> None:
    daemon.docker("run", "-d", "--init", "--name", name, "--isolation", hull, "busybox", "sleep", "600")
    started = time.monotonic()
    daemon.docker("stop", name)
    assert time.monotonic() - started < 8, "init forwards SIGTERM, and sleep ends by it"
    assert state(daemon, name)["ExitCode"] == 143


def test_command_that_does_not_exist(daemon: Daemon, hull: str, name: str) -> None:
    result = daemon.docker("run", "--name", name, "--isolation", hull, "busybox", "nonesuch", check=False)
    assert result.status == 127
    assert 'exec: "nonesuch": executable file not found in $PATH' in result.err
    assert state(daemon, name)["Status"] == "created"


def test_command_that_cannot_be_executed(daemon: Daemon, hull: str) -> None:
    result = daemon.docker("run", "--rm", "--isolation", hull, "busybox", "/etc/passwd", check=False)
    assert result.status == 126
    assert "permission denied" in result.err.lower()


def test_restart_policy(daemon: Daemon, hull: str, name: str) -> None:
    daemon.docker(
        "run", "-d", "--name", name, "--isolation", hull, "--restart", "on-failure:2", "busybox", "false"
    )
    assert daemon.docker("wait", name).out == "1\n"
    assert json.loads(daemon.docker("inspect", name).out)[0]["RestartCount"] == 2


def test_attach_and_interactive_terminal(daemon: Daemon, hull: str) -> None:
    script = Path("/usr/bin/script")
    command = f"{DOCKER} --host {daemon.host} run --rm -it --isolation {hull} busybox sh"
    done = subprocess.run(
        [script, "-qec", command, "/dev/null"],
        input="echo $((6*7)); exit 9\n",
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(daemon.env),
    )
    assert "42" in done.stdout
    assert done.returncode == 9


def test_limits_are_in_force(daemon: Daemon, hull: str) -> None:
    out = run(daemon, hull, "-m", "128m", "--cpus", "1", "--pids-limit", "32", "busybox", "sh", "-c",
              "for i in $(seq 60); do sleep 5 & done 2>&1 | grep -c fork; true")  # fmt: skip
    assert int(out.strip() or 0) >= 0


def test_two_virtual_machines_are_no_twins(daemon: Daemon) -> None:
    script = (
        "head -c 16 /dev/urandom | hexdump -e '16/1 \"%02x\"'; cat /etc/machine-id; "
        "cat /proc/sys/kernel/random/boot_id"
    )
    draw = ("busybox", "sh", "-c", script)
    first, second = (run(daemon, "vm", *draw) for _ in range(2))
    for mine, theirs in zip(first.split(), second.split(), strict=True):
        assert mine != theirs


def state(daemon: Daemon, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(daemon.docker("inspect", name).out)[0]["State"]
    return found


def wait_for_output(daemon: Daemon, name: str, text: str) -> None:
    deadline = time.monotonic() + 20 * TIME_FACTOR
    while time.monotonic() < deadline:
        logs = daemon.docker("logs", name)
        if text in logs.out + logs.err:
            return
        time.sleep(0.05)
    pytest.fail(f"{name} did not write {text!r}")


def fetch(url: str) -> str:
    done = subprocess.run(
        [
            "curl",
            "-sf",
            "--retry",
            "20",
            "--retry-delay",
            "0",
            "--retry-all-errors",
            "--retry-max-time",
            "20",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode != 0:
        pytest.fail(f"{url}: {done.stderr}")
    return done.stdout

# SPDX-License-Identifier: Apache-2.0
"""Texts that go out (command lines, errors) and come in (ps, /proc): proa.runtime.oci's pure parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from proa.model.errors import InvalidParameter
from proa.model.task import Device, Security
from proa.runtime.oci import capabilities, conmon, devices, failures, stats, top
from proa.runtime.oci.devices import DeviceNode

CRUN_MISSING = "executable file `foo` not found in $PATH: No such file or directory"
CWD = 'unable to start container process: chdir to cwd ("/no") set in config.json'
RUNC_MISSING = (
    'time="2026-01-01T00:00:00Z" level=error msg="runc create failed: unable to start container process: '
    'exec: \\"foo\\": executable file not found in $PATH"'
)


@pytest.mark.parametrize("output", [CRUN_MISSING, RUNC_MISSING])
def test_missing_program(output: str) -> None:
    error = failures.translate(output, program="foo", action="create")
    assert error.exit_code == 127
    assert error.message == (
        "failed to create task for container: failed to create shim task: OCI runtime create failed: "
        'unable to start container process: exec: "foo": executable file not found in $PATH: unknown'
    )


@pytest.mark.parametrize(
    ("output", "program", "code", "words"),
    [
        ("executable file `/x` not found: No such file or directory", "/x", 127, "stat /x: no such file"),
        ('exec: "/x": stat /x: no such file or directory', "/x", 127, "stat /x: no such file"),
        ("open executable: Permission denied", "/x", 126, 'exec: "/x": permission denied'),
        (
            "open executable: Operation not permitted",
            "/etc",
            126,
            '"/etc": is a directory: unknown: permission denied',
        ),
        ("exec /x: exec format error", "/x", 126, "exec format error"),
        (
            "chdir to `/no`: No such file or directory",
            "sh",
            127,
            f"{CWD} failed: no such file or directory: unknown",
        ),
        ("chdir `/no`: Permission denied", "sh", 126, f"{CWD} failed: permission denied: unknown"),
        (
            "chdir to `/no`: Not a directory",
            "sh",
            127,
            f"{CWD} failed: not a directory: unknown: Are you trying",
        ),
        (
            f"exec failed: {CWD} failed: no such file or directory",
            "sh",
            127,
            f"failed: {CWD} failed: no such",
        ),
        ("mount `/a` to `/b`: Permission denied", "sh", 126, "mount `/a` to `/b`: Permission denied"),
        ("bind: No such file or directory\nmore", "sh", 127, "bind: No such file or directory; more"),
        ("out of inodes", "sh", 128, "exec failed: out of inodes: unknown"),
        ("", "sh", 128, "without a message"),
    ],
)
def test_other_failures(output: str, program: str, code: int, words: str) -> None:
    error = failures.translate(output, program=program, action="exec")
    assert error.message.startswith("OCI runtime exec failed: exec failed: ")
    assert words in error.message
    assert error.exit_code == code


@pytest.mark.parametrize(
    "output",
    [
        "chdir `/no`: Not a directory",
        "runc create failed: unable to start container process: error during container init: mkdir /no: "
        "not a directory",
    ],
)
def test_working_directory_that_cannot_be_made(output: str) -> None:
    error = failures.translate(output, program="sh", action="create")
    assert (error.message, error.exit_code) == ("Cannot mkdir: /no is not a directory", 128)


PLAN = conmon.Plan(
    conmon=Path("/usr/bin/conmon"),
    runtime=Path("/usr/bin/crun"),
    runtime_args=("--root", "/run/x/.crun"),
    container_id="cid",
    name="name",
    directory=Path("/run/x/cid"),
    log_path=Path("/var/log/cid"),
)


def test_command_line_of_a_container() -> None:
    assert conmon.arguments(replace(PLAN, open_stdin=True, keep_stdin=True, tty=True)) == [
        *("/usr/bin/conmon", "--api-version", "1", "--sync", "-c", "cid", "-u", "name", "-n", "name"),
        *("-r", "/usr/bin/crun", "--runtime-arg", "--root", "--runtime-arg", "/run/x/.crun"),
        *("-b", "/run/x/cid", "-p", "/run/x/cid/pidfile", "--exit-dir", "/run/x/cid/exit"),
        *("--full-attach", "--no-sync-log", "--log-level", "error", "-l", "k8s-file:/var/log/cid"),
        *("-t", "-i", "--leave-stdin-open"),
    ]


def test_command_line_of_an_exec() -> None:
    plan = replace(PLAN, log_path=None, exec_spec=Path("/run/x/cid/exec/e/process.json"), exec_attach=True)
    assert conmon.arguments(plan)[-6:] == [
        *("-l", "none", "-e", "--exec-process-spec", "/run/x/cid/exec/e/process.json", "--exec-attach")
    ]


def test_lines_of_ps_are_cut_and_chosen() -> None:
    text = "UID   PID CMD\nroot  1 init --flag\nroot  20 sh -c  x\nroot  - thread\nroot 3 other\nshort\n"
    table = top.parse_table(text, [20])
    assert table.titles == ("UID", "PID", "CMD")
    assert table.rows == (("root", "20", "sh -c  x"), ("root", "-", "thread"))
    for wrong in ("", "UID CMD\n"):
        with pytest.raises(InvalidParameter, match="Couldn't find PID field in ps output"):
            top.parse_table(wrong, [1])


@pytest.mark.parametrize("argument", ["comm=PID", "-ocomm=PID", "pid,ppid=PID"])
def test_no_other_column_takes_the_title_of_the_pid(argument: str) -> None:
    with pytest.raises(InvalidParameter, match="is not allowed"):
        top.check_arguments([argument])
    top.check_arguments(["-o", "ppid=x,pid", "-ef", "-opid=PID"])


def test_counters_of_the_host() -> None:
    assert stats.parse_cpu("cpu 1 2 3 4 5 6 7 100 0\ncpu0 1\ncpu1 2\nintr 5\n") == (28 * 10_000_000, 2)
    text = (
        "Inter-| Receive | Transmit\n face |bytes ...\n"
        "    lo: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n"
        "  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n"
    )
    counters = stats.parse_net_dev(text)
    assert list(counters) == ["eth0"]
    assert (counters["eth0"].rx_bytes, counters["eth0"].rx_dropped, counters["eth0"].tx_bytes) == (1, 4, 5)
    assert counters["eth0"].tx_dropped == 8


ALL = frozenset(capabilities.NAMES)


@pytest.mark.parametrize(
    ("security", "expected"),
    [
        (Security(), set(capabilities.DEFAULT)),
        (Security(cap_drop=("ALL",), cap_add=("net_admin",)), {"CAP_NET_ADMIN"}),
        (Security(cap_add=("ALL",), cap_drop=("CAP_SYS_ADMIN",)), ALL - {"CAP_SYS_ADMIN"}),
        (Security(privileged=True), ALL),
        (Security(cap_drop=("CHOWN",)), set(capabilities.DEFAULT) - {"CAP_CHOWN"}),
    ],
)
def test_capabilities(security: Security, expected: set[str]) -> None:
    assert set(capabilities.resolve(security, ALL)) == expected


def test_capabilities_that_cannot_be_had() -> None:
    few = ALL - {"CAP_CHOWN", "CAP_SYS_TIME"}
    assert "CAP_CHOWN" not in capabilities.resolve(Security(), few)
    assert "CAP_CHOWN" not in capabilities.resolve(Security(privileged=True), few)
    with pytest.raises(InvalidParameter, match="not available in the current environment"):
        capabilities.resolve(Security(cap_add=("SYS_TIME",)), few)
    with pytest.raises(InvalidParameter, match='unknown capability: "MAGIC"'):
        capabilities.resolve(Security(cap_add=("MAGIC",)), ALL)
    assert capabilities.parse_mask("0000000000000003") == {"CAP_CHOWN", "CAP_DAC_OVERRIDE"}


def test_devices_of_the_host() -> None:
    device = Device(host_path=Path("/dev/null"), container_path="/dev/mine", permissions="r")
    (node,) = devices.find_devices(Security(devices=(device,)))
    assert (node.path, node.kind, node.major, node.minor) == ("/dev/mine", "c", 1, 3)
    for path in ("/no/such", "/etc/passwd"):
        with pytest.raises(InvalidParameter, match="error gathering device information while adding custom"):
            devices.find_devices(Security(devices=(replace(device, host_path=Path(path)),)))
    nodes = devices.find_devices(Security(privileged=True))
    assert "/dev/null" in {each.path for each in nodes}
    assert not any(each.path.startswith("/dev/pts/") for each in nodes)


def test_rules_of_devices() -> None:
    node = DeviceNode(path="/dev/x", kind="b", major=8, minor=0, mode=0, uid=0, gid=0, permissions="r")
    security = Security(device_cgroup_rules=("c 42:* rwm",))
    rules = devices.rules(security, [node])
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert rules[-2] == {"allow": True, "access": "r", "type": "b", "major": 8, "minor": 0}
    assert rules[-1] == {"allow": True, "access": "rwm", "type": "c", "major": 42}
    for wrong in ("", "c 42 rwm", "x 1:2 r", "c a:b r"):
        with pytest.raises(InvalidParameter, match="invalid device cgroup rule format"):
            devices.parse_rule(wrong)

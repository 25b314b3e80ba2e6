# SPDX-License-Identifier: Apache-2.0
"""The flags of create as the request that is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.canned_daemon import CannedDaemon, reply
from tests.unit.cli.conftest import Proa, sent

CREATED = reply(201, b'{"Id":"abc","Warnings":[]}')


@pytest.fixture(autouse=True)
def _created(daemon: CannedDaemon) -> None:
    daemon.answers["POST /containers/create"] = CREATED


def test_the_plain_request(proa: Proa, daemon: CannedDaemon) -> None:
    ended = proa("create", "--name", "web", "busybox", "sh", "-c", "echo -n hi")
    assert (ended.status, ended.out) == (0, "abc\n")
    assert daemon.requests[-1].target == "/v1.51/containers/create?name=web"
    body = sent(daemon, "/create")
    assert (body["Image"], body["Cmd"]) == ("busybox", ["sh", "-c", "echo -n hi"])
    assert body["HostConfig"]["NetworkMode"] == "default"
    assert body["HostConfig"]["RestartPolicy"] == {"Name": "no", "MaximumRetryCount": 0}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-e", "A=1", "-e", "B=2"], {"Env": ["A=1", "B=2"]}),
        (["-l", "a=b", "-l", "c"], {"Labels": {"a": "b", "c": ""}}),
        (["-h", "box", "-u", "1:2", "-w", "/srv"], {"Hostname": "box", "User": "1:2", "WorkingDir": "/srv"}),
        (["--entrypoint", "/bin/a b"], {"Entrypoint": ["/bin/a b"]}),
        (["-t"], {"Tty": True, "OpenStdin": False}),
        (["-i"], {"OpenStdin": True, "StdinOnce": True, "AttachStdin": True}),
        (["-v", "/data"], {"Volumes": {"/data": {}}}),
        (["--expose", "80"], {"ExposedPorts": {"80/tcp": {}}}),
        (["--stop-signal", "INT", "--stop-timeout", "3"], {"StopSignal": "INT", "StopTimeout": 3}),
        (["-a", "stderr"], {"AttachStdout": False, "AttachStderr": True}),
    ],
)
def test_of_the_container(proa: Proa, daemon: CannedDaemon, flags: list[str], expected: object) -> None:
    assert proa("create", *flags, "busybox").status == 0
    body = sent(daemon, "/create")
    assert {key: body[key] for key in expected} == expected  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--isolation", "vm"], {"Isolation": "vm"}),
        (["--runtime", "crun", "--init", "--rm"], {"Runtime": "crun", "Init": True, "AutoRemove": True}),
        (["-m", "64m", "--memory-swap", "-1"], {"Memory": 64 << 20, "MemorySwap": -1}),
        (["--cpus", "0.5", "--pids-limit", "7"], {"NanoCpus": 500_000_000, "PidsLimit": 7}),
        (["-p", "8080:80"], {"PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}}),
        (["-v", "data:/d:ro", "-v", "/a:/b"], {"Binds": ["data:/d:ro", "/a:/b"]}),
        (["--tmpfs", "/t:size=1m", "--tmpfs", "/u"], {"Tmpfs": {"/t": "size=1m", "/u": ""}}),
        (["--ulimit", "nofile=1:2"], {"Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}]}),
        (["--restart", "on-failure:3"], {"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3}}),
        (["--network", "host"], {"NetworkMode": "host"}),
        (["--read-only", "--privileged"], {"ReadonlyRootfs": True, "Privileged": True}),
        (["--cap-add", "ALL", "--cap-drop", "MKNOD"], {"CapAdd": ["ALL"], "CapDrop": ["MKNOD"]}),
        (["--add-host", "a:1.2.3.4", "--dns", "9.9.9.9"], {"ExtraHosts": ["a:1.2.3.4"], "Dns": ["9.9.9.9"]}),
        (["--sysctl", "a.b=1", "--shm-size", "1m"], {"Sysctls": {"a.b": "1"}, "ShmSize": 1 << 20}),
        (["--security-opt", "seccomp=unconfined"], {"SecurityOpt": ["seccomp=unconfined"]}),
        (["--log-driver", "none"], {"LogConfig": {"Type": "none", "Config": None}}),
    ],
)
def test_of_the_host(proa: Proa, daemon: CannedDaemon, flags: list[str], expected: object) -> None:
    assert proa("create", *flags, "busybox").status == 0
    host = sent(daemon, "/create")["HostConfig"]
    assert {key: host[key] for key in expected} == expected  # type: ignore[attr-defined]


def test_networks(proa: Proa, daemon: CannedDaemon) -> None:
    flags = ["--network", "name=back,ip=10.0.0.9", "--network", "front", "--network-alias", "db"]
    assert proa("create", *flags, "busybox").status == 0
    body = sent(daemon, "/create")
    assert body["HostConfig"]["NetworkMode"] == "back"
    endpoints = body["NetworkingConfig"]["EndpointsConfig"]
    assert list(endpoints) == ["back", "front"]
    assert endpoints["back"]["IPAMConfig"]["IPv4Address"] == "10.0.0.9"
    assert endpoints["back"]["Aliases"] == ["db"]


def test_files_of_the_client(proa: Proa, daemon: CannedDaemon, tmp_path: Path) -> None:
    (tmp_path / "profile").write_text('{"defaultAction":"SCMP_ACT_ALLOW"}')
    (tmp_path / "labels").write_text("a=b\n")
    cidfile = tmp_path / "cid"
    flags = ["--security-opt", f"seccomp={tmp_path}/profile", "--label-file", f"{tmp_path}/labels"]
    assert proa("create", *flags, "--cidfile", str(cidfile), "busybox").status == 0
    body = sent(daemon, "/create")
    assert body["HostConfig"]["SecurityOpt"] == ['seccomp={"defaultAction":"SCMP_ACT_ALLOW"}']
    assert body["Labels"] == {"a": "b"}
    assert cidfile.read_text() == "abc"
    again = proa("create", "--cidfile", str(cidfile), "busybox")
    assert again.status == 125
    assert "container ID file found" in again.err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["-m", "lots"], "invalid size: 'lots'"),
        (["-p", "x:80"], "invalid hostPort: x"),
        (["--mount", "type=bind"], "target is required"),
        (["--cpus", "many"], "failed to parse many"),
        (["-a", "nope"], "valid streams are STDIN, STDOUT and STDERR"),
        (["--env-file", "/nowhere"], "open /nowhere: No such file or directory"),
        (["--nope"], "No such option"),
        (["--pids-limit", "x"], "'x' is not a valid integer"),
    ],
)
def test_what_is_wrong_is_said_and_not_sent(
    proa: Proa, daemon: CannedDaemon, flags: list[str], sentence: str
) -> None:
    ended = proa("create", *flags, "busybox")
    assert ended.status == 125
    assert sentence in ended.err
    assert daemon.requests == []

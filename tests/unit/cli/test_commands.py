# SPDX-License-Identifier: Apache-2.0
"""Commands as a whole: what they print, where, and with which status they end."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from proa.cli.main import COMMANDS
from proa.wire.stdio import frame
from tests.support.canned_daemon import CannedDaemon, reply
from tests.unit.cli.conftest import Proa, sent

ID = "4f" * 32
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
UPGRADED = (
    b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
    b"Content-Type: application/vnd.docker.multiplexed-stream\r\n\r\n"
)


def refusal(status: int, message: str) -> bytes:
    return reply(status, json.dumps({"message": message}).encode())


class TestEachName:
    @pytest.mark.parametrize(
        ("command", "target"),
        [
            (["stop", "-t", "3", "web"], "POST /v1.51/containers/web/stop?t=3"),
            (["kill", "-s", "HUP", "web"], "POST /v1.51/containers/web/kill?signal=HUP"),
            (["restart", "web"], "POST /v1.51/containers/web/restart"),
            (["pause", "web"], "POST /v1.51/containers/web/pause"),
            (["unpause", "web"], "POST /v1.51/containers/web/unpause"),
            (["start", "web"], "POST /v1.51/containers/web/start"),
            (["rm", "-fv", "web"], "DELETE /v1.51/containers/web?force=1&link=0&v=1"),
            (["container", "stop", "web"], "POST /v1.51/containers/web/stop"),
        ],
    )
    def test_the_call(self, proa: Proa, daemon: CannedDaemon, command: list[str], target: str) -> None:
        method, _, path = target.partition(" ")
        daemon.answers[f"{method} /{path.partition('/v1.51/')[2].partition('?')[0]}"] = NO_CONTENT
        ended = proa(*command)
        assert (ended.status, ended.out, ended.err) == (0, "web\n", "")
        assert f"{daemon.requests[-1].method} {daemon.requests[-1].target}" == target

    def test_goes_on_after_a_failure(self, proa: Proa, daemon: CannedDaemon) -> None:
        daemon.answers["POST /containers/a/stop"] = refusal(404, "No such container: a")
        daemon.answers["POST /containers/b/stop"] = b"HTTP/1.1 304 Not Modified\r\n\r\n"
        daemon.answers["POST /containers/c/stop"] = NO_CONTENT
        ended = proa("stop", "a", "b", "c")
        assert (ended.status, ended.out) == (1, "b\nc\n")
        assert ended.err == "Error response from daemon: No such container: a\n"

    def test_wait(self, proa: Proa, daemon: CannedDaemon) -> None:
        daemon.answers["POST /containers/a/wait"] = reply(200, b'{"StatusCode":3}')
        daemon.answers["POST /containers/b/wait"] = refusal(404, "No such container: b")
        ended = proa("wait", "a", "b")
        assert (ended.status, ended.out) == (1, "3\n")

    def test_rm_by_force_of_nothing(self, proa: Proa, daemon: CannedDaemon) -> None:
        daemon.answers["DELETE /containers/a"] = refusal(404, "No such container: a")
        assert proa("rm", "-f", "a").status == 0
        assert proa("rm", "a").status == 1


class TestRun:
    @pytest.fixture(autouse=True)
    def _daemon(self, daemon: CannedDaemon) -> None:
        def attach(client: socket.socket, rest: bytes) -> None:
            client.sendall(UPGRADED + frame(1, b"out\n") + frame(2, b"err\n"))

        daemon.answers |= {
            "POST /containers/create": reply(201, json.dumps({"Id": ID, "Warnings": ["careful"]}).encode()),
            f"POST /containers/{ID}/attach": attach,
            f"POST /containers/{ID}/start": NO_CONTENT,
            f"POST /containers/{ID}/wait": reply(200, b'{"StatusCode":7}'),
        }

    def test_streams_and_status(self, proa: Proa, daemon: CannedDaemon) -> None:
        ended = proa("run", "busybox", "sh", "-c", "exit 7")
        assert (ended.status, ended.out) == (7, "out\n")
        assert ended.err == "WARNING: careful\nerr\n"
        order = [request.target.split("?")[0].rpartition("/")[2] for request in daemon.requests]
        assert order.index("attach") < order.index("wait") < order.index("start")

    def test_flags_end_with_the_image(self, proa: Proa, daemon: CannedDaemon) -> None:
        proa("run", "busybox", "ls", "--rm", "-it")
        body = sent(daemon, "/create")
        assert body["Cmd"] == ["ls", "--rm", "-it"]
        assert not body["HostConfig"]["AutoRemove"]

    @pytest.mark.parametrize(("flags", "condition"), [([], "next-exit"), (["--rm"], "removed")])
    def test_what_is_waited_for(
        self, proa: Proa, daemon: CannedDaemon, flags: list[str], condition: str
    ) -> None:
        proa("run", *flags, "busybox")
        assert any(request.target.endswith(f"wait?condition={condition}") for request in daemon.requests)

    def test_detached(self, proa: Proa, daemon: CannedDaemon) -> None:
        ended = proa("run", "-d", "busybox")
        assert (ended.status, ended.out) == (0, f"{ID}\n")
        assert not sent(daemon, "/create")["AttachStdout"]

    @pytest.mark.parametrize(
        ("message", "status"),
        [
            ('exec: "nope": executable file not found in $PATH', 127),
            ("exec /dir: permission denied", 126),
            ("driver failed programming external connectivity: port is already allocated", 125),
        ],
    )
    def test_a_failed_start(self, proa: Proa, daemon: CannedDaemon, message: str, status: int) -> None:
        daemon.answers[f"POST /containers/{ID}/start"] = refusal(500, message)
        daemon.answers[f"POST /containers/{ID}/attach"] = lambda client, rest: client.sendall(UPGRADED)
        ended = proa("run", "busybox", "nope")
        assert ended.status == status
        assert f"proa: Error response from daemon: {message}" in ended.err
        assert "Run 'proa run --help' for more information" in ended.err

    def test_a_refused_create(self, proa: Proa, daemon: CannedDaemon) -> None:
        daemon.answers["POST /containers/create"] = refusal(409, "Conflict. The container name is in use")
        ended = proa("run", "busybox")
        assert (ended.status, ended.out) == (125, "")
        assert "Conflict. The container name is in use" in ended.err

    def test_a_missing_image(self, proa: Proa, daemon: CannedDaemon) -> None:
        daemon.answers["POST /containers/create"] = refusal(404, "No such image: nope:latest")
        daemon.answers["POST /images/create"] = refusal(404, "proa cannot pull")
        ended = proa("run", "nope")
        assert ended.status == 125
        assert ended.err.startswith("Unable to find image 'nope:latest' locally\n")
        assert "proa cannot pull" in ended.err

    def test_without_a_terminal(self, proa: Proa) -> None:
        ended = proa("run", "-it", "busybox")
        assert ended.status == 125
        assert "the input device is not a TTY" in ended.err


class TestExec:
    @pytest.fixture(autouse=True)
    def _daemon(self, daemon: CannedDaemon) -> None:
        def start(client: socket.socket, rest: bytes) -> None:
            client.sendall(UPGRADED + frame(1, b"hello\n"))

        inspected = {"ID": "e1", "Running": False, "ExitCode": 5, "ContainerID": ID, "Pid": 1}
        daemon.answers |= {
            "POST /containers/web/exec": reply(201, b'{"Id":"e1"}'),
            "POST /exec/e1/start": start,
            "GET /exec/e1/json": reply(200, json.dumps(inspected).encode()),
        }

    def test_output_and_status(self, proa: Proa, daemon: CannedDaemon) -> None:
        ended = proa("exec", "-e", "A=1", "-u", "joe", "web", "sh", "-c", "echo hello")
        assert (ended.status, ended.out) == (5, "hello\n")
        body = sent(daemon, "/containers/web/exec")
        assert (body["Cmd"], body["Env"], body["User"]) == (["sh", "-c", "echo hello"], ["A=1"], "joe")

    def test_detached(self, proa: Proa, daemon: CannedDaemon) -> None:
        daemon.answers["POST /exec/e1/start"] = reply(200, b"")
        assert proa("exec", "-d", "web", "true").status == 0
        assert sent(daemon, "/exec/e1/start")["Detach"]

    def test_one_that_cannot_start(self, proa: Proa, daemon: CannedDaemon) -> None:
        inspected = {"ID": "e1", "Running": False, "ExitCode": 127, "ContainerID": ID, "Pid": 0}
        daemon.answers["POST /exec/e1/start"] = refusal(400, "executable file not found")
        daemon.answers["GET /exec/e1/json"] = reply(200, json.dumps(inspected).encode())
        ended = proa("exec", "web", "nope")
        assert ended.status == 127
        assert "executable file not found" in ended.err

    def test_of_nothing(self, proa: Proa, daemon: CannedDaemon) -> None:
        daemon.answers["POST /containers/web/exec"] = refusal(404, "No such container: web")
        ended = proa("exec", "web", "true")
        assert (ended.status, ended.err) == (1, "Error response from daemon: No such container: web\n")


class TestInspect:
    def test_the_first_kind_that_knows_the_name(self, proa: Proa, daemon: CannedDaemon) -> None:
        daemon.answers["GET /containers/x/json"] = refusal(404, "No such container: x")
        daemon.answers["GET /images/x/json"] = reply(200, b'{"Id":"sha256:1","Size":5}')
        ended = proa("inspect", "x")
        assert json.loads(ended.out) == [{"Id": "sha256:1", "Size": 5}]
        assert proa("inspect", "-f", "{{.Size}}", "x").out == "5\n"

    def test_what_nobody_knows(self, proa: Proa, daemon: CannedDaemon) -> None:
        for path in ("containers/x/json", "images/x/json", "networks/x", "volumes/x"):
            daemon.answers[f"GET /{path}"] = refusal(404, "No such thing: x")
        ended = proa("inspect", "x")
        assert (ended.status, ended.out, ended.err) == (1, "[]\n", "Error: No such object: x\n")
        ended = proa("inspect", "--type", "volume", "x")
        assert ended.err == "Error: No such thing: x\n"


class TestDaemon:
    def test_none_there(self, proa: Proa) -> None:
        ended = proa("-H", "unix:///nowhere/s", "ps")
        assert (ended.status, ended.out) == (1, "")
        assert ended.err == (
            "Cannot connect to the proa daemon at unix:///nowhere/s. "
            "Is the proa daemon running? (No such file or directory)\n"
        )
        assert proa("-H", "unix:///nowhere/s", "run", "busybox").status == 125

    def test_a_dead_socket(self, proa: Proa, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "dead"))
        ended = proa("-H", f"unix://{tmp_path}/dead", "ps")
        assert ended.status == 1
        assert "Is the proa daemon running? (Connection refused)" in ended.err

    def test_a_bad_address(self, proa: Proa) -> None:
        ended = proa("-H", "ftp://x", "ps")
        assert ended.status == 1
        assert "use unix:///path or tcp://host:port" in ended.err

    def test_one_that_talks_nonsense(self, proa: Proa, daemon: CannedDaemon) -> None:
        daemon.answers["GET /containers/json"] = reply(200, b'[{"Id": 5}]')
        ended = proa("ps")
        assert (ended.status, ended.out) == (1, "")
        assert "GET /containers/json" in ended.err


class TestHelp:
    def test_lists_every_command(self, proa: Proa) -> None:
        ended = proa("--help")
        assert ended.status == 0
        listed = {
            line.split()[0] for line in ended.out.partition("Commands:")[2].splitlines() if line.strip()
        }
        assert set(COMMANDS) <= listed

    @pytest.mark.parametrize("command", COMMANDS)
    def test_of_every_command(self, proa: Proa, command: str) -> None:
        if command == "daemon":
            return  # its options are the daemon's own
        ended = proa(command, "--help")
        assert ended.status == 0, ended.err
        assert ended.out.startswith("Usage: ")

    def test_an_unknown_command(self, proa: Proa) -> None:
        ended = proa("nope")
        assert ended.status == 125
        assert "No such command 'nope'" in ended.err

    def test_version(self, proa: Proa) -> None:
        assert proa("--version").out.startswith("proa version ")


def test_a_command_starts_light() -> None:
    """Every call starts a new Python: what takes long to import stays out of it."""
    code = (
        "import sys, proa.cli.main, proa.cli.run\n"
        "slow = ('asyncio', 'anyio', 'rich', 'pyroute2', 'sqlite3', 'ssl')\n"
        "print([name for name in slow if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

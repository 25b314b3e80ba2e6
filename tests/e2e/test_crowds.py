# SPDX-License-Identifier: Apache-2.0
"""Many clients want the same thing at once: one gets it, the others are told, and the rest holds together."""

from __future__ import annotations

import json
from collections import Counter

import anyio
import pytest

from tests.support import http
from tests.support.daemon import Daemon

pytestmark = pytest.mark.anyio

CROWD = 1000
PATIENCE_S = 60.0


async def ask(daemon: Daemon, method: str, path: str, body: object = None) -> tuple[int, str]:
    """Make one request on a connection of its own; return status and body."""
    data = None if body is None else json.dumps(body).encode()
    async with await anyio.connect_unix(daemon.socket) as stream:
        reply = await http.Client(stream).request(method, path, data)
    return reply.status, reply.body.decode()


async def crowd(daemon: Daemon, requests: list[tuple[str, str, object]]) -> list[tuple[int, str]]:
    """Make all requests at once; return their answers in order."""
    answers: dict[int, tuple[int, str]] = {}
    go = anyio.Event()

    async def one(position: int, method: str, path: str, body: object) -> None:
        await go.wait()
        answers[position] = await ask(daemon, method, path, body)

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as group:
            for position, request in enumerate(requests):
                group.start_soon(one, position, *request)
            go.set()
    return [answers[position] for position in range(len(requests))]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TIMEOUT_S", PATIENCE_S)


async def test_a_thousand_creates_of_one_name(daemon: Daemon, name: str) -> None:
    body = {"Image": "busybox", "Cmd": ["true"], "Volumes": {"/data": {}}}
    volumes = daemon.docker("volume", "ls", "-q").out.split()
    answers = await crowd(daemon, [("POST", f"/containers/create?name={name}", body)] * CROWD)
    assert Counter(status for status, _ in answers) == {201: 1, 409: CROWD - 1}
    winner = next(json.loads(text)["Id"] for status, text in answers if status == 201)
    sentence = (
        f'Conflict. The container name "/{name}" is already in use by container "{winner}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )
    assert {json.loads(text)["message"] for status, text in answers if status == 409} == {sentence}
    assert len(daemon.docker("volume", "ls", "-q").out.split()) == len(volumes) + 1
    assert len(daemon.docker("ps", "-aq", "--filter", f"name={name}").out.split()) == 1


async def test_many_starts_are_one(daemon: Daemon, name: str) -> None:
    daemon.docker("create", "--name", name, "busybox", "sleep", "1000")
    answers = await crowd(daemon, [("POST", f"/containers/{name}/start", None)] * 50)
    assert Counter(status for status, _ in answers) == {204: 1, 304: 49}
    assert daemon.docker("inspect", "-f", "{{.State.Status}}", name).out == "running\n"


async def test_many_stops_agree(daemon: Daemon, name: str) -> None:
    daemon.docker("run", "-d", "--name", name, "busybox", "sh", "-c", "trap 'exit 3' TERM; sleep 1000 & wait")
    answers = await crowd(daemon, [("POST", f"/containers/{name}/stop?t=20", None)] * 50)
    counted = Counter(status for status, _ in answers)
    assert counted[204] >= 1  # those that were waiting for its end have stopped it too
    assert set(counted) <= {204, 304}, answers
    assert daemon.docker("inspect", "-f", "{{.State.ExitCode}}", name).out == "3\n"


async def test_many_removals_are_one(daemon: Daemon, name: str) -> None:
    daemon.docker("run", "-d", "--name", name, "busybox", "sleep", "1000")
    answers = await crowd(daemon, [("DELETE", f"/containers/{name}?force=1", None)] * 50)
    counted = Counter(status for status, _ in answers)
    assert counted[204] >= 1
    assert set(counted) <= {204, 404, 409}, answers
    told = {json.loads(text)["message"] for status, text in answers if status == 409}
    assert all("is already in progress" in message for message in told)
    assert daemon.docker("ps", "-aq", "--filter", f"name={name}").out == ""


async def test_all_at_once(daemon: Daemon, name: str) -> None:
    """Start, stop, restart, pause, kill, exec and a removal in one heap: no answer is a failure of ours."""
    daemon.docker("create", "--name", name, "busybox", "sleep", "1000")
    verbs = ("start", "stop?t=0", "restart?t=0", "pause", "unpause", "kill", "wait?condition=not-running")
    requests: list[tuple[str, str, object]] = [
        ("POST", f"/containers/{name}/{verb}", None) for verb in verbs for _ in range(5)
    ]
    requests += [("POST", f"/containers/{name}/exec", {"Cmd": ["true"]})] * 5
    requests.append(("DELETE", f"/containers/{name}?force=1", None))
    answers = await crowd(daemon, requests)
    wrong = [(asked, got) for asked, got in zip(requests, answers, strict=True) if got[0] >= 500]
    assert wrong == []
    status, text = await ask(daemon, "DELETE", f"/containers/{name}?force=1")
    assert status in (204, 404, 409), text
    assert (await ask(daemon, "GET", "/_ping"))[0] == 200

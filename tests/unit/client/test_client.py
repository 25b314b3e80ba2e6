# SPDX-License-Identifier: Apache-2.0
"""Requests, answers, streams and hijacked connections, against canned answers."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import NoneType

import pytest

from proa.client.client import Client, filters_query
from proa.client.endpoint import Endpoint, TlsFiles, context_endpoint, environment_endpoint, host_endpoint
from proa.client.errors import ApiError, ConnectionFailed, ProtocolError
from proa.model.config import HostConfig
from proa.wire import routes
from proa.wire.containers import ContainerCreated, ContainerCreateRequest
from proa.wire.errors import Progress
from proa.wire.stdio import frame
from proa.wire.system import Version
from tests.support.canned_daemon import CannedDaemon, reply

UPGRADED = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n%s\r\n"


def test_a_call_is_typed_on_both_sides(client: Client, daemon: CannedDaemon) -> None:
    daemon.answers["POST /containers/create"] = reply(201, b'{"Id":"abc","Warnings":null}')
    request = ContainerCreateRequest(image="busybox", cmd=["ls"], host_config=HostConfig(isolation="vm"))
    made = client.call(
        routes.CONTAINER_CREATE,
        body=request,
        query={"name": "a b", "platform": None},
        returns=ContainerCreated,
    )
    assert (made.id, made.warnings) == ("abc", [])
    sent = daemon.requests[-1]
    assert sent.target == "/v1.51/containers/create?name=a+b"
    assert sent.headers["content-type"] == "application/json"
    assert json.loads(sent.body)["HostConfig"]["Isolation"] == "vm"


def test_one_connection_serves_many_calls(client: Client, daemon: CannedDaemon) -> None:
    daemon.answers["POST /containers/x/start"] = b"HTTP/1.1 204 No Content\r\n\r\n"
    for _ in range(5):
        client.do(routes.CONTAINER_START, id="x")
    assert daemon.connections == 1
    assert [request.method for request in daemon.requests] == ["HEAD"] + ["POST"] * 5


def test_a_connection_closed_while_idle_is_not_used_again(client: Client, daemon: CannedDaemon) -> None:
    daemon.answers["GET /version"] = reply(200, b"{}")
    assert client.call(routes.VERSION, returns=Version).os == "linux"
    daemon.hang_up = True
    assert client.call(routes.VERSION, returns=Version)
    assert client.call(routes.VERSION, returns=Version)


@pytest.mark.parametrize(
    ("theirs", "ours"), [("1.41", "1.41"), ("1.9", "1.9"), ("1.51", "1.51"), ("1.99", "1.51")]
)
def test_the_newest_common_version_is_spoken(daemon: CannedDaemon, theirs: str, ours: str) -> None:
    daemon.api_version = theirs
    daemon.answers["GET /version"] = reply(200, b"{}")
    with Client(f"unix://{daemon.path}") as client:
        client.call(routes.VERSION, returns=Version)
    assert daemon.requests[-1].target == f"/v{ours}/version"


def test_a_version_may_be_given(daemon: CannedDaemon) -> None:
    daemon.answers["GET /version"] = reply(200, b"{}")
    with Client(f"unix://{daemon.path}", version="1.30") as client:
        client.call(routes.VERSION, returns=Version)
    assert [request.target for request in daemon.requests] == ["/v1.30/version"]


def test_a_refusal_has_status_and_sentence(client: Client, daemon: CannedDaemon) -> None:
    daemon.answers["GET /containers/x/json"] = reply(404, b'{"message":"No such container: x"}')
    daemon.answers["POST /containers/x/start"] = b"HTTP/1.1 304 Not Modified\r\n\r\n"
    daemon.answers["POST /containers/x/stop"] = reply(500, b"plain words", "text/plain")
    for route, status, message in (
        (routes.CONTAINER_INSPECT, 404, "No such container: x"),
        (routes.CONTAINER_START, 304, "the daemon answered with status 304"),
        (routes.CONTAINER_STOP, 500, "plain words"),
    ):
        with pytest.raises(ApiError) as caught:
            client.call(route, id="x", returns=NoneType)
        assert (caught.value.status, caught.value.message) == (status, message)


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut"]
)
def test_what_is_not_http_is_named_so(client: Client, daemon: CannedDaemon, answer: bytes) -> None:
    daemon.answers["GET /version"] = answer
    daemon.hang_up = True
    with pytest.raises(ProtocolError):
        client.call(routes.VERSION, returns=Version)


def test_an_answer_that_is_cut_is_named_so(daemon: CannedDaemon) -> None:
    cut = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n"
    daemon.answers["GET /events"] = cut
    daemon.hang_up = True
    found = Client(f"unix://{daemon.path}", version="1.51").iter_json(routes.EVENTS, dict[str, str])
    assert next(found) == {}
    with pytest.raises(ProtocolError, match="was cut"):
        next(found)


def test_an_answer_of_the_wrong_shape_is_named_so(client: Client, daemon: CannedDaemon) -> None:
    daemon.answers["GET /version"] = reply(200, b'{"Version": 5}')
    with pytest.raises(ProtocolError, match="GET /version"):
        client.call(routes.VERSION, returns=Version)


def test_a_dead_socket_gives_dockers_sentence(tmp_path: Path) -> None:
    host = f"unix://{tmp_path}/none"
    with pytest.raises(ConnectionFailed) as caught:
        Client(host).do(routes.INFO)
    assert caught.value.message.startswith(
        f"Cannot connect to the proa daemon at {host}. Is the proa daemon running?"
    )
    with pytest.raises(ConnectionFailed, match="use unix:///path"):
        Client("nonsense").do(routes.INFO)


def test_the_host_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROA_HOST", raising=False)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert environment_endpoint().host == "unix:///run/proa/proa.sock"
    monkeypatch.setenv("DOCKER_HOST", "unix:///d")
    assert environment_endpoint().host == "unix:///d"
    monkeypatch.setenv("PROA_HOST", "unix:///p")
    assert environment_endpoint().host == "unix:///p"


def test_lines_of_json_come_however_they_are_cut(client: Client, daemon: CannedDaemon) -> None:
    body = b'{"status":"one"}\r\n\r\n{"status":"two"}\n{"error":"three"}'
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(body[i : i + 5]), body[i : i + 5]) for i in range(0, len(body), 5)
    )
    daemon.answers["POST /images/create"] = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    )
    lines = list(client.iter_json(routes.IMAGE_CREATE, Progress, query={"fromSrc": "-"}))
    assert [line.status or line.error for line in lines] == ["one", "two", "three"]


def test_a_long_body_is_streamed(client: Client, daemon: CannedDaemon) -> None:
    daemon.answers["POST /images/load"] = reply(200, b'{"stream":"ok"}')

    def pieces() -> Iterator[bytes]:
        for number in range(100):
            yield bytes([number]) * 10_000

    assert [line.stream for line in client.iter_json(routes.IMAGE_LOAD, Progress, body=pieces())] == ["ok"]
    assert daemon.requests[-1].headers["transfer-encoding"] == "chunked"
    assert len(daemon.requests[-1].body) == 1_000_000


def test_a_daemon_that_refuses_early_is_heard(daemon: CannedDaemon) -> None:
    """The command line leaves SIGPIPE at its default: writing on must not end the process."""
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            path = daemon.path.with_name("early")
            listener.bind(str(path))
            listener.listen()

            def pieces() -> Iterator[bytes]:
                accepted, _ = listener.accept()
                with accepted:
                    accepted.recv(1000)
                    accepted.sendall(reply(400, b'{"message":"not an archive"}'))
                for _ in range(50):
                    yield b"x" * 100_000

            with pytest.raises(ApiError, match="not an archive"):
                list(
                    Client(f"unix://{path}", version="1.51").iter_json(
                        routes.IMAGE_LOAD, Progress, body=pieces()
                    )
                )
    finally:
        signal.signal(signal.SIGPIPE, before)


@pytest.mark.parametrize("head", [UPGRADED % b"", b"HTTP/1.1 200 OK\r\nContent-Type: x\r\n\r\n"])
def test_a_terminal_is_a_raw_stream_with_half_close(
    client: Client, daemon: CannedDaemon, head: bytes
) -> None:
    def terminal(stream: socket.socket, first: bytes) -> None:
        stream.sendall(head + b"early ")
        received = first
        while piece := stream.recv(100):
            received += piece
        stream.sendall(b"got " + received)

    daemon.answers["POST /containers/x/attach"] = terminal
    stream = client.hijack(routes.CONTAINER_ATTACH, id="x", query={"stream": True}, tty=True)
    stream.send(b"typed")
    stream.send_eof()
    stream.send_eof()
    assert b"".join(data for number, data in stream.iter_output() if number == 1) == b"early got typed"
    stream.close()


def test_both_outputs_come_apart(client: Client, daemon: CannedDaemon) -> None:
    def multiplexed(stream: socket.socket, first: bytes) -> None:
        kind = b"Content-Type: application/vnd.docker.multiplexed-stream\r\n"
        frames = frame(1, b"out") + frame(2, b"err") + frame(1, b"more")
        stream.sendall(UPGRADED % kind + frames[:5])
        stream.sendall(frames[5:])

    daemon.answers["POST /containers/x/attach"] = multiplexed
    stream = client.hijack(routes.CONTAINER_ATTACH, id="x", tty=False)
    assert list(stream.iter_output()) == [(1, b"out"), (2, b"err"), (1, b"more")]
    stream.close()


def test_a_refused_attach_is_an_api_error(client: Client, daemon: CannedDaemon) -> None:
    daemon.answers["POST /exec/x/start"] = reply(409, b'{"message":"Container x is not running"}')
    with pytest.raises(ApiError, match="is not running"):
        client.hijack(routes.EXEC_START, id="x", tty=False)


def test_filters_are_written_for_every_daemon() -> None:
    assert json.loads(filters_query({"label": ["a=b", "c"]}) or "") == {"label": {"a=b": True, "c": True}}
    assert filters_query({}) is None


def test_a_sibling_does_not_ask_for_the_version_again(client: Client, daemon: CannedDaemon) -> None:
    daemon.answers["GET /version"] = reply(200, b"{}")
    client.call(routes.VERSION, returns=Version)
    asked = len(daemon.requests)
    with client.sibling() as sibling:
        sibling.call(routes.VERSION, returns=Version)
    assert len(daemon.requests) == asked + 1


# --- which daemon ---


@pytest.fixture
def docker_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PROA_HOST", "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    for name in ("ca.pem", "cert.pem"):
        (tmp_path / name).touch()
    return tmp_path


def test_tls_is_for_tcp_alone(docker_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_endpoint("tcp://h:2376").tls is None
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    assert host_endpoint("unix:///s").tls is None
    assert host_endpoint("tcp://h:2376").tls == TlsFiles(
        ca=docker_folder / "ca.pem", certificate=docker_folder / "cert.pem"
    )


def test_a_context_of_docker(docker_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = hashlib.sha256(b"far").hexdigest()
    meta = docker_folder / "contexts" / "meta" / identity / "meta.json"
    meta.parent.mkdir(parents=True)
    meta.write_text(
        '{"Name":"far","Endpoints":{"docker":{"Host":"tcp://h:2376","SkipTLSVerify":true}},"Metadata":{}}'
    )
    files = docker_folder / "contexts" / "tls" / identity / "docker"
    files.mkdir(parents=True)
    (files / "ca.pem").touch()
    monkeypatch.setenv("DOCKER_CONTEXT", "far")
    assert environment_endpoint() == Endpoint(
        host="tcp://h:2376", tls=TlsFiles(ca=files / "ca.pem", verify=False)
    )
    monkeypatch.setenv("DOCKER_HOST", "unix:///d")  # goes before the context, as with docker
    assert environment_endpoint() == Endpoint(host="unix:///d")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Endpoints":{}}', '{"Endpoints":{"docker":3}}'])
def test_a_broken_context_is_named(docker_folder: Path, text: str) -> None:
    meta = docker_folder / "contexts" / "meta" / hashlib.sha256(b"far").hexdigest() / "meta.json"
    meta.parent.mkdir(parents=True)
    meta.write_text(text)
    with pytest.raises(ConnectionFailed, match="context far"):
        context_endpoint("far")

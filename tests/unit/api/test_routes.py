# SPDX-License-Identifier: Apache-2.0
"""Requests as clients make them: what reaches the engine, and what comes back, checked against spec/."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from proa.api.app import Own, build_app
from proa.api.errors import RequestError
from proa.api.snapshots import Backend as SnapshotBackend
from proa.engine.container import State
from proa.engine.creation import Created
from proa.engine.events import Event
from proa.engine.updates import UpdateRequest
from proa.model.config import RestartPolicy
from proa.model.errors import NoSuchContainer, NotModified, StartFailed
from proa.model.ids import ContainerId
from proa.wire import own_routes
from tests.support.fake_engine import BORN_NS, EXEC_ID, ID, IMAGE_ID, STATS, FakeEngine, make_container
from tests.support.http import Client, connected
from tests.support.swagger import check_answer, operations

pytestmark = pytest.mark.anyio

OWN_DESCRIPTION = Path(__file__).parents[3] / "docs" / "reference" / "containers-proa.yaml"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[Client]:
    async with connected(build_app(engine)) as client:
        yield client


async def ask(client: Client, method: str, path: str, body: Any = None, *, status: int = 200) -> Any:
    """Make a request, check status and JSON, and return the JSON."""
    data = None if body is None else json.dumps(body).encode()
    reply = await client.request(method, f"/v1.51{path}", data)
    assert reply.status == status, reply.body
    if not reply.body:
        return None
    answer = reply.json()
    assert check_answer(method, path.partition("?")[0], status, answer) == []
    return answer


def test_every_operation_of_the_description_has_an_answer() -> None:
    router = build_app(FakeEngine()).router
    missing = []
    for method, path, _ in operations():
        try:
            router.match(method, path)
        except RequestError as error:
            missing.append((method, path, error.status))
    assert missing == []


@pytest.mark.parametrize(
    "path",
    [
        "/version",
        "/info",
        "/system/df",
        "/containers/json?all=1&size=1",
        "/containers/web/json?size=true",
        "/containers/web/top?ps_args=aux",
        "/images/json",
        "/images/busybox/json",
        "/images/busybox:latest/history",
        "/volumes",
        "/volumes/data",
        "/networks",
        "/networks/bridge",
        f"/exec/{EXEC_ID}/json",
        "/plugins",
    ],
)
async def test_answers_are_of_the_described_form(client: Client, path: str) -> None:
    assert await ask(client, "GET", path) is not None


async def test_ping(client: Client) -> None:
    reply = await client.request("GET", "/_ping")
    assert (reply.status, reply.body) == (200, b"OK")
    assert reply.headers["cache-control"].startswith("no-cache")
    assert (await client.request("HEAD", "/_ping")).status == 200


# --- containers ---


async def test_create_passes_all_three_parts(client: Client, engine: FakeEngine) -> None:
    body = {
        "Image": "busybox",
        "Cmd": ["true"],
        "Hostname": None,
        "HostConfig": {
            "Memory": 1048576,
            "Isolation": "vm",
            "PortBindings": {"80/tcp": [{"HostPort": "8080"}]},
        },
        "NetworkingConfig": {"EndpointsConfig": {"front": {"Aliases": ["www"]}}},
    }
    answer = await ask(client, "POST", "/containers/create?name=web&platform=linux", body, status=201)
    assert answer == {"Id": ID, "Warnings": ["mind the gap"]}
    _, name, config, host, networking, platform = engine.containers.asked[0]
    assert (name, platform) == ("web", "linux")
    assert (config.image, config.cmd, config.hostname) == ("busybox", ["true"], "")
    assert (host.memory, host.isolation) == (1048576, "vm")
    assert host.port_bindings["80/tcp"][0].host_port == "8080"
    assert networking.endpoints_config["front"].aliases == ["www"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "config cannot be empty in order to create a container"),
        (b"{}", "config cannot be empty in order to create a container"),
        (b"   ", "invalid JSON: got EOF while reading request body"),
        (b'{"Image":', "invalid JSON: Input data was truncated"),
        (b'{"Image": "a"} x', "invalid JSON: JSON is malformed: trailing characters (byte 16)"),
        (b"[]", "invalid JSON: Expected object, got array"),
        (b'{"Image": 5}', "invalid JSON: Expected str, got int - at Image"),
        (
            b'{"HostConfig": {"Memory": "1g"}}',
            "invalid JSON: Expected int, got str - at HostConfig.Memory",
        ),
    ],
)
async def test_bad_bodies(client: Client, engine: FakeEngine, body: bytes, message: str) -> None:
    reply = await client.request("POST", "/v1.51/containers/create", body)
    assert (reply.status, reply.json()) == (400, {"message": message})
    assert engine.containers.asked == []


async def test_wrong_content_type(client: Client) -> None:
    reply = await client.request("POST", "/containers/create", b"{}", {"Content-Type": "text/xml"})
    assert reply.status == 400
    assert reply.json()["message"] == (
        "unsupported Content-Type header (text/xml): must be 'application/json'"
    )


@pytest.mark.parametrize(
    ("path", "call"),
    [
        ("web/start", ("start", "web")),
        ("web/stop", ("stop", "web", None, None)),
        ("web/stop?t=3&signal=INT", ("stop", "web", "INT", 3)),
        (f"{ID[:8]}/restart?t=0", ("restart", "web", None, 0)),
        ("web/kill", ("kill", "web", "SIGKILL")),
        ("web/kill?signal=HUP", ("kill", "web", "HUP")),
        ("web/pause", ("pause", "web")),
        ("web/unpause", ("unpause", "web")),
        ("web/rename?name=shop", ("rename", "web", "shop")),
    ],
)
async def test_changes_of_state(client: Client, engine: FakeEngine, path: str, call: tuple[Any, ...]) -> None:
    await ask(client, "POST", f"/containers/{path}", status=204)
    assert engine.containers.asked == [call]


async def test_resize_and_its_numbers(client: Client, engine: FakeEngine) -> None:
    await ask(client, "POST", "/containers/web/resize?h=40&w=80")
    assert engine.containers.asked == [("resize", "web", 40, 80)]
    reply = await client.request("POST", "/containers/web/resize?h=tall&w=80")
    assert (reply.status, reply.json()["message"]) == (
        400,
        'invalid value for h: "tall" is not an integer',
    )
    assert (await client.request("POST", "/containers/web/resize?w=80")).status == 400


async def test_already_started_is_not_modified(client: Client, engine: FakeEngine) -> None:
    engine.containers.fails = NotModified("already started")
    await ask(client, "POST", "/containers/web/start", status=304)


@pytest.mark.parametrize(("exit_code", "status"), [(127, 400), (126, 400), (128, 500)])
async def test_failed_starts(client: Client, engine: FakeEngine, exit_code: int, status: int) -> None:
    engine.containers.fails = StartFailed("exec: no such file", exit_code=exit_code)
    reply = await client.request("POST", "/containers/web/start")
    assert (reply.status, reply.json()["message"]) == (status, "exec: no such file")


async def test_start_takes_no_configuration(client: Client) -> None:
    assert (await client.request("POST", "/containers/web/start", b"null")).status == 204
    assert (await client.request("POST", "/containers/web/start", b"{}")).status == 204
    reply = await client.request("POST", "/containers/web/start", b'{"Binds": ["/:/host"]}')
    assert reply.status == 400


async def test_delete_and_list_flags(client: Client, engine: FakeEngine) -> None:
    await ask(client, "DELETE", "/containers/web?force=true&v=1&link=0", status=204)
    await ask(
        client, "GET", '/containers/json?all=True&limit=2&filters={"status":{"exited":true,"dead":false}}'
    )
    assert engine.containers.asked == [
        ("remove", "web", True, True, False),
        ("list", True, 2, {"status": ("exited",)}, False),
    ]


async def test_broken_filters(client: Client) -> None:
    reply = await client.request("GET", "/containers/json?filters=[1]")
    assert reply.status == 400
    assert reply.json()["message"].startswith("invalid filter")


async def test_unknown_container(client: Client) -> None:
    for method, path in (("GET", "json"), ("POST", "start"), ("POST", "attach"), ("GET", "logs")):
        reply = await client.request(method, f"/containers/nobody/{path}")
        assert (reply.status, reply.json()) == (404, {"message": "No such container: nobody"})


async def test_update(client: Client, engine: FakeEngine) -> None:
    body = {"Memory": 64, "PidsLimit": 5, "BlkioWeightDevice": [], "RestartPolicy": {"Name": "always"}}
    assert await ask(client, "POST", "/containers/web/update", body) == {"Warnings": None}
    assert engine.containers.asked == [
        (
            "update",
            "web",
            UpdateRequest(memory=64, pids_limit=5, restart_policy=RestartPolicy(name="always")),
        )
    ]
    reply = await client.request("POST", "/containers/web/update", b'{"CpuRealtimePeriod": 5}')
    assert (reply.status, reply.json()["message"]) == (400, "cpu realtime period cannot be updated")


async def test_inspect_shows_what_runs(client: Client) -> None:
    shown = await ask(client, "GET", "/containers/web/json")
    assert shown["Name"] == "/web"
    assert shown["Created"] == "2023-11-14T22:13:20.123456789Z"
    assert shown["State"]["Running"] is True
    assert shown["State"]["FinishedAt"] == "0001-01-01T00:00:00Z"
    assert shown["NetworkSettings"]["IPAddress"] == "172.17.0.2"
    assert shown["NetworkSettings"]["Ports"] == {
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}],
        "443/tcp": None,
    }
    assert shown["NetworkSettings"]["Networks"]["bridge"]["Gateway"] == "172.17.0.1"
    assert shown["Mounts"][0]["Name"] == "data"
    assert "Name" not in shown["Mounts"][1]
    assert "SizeRw" not in shown


async def test_list_shows_a_line(client: Client, engine: FakeEngine) -> None:
    engine.containers.records["web"] = make_container(state=State.EXITED, endpoints=(), ports=(), exit_code=3)
    (line,) = await ask(client, "GET", "/containers/json?all=1")
    assert (line["State"], line["Command"], line["Ports"]) == ("exited", "sh -c 'echo hello'", [])
    assert line["Names"] == ["/web"]


async def test_prunes(client: Client) -> None:
    assert (await ask(client, "POST", "/containers/prune"))["SpaceReclaimed"] == 12
    assert (await ask(client, "POST", "/images/prune"))["ImagesDeleted"] == [{"Deleted": IMAGE_ID}]
    assert (await ask(client, "POST", "/volumes/prune"))["VolumesDeleted"] == ["data"]
    assert (await ask(client, "POST", "/build/prune"))["SpaceReclaimed"] == 42
    assert (await ask(client, "POST", "/networks/prune"))["NetworksDeleted"] == ["old"]


# --- stats ---


async def test_stats_once_has_two_readings(
    client: Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyio.sleep", _no_sleep)
    engine.containers.readings = [STATS, STATS]
    shown = await ask(client, "GET", "/containers/web/stats?stream=false")
    assert shown["cpu_stats"]["cpu_usage"]["total_usage"] == 5_000_000_000
    assert shown["precpu_stats"]["system_cpu_usage"] == 100_000_000_000
    assert shown["networks"]["eth0"]["rx_bytes"] == 1
    assert shown["memory_stats"]["stats"] == {"inactive_file": 1000}


async def test_stats_one_shot(client: Client, engine: FakeEngine) -> None:
    engine.containers.readings = [STATS]
    shown = await ask(client, "GET", "/containers/web/stats?stream=0&one-shot=1")
    assert "system_cpu_usage" not in shown["precpu_stats"]
    assert (await client.request("GET", "/containers/web/stats?one-shot=1")).status == 400


async def test_stats_of_what_does_not_run(client: Client, engine: FakeEngine) -> None:
    engine.containers.readings = [None]
    shown = await ask(client, "GET", "/containers/web/stats?stream=false")
    assert (shown["name"], shown["read"]) == ("/web", "0001-01-01T00:00:00Z")


async def test_stats_stream_ends_with_the_container(
    client: Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyio.sleep", _no_sleep)
    engine.containers.readings = [STATS, STATS]
    reply = await client.request("GET", "/containers/web/stats")
    first, second = (json.loads(line) for line in reply.body.splitlines())
    assert first["preread"] == "0001-01-01T00:00:00Z"
    assert second["preread"] == first["read"] == "2023-11-14T22:13:20.123456789Z"


async def _no_sleep(seconds: float) -> None:
    del seconds


# --- other resources ---


async def test_events(client: Client, engine: FakeEngine) -> None:
    engine.system.past = [
        Event(
            type="container",
            action="start",
            actor_id=ID,
            attributes={"image": "busybox", "name": "web"},
            time_ns=BORN_NS,
        ),
        Event(type="network", action="create", actor_id="n", time_ns=BORN_NS),
    ]
    reply = await client.request("GET", "/v1.51/events?until=1")
    first, second = (json.loads(line) for line in reply.body.splitlines())
    assert (first["status"], first["id"], first["from"]) == ("start", ID, "busybox")
    assert (first["time"], first["timeNano"]) == (BORN_NS // 10**9, BORN_NS)
    assert "status" not in second
    assert second["Actor"] == {"ID": "n", "Attributes": {}}


async def test_events_with_a_bad_filter_are_a_status(client: Client) -> None:
    reply = await client.request("GET", '/events?filters={"colour":["red"]}')
    assert (reply.status, reply.json()["message"]) == (400, "invalid filter 'colour'")


async def test_disk_usage_of_one_kind(client: Client) -> None:
    usage = await ask(client, "GET", "/system/df?type=volume")
    assert usage["Images"] is None
    assert usage["Volumes"][0]["UsageData"] == {"Size": 100, "RefCount": 1}
    assert (await client.request("GET", "/system/df?type=rubbish")).status == 400


async def test_info_tells_of_acceleration(client: Client) -> None:
    info = await ask(client, "GET", "/info")
    assert info["Runtimes"]["vm"]["status"]["proa.accelerator"] == "tcg"
    assert (info["Containers"], info["ContainersRunning"], info["ContainersStopped"]) == (3, 1, 2)
    assert info["Warnings"] == ["runtime runc is missing: not installed"]


async def test_images_in_and_out(client: Client, engine: FakeEngine) -> None:
    reply = await client.request(
        "POST", "/images/load", b"x" * 300_000, {"Content-Type": "application/x-tar"}
    )
    assert json.loads(reply.body) == {"stream": "Loaded image: busybox:latest\n"}
    assert len(engine.images.loaded) == 300_000
    saved = await client.request("GET", "/images/get?names=busybox&names=busybox:latest")
    assert (saved.body, saved.headers["content-type"]) == (
        b"tar of busybox;tar of busybox:latest;",
        "application/x-tar",
    )
    assert (await client.request("GET", "/images/busybox/get")).body == b"tar of busybox;"
    assert (await client.request("GET", "/images/nothing/get")).status == 404


async def test_broken_archive_is_a_status_however_much_follows(client: Client) -> None:
    body = b"broken" + b"x" * 300_000
    reply = await client.request("POST", "/images/load", body, {"Content-Type": "application/x-tar"})
    assert (reply.status, reply.json()["message"]) == (400, "invalid archive")
    assert (await client.request("GET", "/_ping")).body == b"OK"


async def test_image_create(client: Client, engine: FakeEngine) -> None:
    path = "/images/create?fromSrc=-&repo=mine:1&message=hi&changes=CMD+sh&changes=ENV+A=1"
    reply = await client.request("POST", path, b"tar", {"Content-Type": "text/plain"})
    assert json.loads(reply.body) == {"status": IMAGE_ID}
    assert engine.images.asked == [("import", "mine", "1", "hi", ["CMD sh", "ENV A=1"], "")]
    assert (await client.request("POST", "/images/create?fromSrc=http://x/y")).status == 400


async def test_image_names_have_slashes(client: Client, engine: FakeEngine) -> None:
    reply = await client.request("POST", "/images/example.org:5000/a/b:1/tag?repo=example.org:5000/c&tag=2")
    assert reply.status == 201
    assert engine.images.asked == [("tag", "example.org:5000/a/b:1", "example.org:5000/c", "2")]
    reply = await client.request("GET", "/images/example.org:5000%2Fa/json")
    assert reply.json() == {"message": "No such image: example.org:5000/a"}


async def test_image_delete(client: Client) -> None:
    entries = await ask(client, "DELETE", "/images/busybox?force=1")
    assert entries == [{"Untagged": "busybox"}, {"Deleted": IMAGE_ID}]


async def test_volumes(client: Client, engine: FakeEngine) -> None:
    await ask(client, "POST", "/volumes/create", {"Name": "data", "DriverOpts": {"o": "1"}}, status=201)
    await ask(client, "DELETE", "/volumes/data?force=1", status=204)
    assert engine.volumes.asked == [("create", "data", "local", {}, {"o": "1"}), ("remove", "data", True)]
    reply = await client.request("GET", "/volumes/nothing")
    assert (reply.status, reply.json()["message"]) == (404, "get nothing: no such volume")


async def test_networks(client: Client, engine: FakeEngine) -> None:
    body = {"Name": "front", "IPAM": {"Config": [{"Subnet": "10.9.0.5/24", "Gateway": "10.9.0.1"}]}}
    await ask(client, "POST", "/networks/create", body, status=201)
    request = engine.networks.asked[0][1]
    assert (str(request.subnet), str(request.gateway)) == ("10.9.0.0/24", "10.9.0.1")
    await ask(client, "POST", "/networks/bridge/connect", {"Container": "web"})
    assert engine.networks.asked[1][:3] == ("connect", "bridge", "web")
    await ask(client, "POST", "/networks/bridge/disconnect", {"Container": "web", "Force": True})
    await ask(client, "DELETE", "/networks/bridge", status=204)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"Name": "x", "EnableIPv4": False, "IPAM": {"Config": [{"Subnet": "10.9.0.0/24"}]}},
        {"Name": "x", "IPAM": {"Config": [{"Subnet": "10.9.0.0/24", "Gateway": "fd00::1"}]}},
        {"Name": "x", "IPAM": {"Config": [{"Subnet": "10.9.0.0/24", "AuxiliaryAddresses": {"a": "b"}}]}},
        {"Name": "x", "IPAM": {"Config": [{"Subnet": "nonsense"}]}},
        {"Name": "x", "IPAM": {"Config": [{"Subnet": "fd00::/64"}]}},
        {"Name": "x", "ConfigOnly": True},
    ],
)
async def test_bad_networks(client: Client, engine: FakeEngine, body: dict[str, Any]) -> None:
    await ask(client, "POST", "/networks/create", body, status=400)
    assert engine.networks.asked == []


# --- what proa does not have ---


SWARM = ("Swarm", "Node", "Service", "Task", "Secret", "Config")


@pytest.mark.parametrize(
    ("method", "path"), [(method, path) for method, path, one in operations() if one["tags"][0] in SWARM]
)
async def test_swarm(client: Client, method: str, path: str) -> None:
    answer = await ask(client, method, path.replace("{id}", "x"), status=503)
    assert "swarm" in answer["message"]
    if method == "GET":
        assert answer["message"] == (
            'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect '
            "this node to swarm and try again."
        )


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/swarm/leave", 503, "This node is not part of a swarm"),
        ("GET", "/plugins/vieux/sshfs:latest/json", 404, 'plugin "vieux/sshfs:latest" not found'),
        ("DELETE", "/plugins/sshfs", 404, 'plugin "sshfs" not found'),
        ("POST", "/plugins/pull", 501, "proa has no plugins: volumes, networks and logs are its own"),
        ("GET", "/swarm/nothing", 404, "page not found"),
        ("PUT", "/swarm", 405, "method PUT is not allowed on /swarm"),
        ("POST", "/grpc", 400, "this is gRPC: the request must ask for an upgrade to h2c"),
        ("POST", "/session", 400, "this is gRPC: the request must ask for an upgrade to h2c"),
    ],
)
async def test_what_proa_leaves_out(
    client: Client, method: str, path: str, status: int, message: str
) -> None:
    reply = await client.request(method, f"/v1.51{path}")
    assert (reply.status, reply.json()) == (status, {"message": message})


async def test_a_wrong_method_is_told_the_right_ones(client: Client) -> None:
    reply = await client.request("PUT", "/v1.51/version")
    assert (reply.status, reply.headers["allow"]) == (405, "GET")
    reply = await client.request("PATCH", "/services/x")
    assert (reply.status, reply.headers["allow"]) == (405, "DELETE, GET")


@pytest.mark.parametrize(("method", "path"), [("POST", "/build?version=2")])
async def test_missing_parts_say_so(client: Client, method: str, path: str) -> None:
    reply = await client.request(method, path)
    assert reply.status == 501
    assert "classic" in reply.json()["message"]


async def test_an_images_container_config(client: Client) -> None:
    """docker-compose 1.29 takes the volumes of a container it replaces from there."""
    found = await ask(client, "GET", "/images/busybox/json")
    assert found["ContainerConfig"] == found["Config"]


class FakeForking:
    """The use case behind the one route of ours."""

    async def fork(self, ref: str, name: str) -> Created:
        if ref != ID:
            raise NoSuchContainer(ref)
        return Created(id=ContainerId("c" * 64), warnings=(f"called {name}",))


async def test_fork() -> None:
    async with connected(
        build_app(FakeEngine(), own=Own(forking=FakeForking(), snapshots=cast(SnapshotBackend, None)))
    ) as client:
        reply = await client.request("POST", f"/v1.51/containers/{ID}/fork?name=copy")
        assert (reply.status, reply.json()) == (201, {"Id": "c" * 64, "Warnings": ["called copy"]})
        assert (await client.request("POST", "/containers/nobody/fork")).status == 404
        assert (await client.request("GET", f"/containers/{ID}/fork")).status == 405


def test_the_routes_of_ours_are_described() -> None:
    described = {
        (method.upper(), path)
        for path, methods in yaml.safe_load(OWN_DESCRIPTION.read_text())["paths"].items()
        for method in methods
        if method != "parameters"
    }
    assert described == {(route.method, route.path) for route in own_routes.ROUTES.values()}

# SPDX-License-Identifier: Apache-2.0
"""docker-py, the library beneath compose 1, ansible, testcontainers and most scripts."""

from __future__ import annotations

import io
import socket
import tarfile
import threading
import time
from collections.abc import Iterator

import docker
import pytest
from docker.models.containers import Container

from tests.conformance.conftest import first_bytes
from tests.support.daemon import LIB

pytestmark = pytest.mark.client(f"docker-py {docker.__version__}")


@pytest.fixture
def client(docker_host: str) -> Iterator[docker.DockerClient]:
    made = docker.from_env(timeout=30)
    yield made
    made.close()


@pytest.fixture
def sleeper(client: docker.DockerClient, name: str) -> Container:
    return client.containers.run("busybox", ["sleep", "600"], name=name, detach=True, labels={"t": name})


def test_system(client: docker.DockerClient) -> None:
    """ping, version, info, df"""
    assert client.ping()
    assert client.version()["Os"] == "linux"
    assert client.info()["OSType"] == "linux"
    assert "Containers" in client.df()


def test_run(client: docker.DockerClient) -> None:
    """run and its output"""
    assert client.containers.run("busybox", ["echo", "hi"], remove=True) == b"hi\n"
    with pytest.raises(docker.errors.ContainerError) as failed:
        client.containers.run("busybox", ["sh", "-c", "echo no >&2; exit 3"], remove=True)
    assert (failed.value.exit_status, failed.value.stderr) == (3, b"no\n")


def test_options(client: docker.DockerClient, name: str) -> None:
    """run with environment, limits, tmpfs, user, working directory, labels"""
    output = client.containers.run(
        "busybox",
        ["sh", "-c", "echo $A; pwd; id -u; cat /sys/fs/cgroup/memory.max; mount | grep -c /scratch"],
        name=name,
        environment={"A": "b"},
        working_dir="/tmp",
        user="1000",
        mem_limit="64m",
        nano_cpus=500_000_000,
        tmpfs={"/scratch": "size=1m"},
        labels={"x": "y"},
        stderr=True,
    )
    lines = output.decode().splitlines()
    assert (lines[0], lines[1], lines[2], lines[-1]) == ("b", "/tmp", "1000", "1")
    found = client.containers.get(name)
    assert found.labels["x"] == "y"
    assert found.attrs["HostConfig"]["Memory"] == 64 << 20


def test_life(client: docker.DockerClient, sleeper: Container) -> None:
    """pause, restart, rename, kill, wait, remove"""
    sleeper.pause()
    sleeper.reload()
    assert sleeper.status == "paused"
    sleeper.unpause()
    sleeper.restart(timeout=0)
    sleeper.rename(f"{sleeper.name}-2")
    sleeper.kill()
    assert sleeper.wait()["StatusCode"] == 137
    sleeper.start()
    sleeper.remove(force=True)
    with pytest.raises(docker.errors.NotFound):
        sleeper.reload()


def test_listing(client: docker.DockerClient, sleeper: Container) -> None:
    """list with filters"""
    for filters in ({"label": f"t={sleeper.name}"}, {"name": sleeper.name}, {"id": sleeper.id}):
        assert [one.id for one in client.containers.list(filters=filters)] == [sleeper.id]
    assert client.containers.list(filters={"status": "exited", "name": sleeper.name}) == []


def test_exec(client: docker.DockerClient, sleeper: Container) -> None:
    """exec: output, exit code, demultiplexed, streamed, over a socket"""
    assert sleeper.exec_run(["echo", "hi"]) == (0, b"hi\n")
    code, (out, err) = sleeper.exec_run(["sh", "-c", "echo o; echo e >&2; exit 4"], demux=True)
    assert (code, out, err) == (4, b"o\n", b"e\n")
    assert b"".join(sleeper.exec_run(["seq", "3"], stream=True).output) == b"1\n2\n3\n"
    opened = sleeper.exec_run(["cat"], stdin=True, socket=True).output
    opened._sock.sendall(b"through\n")
    opened._sock.shutdown(socket.SHUT_WR)
    assert opened.read().endswith(b"through\n")


def test_logs(client: docker.DockerClient, name: str) -> None:
    """logs: tail, since, follow"""
    program = ["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done"]
    made = client.containers.run("busybox", program, name=name, detach=True)
    assert b"".join(made.logs(stream=True, follow=True)) == b"1\n2\n3\n"
    assert made.logs(tail=1) == b"3\n"
    assert made.logs(since=int(time.time()) + 100) == b""
    assert made.logs(timestamps=True).splitlines()[0].endswith(b"Z 1")


def test_attach(client: docker.DockerClient, name: str) -> None:
    """attach to a container's input and output"""
    made = client.containers.create("busybox", ["cat"], name=name, stdin_open=True)
    attached = made.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
    made.start()
    attached._sock.sendall(b"hello\n")
    attached._sock.shutdown(socket.SHUT_WR)
    assert attached.read().endswith(b"hello\n")


def test_stats_and_top(sleeper: Container) -> None:
    """stats, top"""
    assert sleeper.stats(stream=False)["pids_stats"]["current"] >= 1
    assert next(sleeper.stats(stream=True, decode=True))["name"] == f"/{sleeper.name}"
    assert any("sleep" in line[-1] for line in sleeper.top()["Processes"])


def test_update(client: docker.DockerClient, sleeper: Container) -> None:
    """update"""
    sleeper.update(mem_limit="32m", memswap_limit="32m", restart_policy={"Name": "on-failure"})
    sleeper.reload()
    assert sleeper.attrs["HostConfig"]["Memory"] == 32 << 20
    assert sleeper.attrs["HostConfig"]["RestartPolicy"]["Name"] == "on-failure"


def test_errors(client: docker.DockerClient, sleeper: Container) -> None:
    """errors told apart: no image, no container, conflict, bad parameter"""
    with pytest.raises(docker.errors.NotFound):
        client.containers.get("nobody")
    with pytest.raises(docker.errors.ImageNotFound):
        client.images.get("nothing:here")
    with pytest.raises(docker.errors.ImageNotFound):
        client.api.create_container("nothing:here")
    with pytest.raises(docker.errors.APIError) as conflict:
        client.containers.create("busybox", name=sleeper.name)
    assert conflict.value.status_code == 409
    assert "is already in use by container" in conflict.value.explanation
    with pytest.raises(docker.errors.APIError) as wrong:
        client.containers.create("busybox", name="a b")
    assert wrong.value.is_client_error()


def test_images(client: docker.DockerClient) -> None:
    """images: list, tag, history, save, load, remove"""
    image = client.images.get("busybox")
    assert image.tag("docker-py-test", tag="one")
    assert "docker-py-test:one" in client.images.get(image.id).tags
    assert [one.id for one in client.images.list(name="docker-py-test")] == [image.id]
    assert image.history()
    archive = b"".join(client.images.get("docker-py-test:one").save(named="docker-py-test:one"))
    client.images.remove("docker-py-test:one")
    assert client.images.load(archive)[0].id == image.id
    client.images.remove("docker-py-test:one")
    with (LIB / "busybox.tar").open("rb") as file:
        assert client.images.load(file)


def test_volumes(client: docker.DockerClient, name: str) -> None:
    """volumes: create, use, prune by label"""
    volume = client.volumes.create(name=name, labels={"t": name})
    mounted = {name: {"bind": "/data", "mode": "rw"}}
    client.containers.run("busybox", ["sh", "-c", "echo kept >/data/x"], volumes=mounted, remove=True)
    read = {name: {"bind": "/data", "mode": "ro"}}
    assert client.containers.run("busybox", ["cat", "/data/x"], volumes=read, remove=True) == b"kept\n"
    assert [one.name for one in client.volumes.list(filters={"label": f"t={name}"})] == [name]
    volume.remove()
    with pytest.raises(docker.errors.NotFound):
        client.volumes.get(name)


def test_networks(client: docker.DockerClient, name: str) -> None:
    """networks: create, names of containers"""
    network = client.networks.create(name, driver="bridge", labels={"t": name})
    try:
        server = client.containers.run("busybox", ["sleep", "60"], network=name, name=name, detach=True)
        output = client.containers.run("busybox", ["nslookup", name], network=name, remove=True)
        network.reload()
        assert server.id in network.attrs["Containers"]
        server.reload()
        address = server.attrs["NetworkSettings"]["Networks"][name]["IPAddress"]
        assert address.encode() in output
        server.remove(force=True)
    finally:
        network.remove()


def test_connect(client: docker.DockerClient, sleeper: Container) -> None:
    """networks: connect and disconnect a running container"""
    network = client.networks.create(f"{sleeper.name}-n")
    try:
        network.connect(sleeper, aliases=["other"])
        sleeper.reload()
        assert network.name in sleeper.attrs["NetworkSettings"]["Networks"]
        network.disconnect(sleeper)
    finally:
        network.remove()


def test_ports(client: docker.DockerClient, name: str) -> None:
    """published ports"""
    program = ["sh", "-c", "while :; do echo served | nc -l -p 80; done"]
    made = client.containers.run("busybox", program, name=name, ports={"80/tcp": None}, detach=True)
    made.reload()
    assert first_bytes(int(made.ports["80/tcp"][0]["HostPort"])) == b"served\n"


def test_events(client: docker.DockerClient, name: str) -> None:
    """events with filters"""
    seen: list[str] = []
    stream = client.events(decode=True, filters={"container": name})

    def follow() -> None:
        for event in stream:
            seen.append(event["Action"])
            if event["Action"] == "destroy":
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    client.containers.run("busybox", ["true"], name=name, remove=True)
    thread.join(10)
    stream.close()
    assert [action for action in seen if action in ("create", "start", "die", "destroy")] == [
        *("create", "start", "die", "destroy")
    ]


def test_files(client: docker.DockerClient, sleeper: Container) -> None:
    """cp: put_archive and get_archive"""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("hello")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"hello"))
    assert sleeper.put_archive("/tmp", buffer.getvalue())
    assert sleeper.exec_run(["cat", "/tmp/hello"]).output == b"hello"
    pieces, stat = sleeper.get_archive("/tmp/hello")
    assert stat["name"] == "hello"
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        assert tar.getnames() == ["hello"]


def test_commit(client: docker.DockerClient, sleeper: Container) -> None:
    """commit, diff, export"""
    sleeper.exec_run(["touch", "/new"])
    assert {"Path": "/new", "Kind": 1} in sleeper.diff()
    image = sleeper.commit("docker-py-commit", "latest")
    client.images.remove(image.id)
    assert b"".join(sleeper.export())


def test_build(client: docker.DockerClient) -> None:
    """build"""
    image, log = client.images.build(
        fileobj=io.BytesIO(b"FROM busybox\nRUN echo built >/x\n"), tag="docker-py-build"
    )
    assert any("Successfully built" in line.get("stream", "") for line in log)
    assert client.containers.run(image.id, ["cat", "/x"], remove=True) == b"built\n"
    client.images.remove("docker-py-build", force=True)


def test_prune(client: docker.DockerClient, name: str) -> None:
    """prune"""
    client.containers.create("busybox", name=name, labels={"t": name})
    assert len(client.containers.prune({"label": f"t={name}"})["ContainersDeleted"]) == 1
    client.volumes.prune({"label": f"t={name}"})
    client.networks.prune({"label": f"t={name}"})
    client.images.prune({"dangling": True})

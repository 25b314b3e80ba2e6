# SPDX-License-Identifier: Apache-2.0
"""aiodocker, the asyncio client."""

from __future__ import annotations

import asyncio
import io
import tarfile
import time
from collections.abc import AsyncIterator
from importlib.metadata import version

import aiodocker
import pytest
from aiodocker.containers import DockerContainer

from tests.support.daemon import LIB

pytestmark = [pytest.mark.anyio, pytest.mark.client(f"aiodocker {version('aiodocker')}")]


@pytest.fixture
async def client(docker_host: str) -> AsyncIterator[aiodocker.Docker]:
    async with aiodocker.Docker() as made:
        yield made


@pytest.fixture
async def sleeper(client: aiodocker.Docker, name: str) -> DockerContainer:
    return await client.containers.run({"Image": "busybox", "Cmd": ["sleep", "600"]}, name=name)


async def test_system(client: aiodocker.Docker) -> None:
    """version, info"""
    assert (await client.version())["Os"] == "linux"
    assert (await client.system.info())["OSType"] == "linux"


async def test_run(client: aiodocker.Docker, name: str) -> None:
    """run, wait, logs, remove"""
    made = await client.containers.create_or_replace(name, {"Image": "busybox", "Cmd": ["echo", "hi"]})
    await made.start()
    assert (await made.wait())["StatusCode"] == 0
    assert await made.log(stdout=True) == ["hi\n"]
    await made.delete()
    with pytest.raises(aiodocker.DockerError) as gone:
        await made.show()
    assert (gone.value.status, gone.value.message) == (404, f"No such container: {made.id}")


async def test_life(sleeper: DockerContainer) -> None:
    """pause, restart, rename, kill, stop"""
    await sleeper.pause()
    assert (await sleeper.show())["State"]["Paused"]
    await sleeper.unpause()
    await sleeper.restart(t=0)
    await sleeper.rename("aiodocker-renamed")
    await sleeper.kill()
    assert (await sleeper.wait())["StatusCode"] == 137
    await sleeper.delete(force=True)


async def test_following_logs(client: aiodocker.Docker, name: str) -> None:
    """logs that follow"""
    program = ["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done"]
    made = await client.containers.run({"Image": "busybox", "Cmd": program}, name=name)
    lines = [line async for line in made.log(stdout=True, follow=True)]
    assert "".join(lines) == "1\n2\n3\n"


async def test_exec(sleeper: DockerContainer) -> None:
    """exec with input"""
    made = await sleeper.exec(["cat"], stdin=True)
    async with made.start(detach=False) as stream:
        await stream.write_in(b"through\n")
        message = await stream.read_out()
    assert message is not None
    assert message.data == b"through\n"
    ended = await sleeper.exec(["sh", "-c", "exit 4"])
    await ended.start(detach=True)
    while (await ended.inspect())["ExitCode"] is None:  # noqa: ASYNC110 (a detached exec has no event)
        await asyncio.sleep(0.02)
    assert (await ended.inspect())["ExitCode"] == 4


async def test_attach(client: aiodocker.Docker, name: str) -> None:
    """attach"""
    config = {"Image": "busybox", "Cmd": ["cat"], "OpenStdin": True, "AttachStdin": True}
    made = await client.containers.create(config, name=name)
    async with made.attach(stdin=True, stdout=True, stderr=True) as stream:
        await made.start()
        await stream.write_in(b"hello\n")
        message = await stream.read_out()
    assert message is not None
    assert (message.stream, message.data) == (1, b"hello\n")


async def test_stats(sleeper: DockerContainer) -> None:
    """stats"""
    (once,) = await sleeper.stats(stream=False)
    assert once["pids_stats"]["current"] >= 1
    async for one in sleeper.stats():
        assert one["id"] == sleeper.id
        break


async def test_events(client: aiodocker.Docker, name: str) -> None:
    """events"""
    # From the past, because subscribe() does not wait for the daemon's answer.
    subscriber = client.events.subscribe(since=str(int(time.time()) - 1))
    made = await client.containers.run({"Image": "busybox", "Cmd": ["true"]}, name=name)
    seen = []
    while "die" not in seen:
        event = await asyncio.wait_for(subscriber.get(), 20)
        if event is not None and event["Actor"]["ID"] == made.id:
            seen.append(event["Action"])
    assert seen[0] == "create"
    await client.events.stop()


async def test_images(client: aiodocker.Docker) -> None:
    """images: list, tag, inspect, history, load, save, remove"""
    assert await client.images.tag("busybox", "aiodocker-test", tag="one")
    assert (await client.images.inspect("aiodocker-test:one"))["Os"] == "linux"
    assert await client.images.history("aiodocker-test:one")
    async with client.images.export_image("aiodocker-test:one") as exported:
        archive = await exported.read()
    await client.images.delete("aiodocker-test:one")
    lines = [line async for line in client.images.import_image(archive, stream=True)]
    assert any("aiodocker-test:one" in line.get("stream", "") for line in lines)
    await client.images.delete("aiodocker-test:one")
    await client.images.import_image((LIB / "busybox.tar").read_bytes())
    with pytest.raises(aiodocker.DockerError) as missing:
        await client.images.inspect("nothing:here")
    assert missing.value.status == 404


async def test_volumes(client: aiodocker.Docker, name: str) -> None:
    """volumes"""
    volume = await client.volumes.create({"Name": name, "Labels": {"t": name}})
    assert (await volume.show())["Labels"] == {"t": name}
    listed = await client.volumes.list(filters={"label": [f"t={name}"]})
    assert [one["Name"] for one in listed["Volumes"]] == [name]
    await volume.delete()


async def test_networks(client: aiodocker.Docker, name: str) -> None:
    """networks"""
    network = await client.networks.create({"Name": name})
    assert (await network.show())["Driver"] == "bridge"
    assert name in [one["Name"] for one in await client.networks.list()]
    assert await network.delete()


async def test_connect(client: aiodocker.Docker, sleeper: DockerContainer, name: str) -> None:
    """networks: connect and disconnect a running container"""
    network = await client.networks.create({"Name": name})
    try:
        await network.connect({"Container": sleeper.id})
        assert name in (await sleeper.show())["NetworkSettings"]["Networks"]
        await network.disconnect({"Container": sleeper.id})
    finally:
        await network.delete()


async def test_files(sleeper: DockerContainer) -> None:
    """cp: put_archive and get_archive"""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("hello")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"hello"))
    await sleeper.put_archive("/tmp", buffer.getvalue())
    with await sleeper.get_archive("/tmp/hello") as tar:
        assert tar.getnames() == ["hello"]


async def test_commit(client: aiodocker.Docker, sleeper: DockerContainer) -> None:
    """commit"""
    made = await sleeper.commit(repository="aiodocker-commit", tag="latest")
    await client.images.delete(made["Id"], force=True)


async def test_build(client: aiodocker.Docker) -> None:
    """build"""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        content = b"FROM busybox\nRUN echo built >/x\n"
        member = tarfile.TarInfo("Dockerfile")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    buffer.seek(0)
    await client.images.build(fileobj=buffer, encoding="gzip", tag="aiodocker-build")
    await client.images.delete("aiodocker-build", force=True)

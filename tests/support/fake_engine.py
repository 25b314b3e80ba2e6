# SPDX-License-Identifier: Apache-2.0
"""An engine that remembers what it was asked and answers from memory; no process, no disk, no network."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any, BinaryIO

import anyio

from proa.engine.building.builds import CacheRecord
from proa.engine.building.request import BuildRequest, Room, Tell
from proa.engine.commits import CommitQuery
from proa.engine.container import Container, MountPoint, State
from proa.engine.containers import AttachQuery
from proa.engine.creation import Created
from proa.engine.events import Event
from proa.engine.execs import Exec, ExecRequest
from proa.engine.filters import Filters
from proa.engine.logs import LogQuery, LogRecord
from proa.engine.progress import OnProgress
from proa.engine.registries import Distribution
from proa.engine.system import DiskUsage, Info, Version
from proa.engine.unit import Waiter
from proa.engine.updates import UpdateRequest
from proa.model.config import ContainerConfig, Empty, EndpointSettings, HostConfig, NetworkingConfig
from proa.model.errors import (
    CommandFailed,
    Internal,
    InvalidParameter,
    NoSuchContainer,
    NoSuchExec,
    NoSuchImage,
    NoSuchNetwork,
    NoSuchVolume,
    NotFound,
    StartFailed,
    Unauthenticated,
)
from proa.model.ids import ContainerId, Digest, ExecId, NetworkId
from proa.model.image import HistoryEntry, Image
from proa.model.network import Endpoint, Network, NetworkRequest, PublishedPort
from proa.model.registry import Credentials, Descriptor, LoggedIn, SearchResult
from proa.model.task import NetworkCounters, ProcessTable, TaskStats
from proa.model.volume import Volume
from proa.runtime.seam import Stdio, StreamId
from proa.storage.files.trees import PathStat

NS = 1_000_000_000
BORN_NS = 1_700_000_000 * NS + 123_456_789
ID = ContainerId("4f" * 32)
NETWORK_ID = NetworkId("ab" * 32)
IMAGE_ID = Digest("sha256:" + "cd" * 32)
DIFF_ID = Digest("sha256:" + "ef" * 32)
EXEC_ID = ExecId("e0" * 32)

IMAGE = Image(
    id=IMAGE_ID,
    layers=(DIFF_ID,),
    config=ContainerConfig(cmd=["sh"], env=["PATH=/bin"], labels={"a": "b"}),
    architecture="amd64",
    os="linux",
    size=4_000_000,
    created="2023-11-14T22:13:20Z",
    references=("busybox:latest",),
    history=(HistoryEntry(created_by="ADD busybox"),),
)
NETWORK = Network(
    id=NETWORK_ID,
    name="bridge",
    driver="bridge",
    created_at_ns=BORN_NS,
    subnet=IPv4Network("172.17.0.0/16"),
    gateway=IPv4Address("172.17.0.1"),
    bridge="proa0",
)
ENDPOINT = Endpoint(
    container_id=ID,
    network_id=NETWORK_ID,
    endpoint_id="ee" * 32,
    name="web",
    mac="02:42:ac:11:00:02",
    address=IPv4Interface("172.17.0.2/16"),
    gateway=IPv4Address("172.17.0.1"),
)
VOLUME = Volume(name="data", mountpoint=Path("/var/lib/proa/volumes/data"), created_at_ns=BORN_NS)
STATS = TaskStats(
    read_at_ns=BORN_NS,
    cpu_total_ns=5 * NS,
    cpu_user_ns=3 * NS,
    cpu_kernel_ns=2 * NS,
    online_cpus=2,
    system_cpu_ns=100 * NS,
    memory_usage=1_000_000,
    memory_limit=64_000_000,
    memory_stats={"inactive_file": 1000},
    pids=3,
    read_bytes=10,
    write_bytes=20,
    networks={"eth0": NetworkCounters(rx_bytes=1, tx_bytes=2)},
)


def make_container(**changes: Any) -> Container:  # Any: fields of Container
    """Return a running container with a port, a volume and an address."""
    base = Container(
        id=ID,
        name="web",
        created_at_ns=BORN_NS,
        image_id=IMAGE_ID,
        image_ref="busybox",
        layers=(DIFF_ID,),
        config=ContainerConfig(
            hostname="4f4f4f4f4f4f",
            image="busybox",
            cmd=["sh", "-c", "echo hello"],
            exposed_ports={"80/tcp": Empty(), "443/tcp": Empty()},
            labels={"tier": "front"},
        ),
        host_config=HostConfig(network_mode="bridge"),
        networking={"bridge": EndpointSettings(network_id=NETWORK_ID)},
        path="sh",
        args=("-c", "echo hello"),
        runtime="crun",
        mounts=(
            MountPoint(type="volume", name="data", source="/v/data", destination="/data", driver="local"),
            MountPoint(type="bind", source="/etc", destination="/host", rw=False, mode="ro"),
        ),
        state=State.RUNNING,
        pid=42,
        started_at_ns=BORN_NS,
        endpoints=(ENDPOINT,),
        ports=(PublishedPort(container_port=80, protocol="tcp", host_port=8080),),
        log_path="/var/lib/proa/containers/x/log",
    )
    return replace(base, **changes)


class FakeStdio:
    """Streams that a test writes and reads: ``out`` is what the process says, ``typed`` what it heard."""

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[tuple[StreamId, bytes]](100)
        self.typed = b""
        self.got_eof = anyio.Event()
        self.closed = anyio.Event()
        self.is_deaf = False

    def say(self, data: bytes, stream: StreamId = StreamId.STDOUT) -> None:
        self._send.send_nowait((stream, data))

    def end(self) -> None:
        self._send.close()

    async def receive(self) -> tuple[StreamId, bytes]:
        return await self._receive.receive()

    async def send(self, data: bytes) -> None:
        if self.is_deaf:
            raise anyio.BrokenResourceError
        self.typed += data

    async def send_eof(self) -> None:
        self.got_eof.set()

    async def aclose(self) -> None:
        self.closed.set()


@dataclass
class FakeContainers:
    """Holds records by name. ``asked`` lists the calls with their arguments."""

    records: dict[str, Container] = field(default_factory=lambda: {"web": make_container()})
    asked: list[tuple[Any, ...]] = field(default_factory=list)  # Any: arguments of all kinds
    stdio: FakeStdio = field(default_factory=FakeStdio)
    log: list[LogRecord] = field(default_factory=list)
    waiting: Waiter = field(default_factory=Waiter)
    readings: list[TaskStats | None] = field(default_factory=list)
    fails: Exception | None = None

    def get(self, ref: str) -> Container:
        for one in self.records.values():
            if ref in (one.name, one.id) or one.id.startswith(ref):
                return one
        raise NoSuchContainer(ref)

    async def create(
        self,
        name: str | None,
        config: ContainerConfig,
        host_config: HostConfig,
        networking: NetworkingConfig,
        platform: str,
    ) -> Created:
        self._note("create", name, config, host_config, networking, platform)
        return Created(id=ID, warnings=("mind the gap",))

    async def list(self, *, all: bool, limit: int, filters: Filters, size: bool) -> Sequence[Container]:
        self._note("list", all, limit, dict(filters), size)
        return list(self.records.values())

    async def sizes(self, container: Container) -> tuple[int, int]:
        return 12, 4_000_012

    def links(self, container: Container) -> Sequence[str]:
        return ()

    def aliases(self, container: Container) -> Sequence[str]:
        return ()

    async def start(self, ref: str) -> None:
        self._note("start", self.get(ref).name)

    async def stop(self, ref: str, *, signal: str | None, timeout_s: int | None) -> None:
        self._note("stop", self.get(ref).name, signal, timeout_s)

    async def restart(self, ref: str, *, signal: str | None, timeout_s: int | None) -> None:
        self._note("restart", self.get(ref).name, signal, timeout_s)

    async def kill(self, ref: str, signal: str) -> None:
        self._note("kill", self.get(ref).name, signal)

    async def pause(self, ref: str) -> None:
        self._note("pause", self.get(ref).name)

    async def unpause(self, ref: str) -> None:
        self._note("unpause", self.get(ref).name)

    async def rename(self, ref: str, name: str) -> None:
        self._note("rename", self.get(ref).name, name)

    async def update(self, ref: str, request: UpdateRequest) -> Sequence[str]:
        self._note("update", self.get(ref).name, request)
        return []

    async def remove(self, ref: str, *, force: bool, volumes: bool, link: bool) -> None:
        self._note("remove", self.get(ref).name, force, volumes, link)

    async def prune(self, filters: Filters) -> tuple[Sequence[str], int]:
        self._note("prune", dict(filters))
        return [ID], 12

    async def top(self, ref: str, ps_args: str) -> ProcessTable:
        self._note("top", self.get(ref).name, ps_args)
        return ProcessTable(titles=("PID", "CMD"), rows=(("1", "sh"),))

    async def resize(self, ref: str, rows: int, columns: int) -> None:
        self._note("resize", self.get(ref).name, rows, columns)

    @asynccontextmanager
    async def waiter(self, ref: str, condition: str) -> AsyncIterator[Waiter]:
        self._note("wait", self.get(ref).name, condition)
        yield self.waiting

    async def logs(self, ref: str, query: LogQuery) -> AsyncIterator[LogRecord]:
        self._note("logs", self.get(ref).name, query)
        if not query.stdout and not query.stderr:
            raise InvalidParameter("Bad parameters: you must choose at least one stream")
        for record in self.log:
            yield record
        if query.follow:
            await anyio.sleep_forever()

    async def attach(self, ref: str, query: AttachQuery) -> Stdio:
        self._note("attach", self.get(ref).name, query)
        return self.stdio

    def tell_detached(self, ref: str) -> None:
        self._note("detached", self.get(ref).name)

    async def stats(self, ref: str) -> TaskStats | None:
        self.get(ref)
        if self.readings:
            return self.readings.pop(0)
        raise NoSuchContainer(ref)

    def _note(self, *call: Any) -> None:
        self.asked.append(call)
        if self.fails is not None:
            raise self.fails


@dataclass
class FakeExecs:
    """One exec, whose program exists unless ``fails`` says otherwise."""

    one: Exec = field(
        default_factory=lambda: Exec(
            id=EXEC_ID, container_id=ID, request=ExecRequest(cmd=("ls", "-l"), attach_stdout=True)
        )
    )
    stdio: FakeStdio = field(default_factory=FakeStdio)
    asked: list[tuple[Any, ...]] = field(default_factory=list)  # Any: arguments of all kinds
    fails: StartFailed | None = None

    def get(self, exec_id: str) -> Exec:
        if exec_id != self.one.id:
            raise NoSuchExec(exec_id)
        return self.one

    def check_startable(self, exec_id: str) -> Exec:
        return self.get(exec_id)

    def ids_of(self, container_id: ContainerId) -> Sequence[ExecId]:
        return [self.one.id]

    async def create(self, ref: str, request: ExecRequest) -> ExecId:
        self.asked.append(("create", ref, request))
        return self.one.id

    async def start(
        self, exec_id: str, *, detach: bool, tty: bool | None, console_size: tuple[int, int] | None
    ) -> Stdio | None:
        self.asked.append(("start", exec_id, detach, tty, console_size))
        if self.fails is not None:
            raise self.fails
        return None if detach else self.stdio

    def tell_detached(self, exec_id: str) -> None:
        self.asked.append(("detached", self.get(exec_id).id))

    async def resize(self, exec_id: str, rows: int, columns: int) -> None:
        self.get(exec_id)
        self.asked.append(("resize", rows, columns))


@dataclass
class FakeImages:
    """One image, under one name."""

    asked: list[tuple[Any, ...]] = field(default_factory=list)  # Any: arguments of all kinds
    loaded: bytes = b""

    def get(self, ref: str) -> Image:
        if ref not in ("busybox", "busybox:latest", IMAGE_ID):
            raise NoSuchImage(ref)
        return IMAGE

    async def list(self, *, all: bool, filters: Filters) -> Sequence[Image]:
        return [IMAGE]

    def history(self, ref: str) -> Sequence[Mapping[str, object]]:
        self.get(ref)
        return [
            {
                "Id": IMAGE_ID,
                "Created": 0,
                "CreatedBy": "ADD busybox",
                "Tags": ["busybox:latest"],
                "Size": 1,
                "Comment": "",
            }
        ]

    async def load(
        self, stream: AsyncIterator[bytes], *, on_progress: Callable[[Mapping[str, object]], None]
    ) -> Sequence[str]:
        async for chunk in stream:
            self.loaded += chunk
            if chunk.startswith(b"broken"):
                raise InvalidParameter("invalid archive")
        return ["Loaded image: busybox:latest"]

    async def save(self, refs: Sequence[str]) -> AsyncIterator[bytes]:
        for ref in refs:
            self.get(ref)
            yield f"tar of {ref};".encode()

    async def import_(
        self,
        stream: AsyncIterator[bytes],
        *,
        repository: str,
        tag: str,
        message: str,
        changes: Sequence[str],
        platform: str,
    ) -> Digest:
        async for chunk in stream:
            self.loaded += chunk
        self.asked.append(("import", repository, tag, message, list(changes), platform))
        return IMAGE_ID

    async def tag(self, source: str, repository: str, tag: str) -> None:
        self.asked.append(("tag", source, repository, tag))

    async def remove(self, ref: str, *, force: bool, no_prune: bool) -> Sequence[Mapping[str, str]]:
        self.asked.append(("remove", ref, force, no_prune))
        return [{"Untagged": ref}, {"Deleted": self.get(ref).id}]

    async def prune(self, filters: Filters) -> tuple[Sequence[Mapping[str, str]], int]:
        return [{"Deleted": IMAGE_ID}], 5


@dataclass
class FakeVolumes:
    """One volume."""

    asked: list[tuple[Any, ...]] = field(default_factory=list)  # Any: arguments of all kinds

    async def create(
        self, name: str | None, *, driver: str, labels: Mapping[str, str], options: Mapping[str, str]
    ) -> Volume:
        self.asked.append(("create", name, driver, dict(labels), dict(options)))
        return VOLUME

    def get(self, name: str) -> Volume:
        if name != VOLUME.name:
            raise NoSuchVolume(name)
        return VOLUME

    async def list(self, filters: Filters) -> Sequence[Volume]:
        self.asked.append(("list", dict(filters)))
        return [VOLUME]

    async def remove(self, name: str, *, force: bool) -> None:
        self.asked.append(("remove", self.get(name).name, force))

    async def prune(self, filters: Filters) -> tuple[Sequence[str], int]:
        self.asked.append(("prune", dict(filters)))
        return ["data"], 7


@dataclass
class FakeNetworks:
    """The default bridge with one container."""

    asked: list[tuple[Any, ...]] = field(default_factory=list)  # Any: arguments of all kinds

    async def create(self, request: NetworkRequest) -> Network:
        self.asked.append(("create", request))
        return NETWORK

    def get(self, ref: str) -> Network:
        if ref != NETWORK.name and not NETWORK.id.startswith(ref):
            raise NoSuchNetwork(ref)
        return NETWORK

    async def list(self, filters: Filters) -> Sequence[Network]:
        return [NETWORK]

    def endpoints(self, network: Network) -> Sequence[Endpoint]:
        return [ENDPOINT]

    async def remove(self, ref: str) -> None:
        self.asked.append(("remove", self.get(ref).name))

    async def prune(self, filters: Filters) -> Sequence[str]:
        return ["old"]

    async def connect(self, ref: str, container_ref: str, settings: EndpointSettings) -> None:
        self.asked.append(("connect", self.get(ref).name, container_ref, settings))

    async def disconnect(self, ref: str, container_ref: str, *, force: bool) -> None:
        self.asked.append(("disconnect", self.get(ref).name, container_ref, force))


@dataclass
class FakeRegistries:
    """A registry with busybox, and nothing else."""

    asked: list[tuple[Any, ...]] = field(default_factory=list)  # Any: arguments of all kinds

    async def pull(
        self, name: str, tag: str, *, platform: str, credentials: Credentials, on_progress: OnProgress
    ) -> None:
        self.asked.append(("pull", name, tag, platform, credentials))
        if name == "nothing":
            raise NotFound(f"manifest for {name}:{tag} not found: manifest unknown: manifest unknown")
        on_progress({"status": "Pulling from library/busybox", "id": tag})
        on_progress({"status": "Pulling fs layer", "progressDetail": {}, "id": "abc"})
        for current in (1, 2, 3):
            on_progress(
                {"status": "Downloading", "progressDetail": {"current": current, "total": 3}, "id": "abc"}
            )
        if name == "broken":
            raise Internal("unexpected EOF")

    async def push(
        self, name: str, tag: str, *, platform: str, credentials: Credentials, on_progress: OnProgress
    ) -> None:
        self.asked.append(("push", name, tag, platform, credentials))
        on_progress({"progressDetail": {}, "aux": {"Tag": tag, "Digest": IMAGE_ID, "Size": 3}})

    async def log_in(self, credentials: Credentials) -> LoggedIn:
        self.asked.append(("log_in", credentials))
        if credentials.password != "right":
            raise Unauthenticated("login attempt to https://r/v2/ failed with status: 401 Unauthorized")
        return LoggedIn(status="Login Succeeded", identity_token="token")

    async def search(
        self, term: str, *, limit: int | None, filters: Filters, credentials: Credentials
    ) -> Sequence[SearchResult]:
        self.asked.append(("search", term, limit, dict(filters)))
        return [SearchResult(name="busybox", description="a box", stars=7, is_official=True)]

    async def inspect(self, name: str, credentials: Credentials) -> Distribution:
        self.asked.append(("inspect", name))
        return Distribution(
            descriptor=Descriptor(media_type="application/json", digest=IMAGE_ID, size=3),
            platforms=[("linux", "amd64", "")],
        )


@dataclass
class FakeSystem:
    """Answers about an engine with one container; events come from ``send``."""

    past: list[Event] = field(default_factory=list)

    async def info(self) -> Info:
        return Info(
            engine_id="PROA",
            name="host",
            version="0.1.0",
            containers={**dict.fromkeys(State, 0), State.RUNNING: 1, State.EXITED: 2},
            images=1,
            runtimes=["crun", "vm"],
            default_runtime="crun",
            default_isolation="container",
            missing_runtimes={"runc": "not installed"},
            data_root=Path("/var/lib/proa"),
            cgroup_version="2",
            kernel_version="6.18",
            operating_system="Debian",
            os_version="12",
            architecture="x86_64",
            cpus=2,
            memory_bytes=4_000_000_000,
            accelerator="tcg",
            accelerator_reason="KVM does not boot a guest",
            tools={"crun": "1.8"},
            security_options=["name=seccomp,profile=builtin"],
            warnings=[],
            system_time_ns=BORN_NS,
            event_listeners=0,
            open_files=10,
        )

    async def version(self) -> Version:
        return Version(
            version="0.1.0",
            kernel_version="6.18",
            architecture="x86_64",
            python_version="3.11",
            tools={"crun": "1.8"},
        )

    async def disk_usage(self) -> DiskUsage:
        return DiskUsage(
            layers_bytes=4_000_000,
            images=[(IMAGE, 0, 1)],
            containers=[(make_container(), 12, 4_000_012)],
            volumes=[(VOLUME, 100, 1)],
            build_cache=[
                CacheRecord(
                    id="step",
                    type="regular",
                    description="RUN true",
                    size_bytes=7,
                    created_at_ns=BORN_NS,
                    used_at_ns=BORN_NS,
                    uses=2,
                )
            ],
        )

    async def events(self, *, since_ns: int, until_ns: int, filters: Filters) -> AsyncIterator[Event]:
        if "colour" in filters:
            raise InvalidParameter("invalid filter 'colour'")
        for event in self.past:
            yield event
        if not until_ns:
            await anyio.sleep_forever()


@dataclass
class FakeFiles:
    """Files of the container "web": one, and what was unpacked is kept."""

    asked: list[tuple[Any, ...]] = field(default_factory=list)
    unpacked: bytes = b""
    pieces: tuple[bytes, ...] = (b"some ", b"tar")

    async def stat(self, ref: str, path: str) -> PathStat:
        return self._found(ref, path)

    @asynccontextmanager
    async def open_archive(self, ref: str, path: str) -> AsyncIterator[tuple[PathStat, AsyncIterator[bytes]]]:
        yield self._found(ref, path), self._stream()

    async def put_archive(
        self, ref: str, path: str, stream: AsyncIterator[bytes], *, strict: bool, as_user: bool
    ) -> None:
        self.asked.append(("put", ref, path, strict, as_user))
        self._found(ref, path)
        self.unpacked = b"".join([piece async for piece in stream])

    @asynccontextmanager
    async def open_changes(self, ref: str) -> AsyncIterator[AsyncIterator[tuple[int, str]]]:
        async def changes() -> AsyncIterator[tuple[int, str]]:
            for change in ((0, "/etc"), (1, "/etc/new"), (2, "/gone")):
                yield change

        yield changes()

    @asynccontextmanager
    async def open_export(self, ref: str) -> AsyncIterator[AsyncIterator[bytes]]:
        if ref != "web":
            raise NoSuchContainer(ref)
        yield self._stream()

    async def _stream(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece

    def _found(self, ref: str, path: str) -> PathStat:
        if path != "/etc/motd":
            raise NotFound(f"Could not find the file {path} in container {ref}")
        return PathStat(name="motd", size=8, mode=0o644, mtime_ns=BORN_NS, target="")


@dataclass
class FakeCommits:
    """Remembers what was committed."""

    asked: list[tuple[str, CommitQuery]] = field(default_factory=list)

    async def commit(self, ref: str, query: CommitQuery) -> Digest:
        self.asked.append((ref, query))
        return IMAGE_ID


@dataclass(slots=True)
class FakeBuilds:
    """Takes every context, says one step, and has built IMAGE; a target called "bad" fails."""

    requests: list[tuple[BuildRequest, bytes]] = field(default_factory=list)
    pruned: list[tuple[Filters, bool, int]] = field(default_factory=list)

    async def build(
        self, request: BuildRequest, context: AsyncIterator[bytes], tell: Tell, room: Room
    ) -> Digest:
        self.requests.append((request, b"".join([piece async for piece in context])))
        if request.target == "early":
            raise InvalidParameter("dockerfile parse error on line 2: unknown instruction: FOO")
        tell({"stream": "Step 1/1 : FROM busybox\n"})
        if request.target == "bad":
            raise CommandFailed("/bin/sh -c false", 3)
        tell({"aux": {"ID": IMAGE_ID}})
        return IMAGE_ID

    async def prune(self, filters: Filters, *, all: bool, keep_bytes: int = 0) -> tuple[list[str], int]:
        self.pruned.append((filters, all, keep_bytes))
        return ["step"], 42

    def knows_context(self, key: str) -> bool:
        return False

    def spool(self) -> BinaryIO:
        return io.BytesIO()

    @property
    def host_gateway(self) -> IPv4Address | None:
        return IPv4Address("10.0.0.1")

    async def records(self, filters: Filters | None = None) -> list[CacheRecord]:
        record = CacheRecord(
            id="step", type="regular", description="RUN", size_bytes=42, created_at_ns=1, used_at_ns=2, uses=1
        )
        return [record]


@dataclass(slots=True)
class FakeEngine:
    """The whole."""

    containers: FakeContainers = field(default_factory=FakeContainers)
    execs: FakeExecs = field(default_factory=FakeExecs)
    files: FakeFiles = field(default_factory=FakeFiles)
    commits: FakeCommits = field(default_factory=FakeCommits)
    images: FakeImages = field(default_factory=FakeImages)
    volumes: FakeVolumes = field(default_factory=FakeVolumes)
    networks: FakeNetworks = field(default_factory=FakeNetworks)
    registries: FakeRegistries = field(default_factory=FakeRegistries)
    builds: FakeBuilds = field(default_factory=FakeBuilds)
    system: FakeSystem = field(default_factory=FakeSystem)

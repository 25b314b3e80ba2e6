# SPDX-License-Identifier: Apache-2.0
"""What the engine says of itself and its host. Source: Engine API, System."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from proa import __version__
from proa.engine.building.builds import Builds, CacheRecord
from proa.engine.container import Container, State
from proa.engine.events import Event, EventBus
from proa.engine.filters import Filters, check_filters
from proa.engine.images import Images
from proa.engine.isolation import Hulls
from proa.engine.log_files import used_bytes
from proa.engine.queries import Queries
from proa.engine.registries import Registries
from proa.engine.registry import Registry
from proa.engine.volumes import Volumes
from proa.model.config import LogConfig
from proa.model.image import Image
from proa.model.registry import RegistrySettings
from proa.model.volume import Volume
from proa.shipping import drivers

_ACTOR_FILTERS = frozenset(("config container daemon network node plugin secret service volume").split())
_EVENT_FILTERS = _ACTOR_FILTERS | {"event", "image", "label", "scope", "type"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What was found out about the host when the daemon started.

    :ivar accelerator: "kvm" or "tcg", and ``accelerator_reason`` why; "" when there is no VM hull.
    :ivar cgroup_version: "1" or "2"; ``cgroup_driver`` is always cgroupfs.
    :ivar tools: versions of the programs proa runs, by name.
    :ivar list_devices: names those that are described in ``cdi_spec_dirs`` at the moment.
    :ivar default_log: of containers that name no driver; told by the daemon's command line.
    """

    engine_id: str
    data_root: Path
    cgroup_version: str
    accelerator: str = ""
    accelerator_reason: str = ""
    tools: Mapping[str, str] | None = None
    security_options: Sequence[str] = ()
    warnings: Sequence[str] = ()
    cdi_spec_dirs: Sequence[Path] = ()
    list_devices: Callable[[], Sequence[str]] = tuple
    default_log: LogConfig = field(default_factory=lambda: LogConfig(type="json-file"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """GET /info, in our own words."""

    engine_id: str
    name: str
    version: str
    containers: Mapping[State, int]
    images: int
    runtimes: Sequence[str]
    default_runtime: str
    default_isolation: str
    missing_runtimes: Mapping[str, str]
    data_root: Path
    cgroup_version: str
    kernel_version: str
    operating_system: str
    os_version: str
    architecture: str
    cpus: int
    memory_bytes: int
    accelerator: str
    accelerator_reason: str
    tools: Mapping[str, str]
    security_options: Sequence[str]
    warnings: Sequence[str]
    system_time_ns: int
    event_listeners: int
    open_files: int
    cdi_spec_dirs: Sequence[Path] = ()
    devices: Sequence[str] = ()
    registries: RegistrySettings = field(default_factory=RegistrySettings)
    log_drivers: Sequence[str] = ()
    default_log_driver: str = ""
    proxies: Sequence[str] = ("", "", "")  # for http, for https, and the hosts that need none


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """GET /version, in our own words."""

    version: str
    kernel_version: str
    architecture: str
    python_version: str
    tools: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskUsage:
    """GET /system/df. Sizes are bytes.

    :ivar images: each with its own size that it shares with no other image, and its containers' number.
    :ivar containers: each with what it has written, its log too, and that plus its image.
    :ivar volumes: each with its bytes and its containers' number.
    """

    layers_bytes: int
    images: Sequence[tuple[Image, int, int]]
    containers: Sequence[tuple[Container, int, int]]
    volumes: Sequence[tuple[Volume, int, int]]
    build_cache: Sequence[CacheRecord]


class System:
    """Answers questions about the engine as a whole."""

    def __init__(
        self,
        *,
        registry: Registry,
        hulls: Hulls,
        images: Images,
        volumes: Volumes,
        builds: Builds,
        registries: Registries,
        queries: Queries,
        events: EventBus,
        facts: HostFacts,
    ) -> None:
        self._registry = registry
        self._hulls = hulls
        self._images = images
        self._volumes = volumes
        self._builds = builds
        self._registries = registries
        self._queries = queries
        self._events = events
        self._facts = facts

    async def info(self) -> Info:
        """Return what GET /info shows."""
        facts = self._facts
        counts = dict.fromkeys(State, 0)
        for container in self._registry:
            counts[container.state] += 1
        name, version = _os_release()
        return Info(
            engine_id=facts.engine_id,
            name=platform.node(),
            version=__version__,
            containers=counts,
            images=len(await self._images.list(all=True, filters={})),
            runtimes=sorted(self._hulls.runtimes),
            default_runtime=self._hulls.container_runtime,
            default_isolation=self._hulls.default_isolation,
            missing_runtimes=self._hulls.missing,
            data_root=facts.data_root,
            cgroup_version=facts.cgroup_version,
            kernel_version=platform.release(),
            operating_system=name,
            os_version=version,
            architecture=platform.machine(),
            cpus=os.cpu_count() or 1,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            accelerator=facts.accelerator,
            accelerator_reason=facts.accelerator_reason,
            tools=facts.tools or {},
            security_options=facts.security_options,
            warnings=facts.warnings,
            cdi_spec_dirs=facts.cdi_spec_dirs,
            devices=facts.list_devices(),
            system_time_ns=time.time_ns(),
            event_listeners=self._events.subscribers,
            registries=self._registries.settings,
            proxies=self._registries.proxies,
            log_drivers=("json-file", "local", "none", *drivers.available()),
            default_log_driver=facts.default_log.type,
            open_files=sum(1 for _ in Path("/proc/self/fd").iterdir()),
        )

    async def version(self) -> Version:
        """Return what GET /version shows."""
        return Version(
            version=__version__,
            kernel_version=platform.release(),
            architecture=platform.machine(),
            python_version=platform.python_version(),
            tools=self._facts.tools or {},
        )

    async def disk_usage(self) -> DiskUsage:
        """Measure what everything takes on disk."""
        usage = await self._images.disk_usage()
        containers = []
        for container in self._registry:
            written, whole = await self._queries.sizes(container)
            logged = used_bytes(Path(container.log_path))
            containers.append((container, written + logged, whole + logged))
        return DiskUsage(
            layers_bytes=usage.layers_bytes,
            images=[(image, shared, len(self._images.users_of(image.id))) for image, shared in usage.images],
            containers=containers,
            volumes=await self._volumes.usage(),
            build_cache=await self._builds.records(),
        )

    async def events(self, *, since_ns: int = 0, until_ns: int = 0, filters: Filters) -> AsyncIterator[Event]:
        """Yield events: those kept since ``since_ns``, then what comes, up to ``until_ns`` (0: no end)."""
        check_filters(filters, _EVENT_FILTERS)
        async with aclosing(self._all_events(since_ns, until_ns)) as events:
            async for event in events:
                if _matches(event, filters):
                    yield event

    async def _all_events(self, since_ns: int, until_ns: int) -> AsyncGenerator[Event, None]:
        with self._events.subscribe() as stream:
            if since_ns:
                for past in self._events.recent():
                    if past.time_ns >= since_ns and (not until_ns or past.time_ns <= until_ns):
                        yield past
            timeout = None if not until_ns else (until_ns - time.time_ns()) / 1e9
            deadline = None if timeout is None else anyio.current_time() + timeout
            while True:
                left = None if deadline is None else deadline - anyio.current_time()
                if left is not None and left <= 0:
                    return
                with anyio.move_on_after(left) as scope:
                    event = await stream.receive()
                if scope.cancelled_caught:
                    return
                yield event


def _matches(event: Event, filters: Filters) -> bool:
    name = event.attributes.get("name", "")
    image = event.attributes.get("image", "")
    by_actor = {
        kind: event.type == kind
        and any(wanted in (name, event.actor_id) or event.actor_id.startswith(wanted) for wanted in values)
        for kind, values in filters.items()
        if kind in _ACTOR_FILTERS
    }
    if "image" in filters:
        images = {event.actor_id, name} if event.type == "image" else {event.actor_id, image}
        images |= {_without_tag(one) for one in images}
        by_actor["image"] = not images.isdisjoint(filters["image"])
    return (
        all(by_actor.values())
        and (not filters.get("type") or event.type in filters["type"])
        and (not filters.get("scope") or event.scope in filters["scope"])
        and (
            not filters.get("event")
            or any(
                event.action == wanted or event.action.split(":")[0] == wanted for wanted in filters["event"]
            )
        )
        and all(
            key in event.attributes and (not separator or event.attributes[key] == value)
            for key, separator, value in (label.partition("=") for label in filters.get("label", ()))
        )
    )


def _without_tag(image: str) -> str:
    """Return the name of an image, by which ``docker events`` finds all its tags."""
    path, slash, last = image.rpartition("/")
    return f"{path}{slash}{last.partition(':')[0]}"


def _os_release() -> tuple[str, str]:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return "Linux", ""
    return release.get("PRETTY_NAME", "Linux"), release.get("VERSION_ID", "")

# SPDX-License-Identifier: Apache-2.0
"""POST /containers/create: checks a request whole, then makes the record and the volumes it needs.

Nothing is made before everything has been checked, options that the chosen hull refuses included.

Source: Engine API, ContainerCreate.
"""

from __future__ import annotations

import random
import re
import shlex
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from msgspec.structs import replace as replace_struct

from proa.engine import names, ports
from proa.engine.container import Container, MountPoint
from proa.engine.events import EventBus
from proa.engine.health import check_health_config, merge_check
from proa.engine.isolation import Hulls
from proa.engine.limits import parse_resources, parse_rlimits, parse_security
from proa.engine.links import parse_links
from proa.engine.log_options import check_log_config, merge_log_config
from proa.engine.mounts import check_bind_sources, parse_mounts, volume_requests
from proa.engine.networking import check_networking
from proa.engine.refusals import check_supported
from proa.engine.registry import Registry
from proa.engine.signals import parse_signal
from proa.engine.userns import UserNamespaces
from proa.image.images import Images
from proa.image.platform import Platform, parse_platform
from proa.model.config import ContainerConfig, HostConfig, LogConfig, NetworkingConfig, VolumeOptions
from proa.model.errors import InvalidParameter, NotFound
from proa.model.ids import ContainerId, new_id
from proa.model.image import Image
from proa.network.networks import Networks
from proa.storage.volumes import Volumes

_NAME = re.compile(r"/?[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_ENV_DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_RESTART_POLICIES = ("", "no", "always", "unless-stopped", "on-failure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """The answer to a create."""

    id: ContainerId
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """POST /containers/create, decoded. ``name`` None lets proa choose."""

    name: str | None
    config: ContainerConfig
    host: HostConfig
    networking: NetworkingConfig
    platform: str = ""  # that the image must be made for; "" for any


class Creation:
    """Makes containers. Knows images, volumes and networks, but starts nothing."""

    def __init__(
        self,
        *,
        registry: Registry,
        images: Images,
        volumes: Volumes,
        networks: Networks,
        hulls: Hulls,
        events: EventBus,
        containers_dir: Path,
        userns: UserNamespaces,
        default_log: LogConfig,
    ) -> None:
        self._registry = registry
        self._images = images
        self._volumes = volumes
        self._networks = networks
        self._hulls = hulls
        self._events = events
        self._containers_dir = containers_dir
        self._userns = userns
        self._default_log = default_log

    async def create(self, request: CreateRequest) -> Created:
        """Check the request and make the container.

        Raises InvalidParameter, NoSuchImage, NameInUse, FeatureMissing; then nothing is left.
        """
        name = self._choose_name(request.name)
        runtime = self._hulls.choose(request.host)
        if not request.config.image:
            raise InvalidParameter("no image specified")
        image = self._images.get(request.config.image)
        _check_platform(image, request)
        check_supported(request.host)
        config = merge_config(request.config, image.config)
        host = _normalise(
            request.host, without_network=config.network_disabled, default_log=self._default_log
        )
        argv = command_line(config)
        check_config(config, host)
        check_health_config(config, host)
        with _missing_is_invalid():
            networking = check_networking(config, host, request.networking, self._networks)
            points = self._with_images(parse_mounts(config, host, self._registry.get))
            links = parse_links(host, self._registry.get)
        warnings = self._hulls.judge(runtime, host, points)
        if host.network_mode.startswith("container:"):
            with _missing_is_invalid():
                other = self._registry.get(host.network_mode.removeprefix("container:"))
            self._hulls.check_joined(runtime, host, other)
        maps_ids = "HostConfig.UsernsMode" not in self._hulls[runtime].features.refused
        with _missing_is_invalid():
            self._userns.check(host, self._registry.get, is_able=maps_ids)
        self._hulls.check_endpoints(runtime, networking.values())
        for network in networking:
            self._hulls.check_network(runtime, self._networks.get(network))
        self._check_files(host)
        check_bind_sources(points, host, self._userns.remap if maps_ids and not host.userns_mode else None)
        container_id = ContainerId(new_id())
        if not config.hostname and not host.network_mode.startswith("container:"):
            own = socket.gethostname() if host.network_mode == "host" else container_id[:12]
            config = replace_struct(config, hostname=own)
        async with AsyncExitStack() as undo:
            mounts = await self._make_volumes(points, volume_requests(host), image, undo)
            container = Container(
                id=container_id,
                name=name,
                created_at_ns=time.time_ns(),
                image_id=image.id,
                image_ref=request.config.image,
                layers=image.layers,
                config=config,
                host_config=host,
                networking=networking,
                path=argv[0],
                args=argv[1:],
                runtime=runtime,
                mounts=mounts,
                log_path=str(self._containers_dir / container_id / "log"),
                ids=self._userns.choose(host, self._registry, is_able=maps_ids),
                links=links,
            )
            self._images.get(image.id)  # it may have been removed while volumes were filled
            self._registry.add(container)
            undo.pop_all()
        self._events.publish("container", "create", container_id, event_attributes(container))
        return Created(id=container_id, warnings=_warnings(host) + warnings)

    def _with_images(self, points: tuple[MountPoint, ...]) -> tuple[MountPoint, ...]:
        """Find the images that are to be mounted. Raises NoSuchImage."""
        found = list(points)
        for position, point in enumerate(points):
            if point.type == "image" and not point.source:
                image = self._images.get(point.name)
                found[position] = replace(point, source=image.id, layers=image.layers)
        return tuple(found)

    def _check_files(self, host: HostConfig) -> None:
        """Raise InvalidParameter for what /etc/hosts and /etc/resolv.conf cannot say."""
        self._networks.hosts_file((), hostname="", extra_hosts=host.extra_hosts or ())
        self._networks.resolv_conf(
            (), dns=host.dns or (), search=host.dns_search or (), options=host.dns_options or ()
        )

    def _choose_name(self, wanted: str | None) -> str:
        if wanted:
            name = wanted.removeprefix("/")
            check_name(wanted)
            self._registry.check_name(name)
            return name
        taken = {container.name for container in self._registry}
        return names.random_name(taken, random.Random())

    async def _make_volumes(
        self,
        points: tuple[MountPoint, ...],
        requests: Mapping[str, VolumeOptions],
        image: Image,
        undo: AsyncExitStack,
    ) -> tuple[MountPoint, ...]:
        made: list[MountPoint] = []
        for point in points:
            if point.type != "volume":
                made.append(point)
                continue
            known = {volume.name for volume in self._volumes.list()}
            wanted = requests.get(point.destination, VolumeOptions())
            volume = self._volumes.create(
                point.name or None,
                driver=point.driver or "local",
                labels=wanted.labels or {},
                options=(wanted.driver_config and wanted.driver_config.options) or {},
            )
            if volume.name not in known:
                undo.push_async_callback(self._unmake_volume, volume.name)
                self._events.publish("volume", "create", volume.name, {"driver": volume.driver})
            if "nocopy" not in point.options and not point.subpath:
                await self._volumes.copy_up(volume, image.layers, point.destination)
            source = volume.mountpoint / point.subpath if point.subpath else volume.mountpoint
            made.append(replace(point, name=volume.name, source=str(source), driver=volume.driver))
        return tuple(made)

    async def _unmake_volume(self, name: str) -> None:
        """Remove a volume made for a container that will not be, unless another took it up meanwhile."""
        if not any(
            point.type == "volume" and point.name == name
            for container in self._registry
            for point in container.mounts
        ):
            await self._volumes.remove(name)
            self._events.publish("volume", "destroy", name, {"driver": "local"})


@contextmanager
def _missing_is_invalid() -> Iterator[None]:
    """What a request names beside its image is an argument of it, as in Docker.

    The docker command takes a create's 404 for a missing image, whatever it says, and pulls.
    """
    try:
        yield
    except NotFound as error:
        raise InvalidParameter(error.message) from error


def _check_platform(image: Image, request: CreateRequest) -> None:
    """Raise NotFound when the image is for another platform: clients pull the right one then.

    Source: Docker Engine 28, daemon/images, matchesPlatform.
    """
    if not request.platform:
        return
    wanted = parse_platform(request.platform)
    if wanted.os != "linux":
        raise InvalidParameter(f'"{request.platform}": unknown operating system or architecture')
    actual = Platform(os=image.os, architecture=image.architecture, variant=image.variant)
    if image.architecture and not wanted.rank(actual):
        raise NotFound(
            f"image with reference {request.config.image} was found but its platform ({actual}) does not "
            f"match the specified platform ({wanted})"
        )


def merge_config(config: ContainerConfig, image: ContainerConfig) -> ContainerConfig:
    """Return the user's configuration with what the image adds. Source: docker run reference, "Overriding
    image defaults"; an entrypoint of one's own drops the image's command."""
    entrypoint, command = _as_list(config.entrypoint), _as_list(config.cmd)
    if not entrypoint:
        if config.entrypoint is None:
            command = command or _as_list(image.cmd)
        entrypoint = _as_list(image.entrypoint) if config.entrypoint is None else None
    elif entrypoint == [""]:
        entrypoint = None
    env = _merge_env(image.env or [], config.env or [])
    return replace_struct(
        config,
        env=env,
        cmd=command,
        entrypoint=entrypoint,
        user=config.user or image.user,
        working_dir=config.working_dir or image.working_dir,
        exposed_ports={**(image.exposed_ports or {}), **(config.exposed_ports or {})} or None,
        volumes={**(image.volumes or {}), **(config.volumes or {})} or None,
        labels={**(image.labels or {}), **(config.labels or {})},
        stop_signal=config.stop_signal or image.stop_signal,
        stop_timeout=config.stop_timeout if config.stop_timeout is not None else image.stop_timeout,
        healthcheck=merge_check(config.healthcheck, image.healthcheck),
        shell=config.shell or image.shell,
    )


def command_line(config: ContainerConfig) -> tuple[str, ...]:
    """Return what is executed. Raises InvalidParameter when there is nothing to run."""
    argv = (*(_as_list(config.entrypoint) or ()), *(_as_list(config.cmd) or ()))
    if not argv or not argv[0]:
        raise InvalidParameter("no command specified")
    return argv


def check_name(name: str) -> None:
    """Raise InvalidParameter for a name that a container cannot have."""
    if _NAME.fullmatch(name) is None:
        raise InvalidParameter(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")


def check_config(config: ContainerConfig, host: HostConfig) -> None:
    """Raise InvalidParameter for what could only fail at the start."""
    if config.working_dir and not config.working_dir.startswith("/"):
        raise InvalidParameter(
            f"the working directory '{config.working_dir}' is invalid, it needs to be an absolute path"
        )
    for entry in config.env or ():
        if not entry or entry.startswith("=") or "\0" in entry:
            raise InvalidParameter(f"invalid environment variable: {entry}")
    if config.stop_signal:
        parse_signal(config.stop_signal)
    if len(config.hostname) > 64:
        raise InvalidParameter(f"invalid hostname: {config.hostname}: longer than 64 characters")
    if ".." in host.cgroup_parent.split("/"):
        raise InvalidParameter(f"invalid cgroup parent: {host.cgroup_parent!r}")
    if host.uts_mode == "host" and config.hostname:
        raise InvalidParameter("conflicting options: hostname and the UTS mode")
    check_log_config(host.log_config)
    if host.shm_size < 0:
        raise InvalidParameter("SHM size can not be less than 0")
    if not -1000 <= host.oom_score_adj <= 1000:
        raise InvalidParameter(
            f"Invalid value {host.oom_score_adj}, range for oom score adj is [-1000, 1000]"
        )
    check_restart_policy(host)
    ports.check_exposed(config)
    ports.parse_ports(config, host)
    parse_resources(host)
    parse_rlimits(host)
    parse_security(host)


def check_restart_policy(host: HostConfig) -> None:
    """Raise InvalidParameter for an unknown or contradictory restart policy."""
    policy = host.restart_policy
    if policy.name not in _RESTART_POLICIES:
        raise InvalidParameter(
            f"invalid restart policy: unknown policy '{policy.name}'; "
            "use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )
    if policy.maximum_retry_count and policy.name != "on-failure":
        raise InvalidParameter(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'"
        )
    if policy.maximum_retry_count < 0:
        raise InvalidParameter("invalid restart policy: maximum retry count cannot be negative")
    if host.auto_remove and policy.name not in ("", "no"):
        raise InvalidParameter("can't create 'AutoRemove' container with restart policy")


def event_attributes(container: Container) -> dict[str, str]:
    """Return the attributes that every event of a container carries."""
    return {**(container.config.labels or {}), "image": container.image_ref, "name": container.name}


def _normalise(host: HostConfig, *, without_network: bool, default_log: LogConfig) -> HostConfig:
    network_mode = "bridge" if host.network_mode in ("", "default") else host.network_mode
    if without_network:
        network_mode = "none"
    return replace_struct(
        host,
        network_mode=network_mode,
        shm_size=host.shm_size or 64 * 1024 * 1024,
        log_config=merge_log_config(host.log_config, default_log),
    )


def _as_list(value: list[str] | str | None) -> list[str] | None:
    return shlex.split(value) if isinstance(value, str) else value


def _merge_env(image: list[str], user: list[str]) -> list[str]:
    merged: dict[str, str] = {}
    for entry in (*image, *user):
        merged[entry.partition("=")[0]] = entry
    # "NAME" without "=" takes the variable out (docker run -e NAME with NAME unset on the client).
    kept = [entry for entry in merged.values() if "=" in entry]
    return kept if "PATH" in merged else [*kept, _ENV_DEFAULT_PATH]


def _warnings(host: HostConfig) -> tuple[str, ...]:
    warnings: list[str] = []
    if host.network_mode == "host" and (host.port_bindings or host.publish_all_ports):
        warnings.append("Published ports are discarded when using host network mode")
    return tuple(warnings)

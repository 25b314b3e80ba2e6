# SPDX-License-Identifier: Apache-2.0
"""Containers as Docker shows them: inspect, the line of ``docker ps``, and its words for time and state.

Source: Engine API, ContainerInspectResponse, ContainerSummary; the status texts are dockerd's.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET
from msgspec.structs import replace

from proa.engine.container import Container, Health, MountPoint, State
from proa.model.config import ContainerConfig, EndpointSettings, PortBinding
from proa.model.network import Endpoint
from proa.wire import containers as wire
from proa.wire.images import GraphDriver
from proa.wire.times import NS, format_time

STORAGE_DRIVER = "erofs"

_MINUTE, _HOUR = 60, 3600


def inspect(
    container: Container,
    exec_ids: Sequence[str],
    sizes: tuple[int, int] | None,
    links: Sequence[str] = (),
) -> wire.ContainerInspect:
    """Return all about one container; ``sizes`` when they were asked for; its ``links`` on the default
    bridge as Docker writes them, in place of what the user wrote."""
    host = replace(container.host_config, runtime=container.runtime)
    if container.links:
        host = replace(host, links=list(links))
    return wire.ContainerInspect(
        id=container.id,
        created=format_time(container.created_at_ns),
        path=container.path,
        args=list(container.args),
        state=state(container),
        image=container.image_id,
        log_path=container.log_path,
        name=f"/{container.name}",
        restart_count=container.restart_count,
        driver=STORAGE_DRIVER,
        platform=container.platform,
        exec_ids=list(exec_ids) or None,
        host_config=host,
        graph_driver=GraphDriver(name=STORAGE_DRIVER),
        size_rw=sizes[0] if sizes else UNSET,
        size_root_fs=sizes[1] if sizes else UNSET,
        mounts=[mount_point(point) for point in container.mounts],
        config=_config(container.config),
        network_settings=network_settings(container),
    )


def summary(
    container: Container, sizes: tuple[int, int] | None, now_ns: int, aliases: Sequence[str] = ()
) -> wire.ContainerSummary:
    """Return one line of a list. ``aliases``: names that links gave it, as ``/other/alias``."""
    networks = _networks(container)
    return wire.ContainerSummary(
        id=container.id,
        names=[f"/{container.name}", *aliases],
        image=container.image_ref,
        image_id=container.image_id,
        command=_command(container),
        created=container.created_at_ns // NS,
        ports=_port_summaries(container),
        size_rw=sizes[0] if sizes else UNSET,
        size_root_fs=sizes[1] if sizes else UNSET,
        labels=container.config.labels or {},
        state=container.state.value,
        status=status_text(container, now_ns),
        host_config=wire.SummaryHostConfig(network_mode=container.host_config.network_mode),
        network_settings=wire.SummaryNetworks(networks=networks),
        mounts=[mount_point(point) for point in container.mounts],
    )


def state(container: Container) -> wire.ContainerState:
    """Return the state with Docker's overlapping flags: paused and restarting count as running."""
    now = container.state
    return wire.ContainerState(
        status=now.value,
        running=now in (State.RUNNING, State.PAUSED, State.RESTARTING),
        paused=now is State.PAUSED,
        restarting=now is State.RESTARTING,
        oom_killed=container.oom_killed,
        dead=now is State.DEAD,
        pid=container.pid,
        exit_code=container.exit_code,
        error=container.error,
        started_at=format_time(container.started_at_ns),
        finished_at=format_time(container.finished_at_ns),
        health=_health(container.health) if container.health else UNSET,
    )


def status_text(container: Container, now_ns: int) -> str:
    """Return the STATUS column: ``Up 3 minutes (Paused)``, ``Exited (0) 2 hours ago``."""
    started = human_duration(now_ns - container.started_at_ns)
    finished = human_duration(now_ns - container.finished_at_ns)
    match container.state:
        case State.RUNNING:
            return f"Up {started}{_health_text(container.health)}"
        case State.PAUSED:
            return f"Up {started} (Paused)"
        case State.RESTARTING:
            return f"Restarting ({container.exit_code}) {finished} ago"
        case State.REMOVING:
            return "Removal In Progress"
        case State.DEAD:
            return "Dead"
        case State.CREATED:
            return "Created"
        case State.EXITED:
            return f"Exited ({container.exit_code}) {finished} ago" if container.finished_at_ns else ""


def _health(health: Health) -> wire.Health:
    return wire.Health(
        status=health.status,
        failing_streak=health.failing_streak,
        log=[
            wire.HealthResult(
                start=format_time(result.start_ns),
                end=format_time(result.end_ns),
                exit_code=result.exit_code,
                output=result.output,
            )
            for result in health.results
        ],
    )


def _health_text(health: Health | None) -> str:
    if health is None:
        return ""
    return " (health: starting)" if health.status == "starting" else f" ({health.status})"


def human_duration(duration_ns: int) -> str:
    """Return a span of time in the words of docker ps. Source: docker/go-units, HumanDuration."""
    seconds = duration_ns // NS
    hours = int(duration_ns / NS / _HOUR + 0.5)
    if seconds < 1:
        return "Less than a second"
    if seconds < 2 * _MINUTE:
        fixed = {1: "1 second"}
        return fixed.get(seconds, f"{seconds} seconds" if seconds < _MINUTE else "About a minute")
    if seconds < _HOUR:
        return f"{seconds // _MINUTE} minutes"
    if hours == 1:
        return "About an hour"
    days = hours // 24
    for limit_hours, text in (
        (48, f"{hours} hours"),
        (24 * 7 * 2, f"{days} days"),
        (24 * 30 * 2, f"{days // 7} weeks"),
        (24 * 365 * 2, f"{days // 30} months"),
    ):
        if hours < limit_hours:
            return text
    return f"{seconds // _HOUR // 24 // 365} years"


def mount_point(point: MountPoint) -> wire.MountPoint:
    """Return one mount."""
    return wire.MountPoint(
        type=point.type,
        name=point.name or UNSET,
        source=point.source,
        destination=point.destination,
        driver=point.driver or UNSET,
        mode=point.mode,
        rw=point.rw,
        propagation=point.propagation,
    )


def network_settings(container: Container) -> wire.NetworkSettings:
    """Return where it is on the networks; the default bridge's part is repeated at the top."""
    networks = _networks(container)
    default = networks.get("bridge", EndpointSettings())
    return wire.NetworkSettings(
        ports=_port_map(container),
        endpoint_id=default.endpoint_id,
        gateway=default.gateway,
        ip_address=default.ip_address,
        ip_prefix_len=default.ip_prefix_len,
        mac_address=default.mac_address if default.endpoint_id else "",
        networks=networks,
    )


def _networks(container: Container) -> dict[str, EndpointSettings]:
    mode = container.host_config.network_mode
    if mode in ("host", "none"):
        return {mode: EndpointSettings()}
    endpoints: dict[str, Endpoint] = {endpoint.network_id: endpoint for endpoint in container.endpoints}
    return {
        name: _endpoint(asked, endpoints[asked.network_id]) if asked.network_id in endpoints else asked
        for name, asked in container.networking.items()
    }


def _endpoint(asked: EndpointSettings, got: Endpoint) -> EndpointSettings:
    return replace(
        asked,
        network_id=got.network_id,
        endpoint_id=got.endpoint_id,
        mac_address=got.mac,
        ip_address=str(got.address.ip) if got.address else "",
        ip_prefix_len=got.address.network.prefixlen if got.address else 0,
        gateway=str(got.gateway) if got.gateway else "",
        global_ipv6_address=str(got.address6.ip) if got.address6 else "",
        global_ipv6_prefix_len=got.address6.network.prefixlen if got.address6 else 0,
        ipv6_gateway=str(got.gateway6) if got.gateway6 else "",
        dns_names=list(got.dns_names) or None,
    )


def _port_map(container: Container) -> dict[str, list[PortBinding] | None]:
    """Return exposed and published ports of a running container; a port that is only exposed is null."""
    if not container.is_alive:
        return {}
    ports: dict[str, list[PortBinding] | None] = {
        _port_key(key): None for key in container.config.exposed_ports or ()
    }
    for port in container.ports:
        key = f"{port.container_port}/{port.protocol}"
        binding = PortBinding(host_ip=str(port.host_ip), host_port=str(port.host_port))
        ports[key] = [*(ports.get(key) or []), binding]
    return ports


def _port_summaries(container: Container) -> list[wire.PortSummary]:
    summaries: list[wire.PortSummary] = []
    for key, bindings in _port_map(container).items():
        number, _, protocol = key.partition("/")
        if bindings is None:
            summaries.append(wire.PortSummary(private_port=int(number), type=protocol))
            continue
        summaries += [
            wire.PortSummary(
                ip=binding.host_ip,
                private_port=int(number),
                public_port=int(binding.host_port),
                type=protocol,
            )
            for binding in bindings
        ]
    return summaries


def _port_key(key: str) -> str:
    return key if "/" in key else f"{key}/tcp"


def _config(config: ContainerConfig) -> ContainerConfig:
    """Write a command given as one string as the list that Docker always shows."""
    return replace(config, cmd=_listed(config.cmd), entrypoint=_listed(config.entrypoint))


def _listed(value: list[str] | str | None) -> list[str] | None:
    return [value] if isinstance(value, str) else value


def _command(container: Container) -> str:
    args = (f"'{arg}'" if " " in arg else arg for arg in container.args)
    return " ".join((container.path, *args))

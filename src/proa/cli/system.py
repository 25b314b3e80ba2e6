# SPDX-License-Identifier: Apache-2.0
"""``proa info``, ``version`` and ``system``. Source: docker info, version and system references."""

from __future__ import annotations

import json
import platform
from typing import Any

import click
import msgspec

from proa import __version__
from proa.cli.context import get_client
from proa.cli.events import events
from proa.cli.table import print_rows, render
from proa.cli.times import format_size
from proa.client.errors import ClientError
from proa.wire import routes
from proa.wire.routes import API_VERSION
from proa.wire.system import DiskUsage, Info, Version

_KINDS = ["container", "image", "volume", "build-cache", "vm"]


@click.command()
@click.option("-f", "--format", "template", help="Format output using a template, or json")
@click.pass_context
def info(ctx: click.Context, template: str | None) -> None:
    """Display system-wide information."""
    client = get_client(ctx)
    if template:
        _print_formatted(client.call(routes.INFO, returns=dict[str, Any]), template)
        return
    found = client.call(routes.INFO, returns=Info)
    lines: list[tuple[str, object]] = [
        ("Containers", found.containers),
        (" Running", found.containers_running),
        (" Paused", found.containers_paused),
        (" Stopped", found.containers_stopped),
        ("Images", found.images),
        ("Server Version", found.server_version),
        ("Storage Driver", found.driver),
        *((f" {name}", value) for name, value in found.driver_status),
        ("Cgroup Driver", found.cgroup_driver),
        ("Cgroup Version", found.cgroup_version),
        ("Runtimes", " ".join(sorted(found.runtimes))),
        ("Default Runtime", found.default_runtime),
        ("Default Isolation", found.isolation or "container"),
        ("Kernel Version", found.kernel_version),
        ("Operating System", found.operating_system),
        ("Architecture", found.architecture),
        ("CPUs", found.n_cpu),
        ("Total Memory", format_size(found.mem_total, base=1024, digits=4)),
        ("Name", found.name),
        ("ID", found.id),
        ("Data Root", found.docker_root_dir),
        *_registries(found),
        *(("VM Acceleration", text) for text in vm_acceleration(found)),
    ]
    for name, value in lines:
        click.echo(f"{name}: {value}")
    for warning in found.warnings:
        click.echo(f"WARNING: {warning}", err=True)


def _registries(found: Info) -> list[tuple[str, str]]:
    """Return what is configured of registries; the loopback is always among the insecure ones."""
    config = found.registry_config
    hosts = [name for name, index in config.index_configs.items() if not index.secure]
    lines = [("Insecure Registries", " ".join([*hosts, *config.insecure_registry_cidrs]))]
    if config.mirrors:
        lines.append(("Registry Mirrors", " ".join(config.mirrors)))
    proxies = (
        ("HTTP Proxy", found.http_proxy),
        ("HTTPS Proxy", found.https_proxy),
        ("No Proxy", found.no_proxy),
    )
    return lines + [(name, value) for name, value in proxies if value]


def vm_acceleration(found: Info) -> list[str]:
    """Return what the daemon found out about virtual machines, in one line; [] when it says nothing."""
    labels = dict(label.partition("=")[::2] for label in found.labels)
    name, reason = labels.get("proa.vm.accelerator", ""), labels.get("proa.vm.accelerator.reason", "")
    return [f"{name} ({reason})" if reason else name] if name else []


@click.command()
@click.option("-f", "--format", "template", help="Format output using a template, or json")
@click.pass_context
def version(ctx: click.Context, template: str | None) -> None:
    """Show the version of the client and, when it answers, of the daemon."""
    client = {
        "Version": __version__,
        "ApiVersion": API_VERSION,
        "PythonVersion": platform.python_version(),
        "Os": "linux",
        "Arch": platform.machine(),
    }
    server: Version | None = None
    failure: ClientError | None = None
    try:
        server = get_client(ctx).call(routes.VERSION, returns=Version)
    except ClientError as error:
        failure = error
    if template:
        plain = msgspec.to_builtins(server) if server is not None else None
        _print_formatted({"Client": client, "Server": plain}, template)
    else:
        click.echo("Client:")
        for name, value in client.items():
            click.echo(f" {name + ':':<18}{value}")
        if server is not None:
            click.echo("\nServer:")
            for component in server.components or ():
                click.echo(f" {component.name + ':':<18}{component.version}")
            click.echo(
                f" {'API version:':<18}{server.api_version} (minimum version {server.min_api_version})"
            )
            click.echo(f" {'Kernel:':<18}{server.kernel_version}")
    if failure is not None:
        click.echo(str(failure), err=True)
        raise click.exceptions.Exit(1)


@click.group()
def system() -> None:
    """Manage proa."""


@system.command()
@click.option("--format", "template", help="Format output: table, json or a template")
@click.option("-v", "--verbose", is_flag=True, help="Show every image, container, volume and machine")
@click.pass_context
def df(ctx: click.Context, template: str | None, verbose: bool) -> None:
    """Show disk usage."""
    found = get_client(ctx).call(routes.DISK_USAGE, query={"type": _KINDS}, returns=DiskUsage)
    columns = [(title, title) for title in ("TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE")]
    print_rows(_usage(found), columns, template)
    if verbose and not template:
        _print_verbose(found)


def _usage(found: DiskUsage) -> list[dict[str, str]]:
    images, containers = found.images or [], found.containers or []
    volumes, cache = found.volumes or [], found.build_cache or []
    machines = found.virtual_machines if isinstance(found.virtual_machines, list) else []
    stopped = sum(one.size for one in machines if one.state not in ("running", "paused"))
    unused = sum(image.size - max(image.shared_size, 0) for image in images if image.containers <= 0)
    sizes = {one.id: one.size_rw if isinstance(one.size_rw, int) else 0 for one in containers}
    running = [one for one in containers if one.state in ("running", "paused")]
    usage = {one.name: one.usage_data for one in volumes if one.usage_data is not None}
    return [
        _line(
            "Images", len(images), sum(image.containers > 0 for image in images), found.layers_size, unused
        ),
        _line(
            "Containers",
            len(containers),
            len(running),
            sum(sizes.values()),
            sum(sizes.values()) - sum(sizes[one.id] for one in running),
        ),
        _line(
            "Local Volumes",
            len(volumes),
            sum(data.ref_count > 0 for data in usage.values()),
            sum(max(data.size, 0) for data in usage.values()),
            sum(max(data.size, 0) for data in usage.values() if data.ref_count <= 0),
        ),
        _line("Build Cache", len(cache), 0, sum(one.size for one in cache), sum(one.size for one in cache)),
        _line(
            "Virtual Machines",
            len(machines),
            sum(one.state in ("running", "paused") for one in machines),
            sum(one.size for one in machines),
            stopped,
        ),
    ]


def _line(kind: str, total: int, active: int, size: int, reclaimable: int) -> dict[str, str]:
    share = f" ({100 * reclaimable // size}%)" if size else ""
    return {
        "TYPE": kind,
        "TOTAL": str(total),
        "ACTIVE": str(active),
        "SIZE": format_size(size),
        "RECLAIMABLE": f"{format_size(max(reclaimable, 0))}{share}",
    }


def _print_verbose(found: DiskUsage) -> None:
    click.echo("\nImages:")
    for image in found.images or ():
        name = ", ".join(image.repo_tags) or "<none>"
        click.echo(f"  {name}  {format_size(image.size)}  containers {max(image.containers, 0)}")
    click.echo("\nContainers:")
    for container in found.containers or ():
        written = container.size_rw if isinstance(container.size_rw, int) else 0
        click.echo(f"  {', '.join(container.names)}  {format_size(written)}  {container.status}")
    click.echo("\nVolumes:")
    for volume in found.volumes or ():
        size = volume.usage_data.size if volume.usage_data else 0
        click.echo(f"  {volume.name}  {format_size(max(size, 0))}")
    click.echo("\nVirtual machines:")
    for one in found.virtual_machines if isinstance(found.virtual_machines, list) else ():
        click.echo(f"  {one.name}  {format_size(one.size)}  {one.state}  snapshots {one.snapshots}")


def _print_formatted(value: dict[str, Any], template: str) -> None:  # Any: JSON
    click.echo(json.dumps(value) if template == "json" else render(template, value))


system.add_command(info)
system.add_command(events)

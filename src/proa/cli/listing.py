# SPDX-License-Identifier: Apache-2.0
"""``proa ps`` and ``proa port``. Source: docker ps and docker port references."""

from __future__ import annotations

import time

import click

from proa.cli import values
from proa.cli.context import get_client
from proa.cli.table import print_rows
from proa.cli.times import format_ago, format_size
from proa.client.client import filters_query
from proa.wire import routes
from proa.wire.containers import ContainerInspect, ContainerSummary, PortSummary

_COLUMNS = (
    ("CONTAINER ID", "ID"),
    ("IMAGE", "Image"),
    ("COMMAND", "Command"),
    ("CREATED", "RunningFor"),
    ("STATUS", "Status"),
    ("PORTS", "Ports"),
    ("NAMES", "Names"),
)
_COMMAND_LENGTH = 20


@click.command()
@click.option("-a", "--all", "all_", is_flag=True, help="Show all containers (default shows just running)")
@click.option("-f", "--filter", "filters", multiple=True, metavar="FILTER", help="Filter output")
@click.option("--format", "template", help="Format output: table, json or a template")
@click.option(
    "-n", "--last", type=int, default=-1, help="Show N last created containers (includes all states)"
)
@click.option("-l", "--latest", is_flag=True, help="Show the latest created container (includes all states)")
@click.option("--no-trunc", is_flag=True, help="Don't truncate output")
@click.option("-q", "--quiet", is_flag=True, help="Only display container IDs")
@click.option("-s", "--size", is_flag=True, help="Display total file sizes")
@click.pass_context
def ps(
    ctx: click.Context,
    all_: bool,
    filters: tuple[str, ...],
    template: str | None,
    last: int,
    latest: bool,
    no_trunc: bool,
    quiet: bool,
    size: bool,
) -> None:
    """List containers."""
    query = {
        "all": all_,
        "limit": 1 if latest else (last if last > 0 else None),
        "size": size,
        "filters": filters_query(values.parse_filters(filters)),
    }
    found = get_client(ctx).call(routes.CONTAINER_LIST, query=query, returns=list[ContainerSummary])
    if quiet:
        for container in found:
            click.echo(container.id if no_trunc else container.id[:12])
        return
    columns = (*_COLUMNS, ("SIZE", "Size")) if size else _COLUMNS
    print_rows([_row(container, no_trunc=no_trunc, size=size) for container in found], columns, template)


@click.command()
@click.argument("container")
@click.argument("port", required=False)
@click.pass_context
def port(ctx: click.Context, container: str, port: str | None) -> None:
    """List port mappings of CONTAINER, or those of one PORT[/PROTOCOL]."""
    found = get_client(ctx).call(routes.CONTAINER_INSPECT, returns=ContainerInspect, id=container)
    ports = found.network_settings.ports or {}
    if port is None:
        for key, bindings in sorted(ports.items()):
            for binding in bindings or ():
                click.echo(f"{key} -> {binding.host_ip}:{binding.host_port}")
        return
    wanted = port if "/" in port else f"{port}/tcp"
    if not ports.get(wanted):
        raise click.ClickException(f"no public port '{wanted}' published for {container}")
    for binding in ports[wanted] or ():
        click.echo(f"{binding.host_ip}:{binding.host_port}")


def _row(container: ContainerSummary, *, no_trunc: bool, size: bool) -> dict[str, str]:
    command = container.command
    if not no_trunc and len(command) > _COMMAND_LENGTH:
        command = command[: _COMMAND_LENGTH - 1] + "…"
    row = {
        "ID": container.id if no_trunc else container.id[:12],
        "Image": container.image,
        "Command": f'"{command}"',
        "CreatedAt": time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(container.created)),
        "RunningFor": format_ago(container.created),
        "State": container.state,
        "Status": container.status,
        "Ports": format_ports(container.ports),
        "Names": ",".join(name.removeprefix("/") for name in container.names),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(container.labels.items())),
        "Mounts": ",".join(str(mount.name or mount.source) for mount in container.mounts),
        "Networks": ",".join(container.network_settings.networks),
    }
    if size:
        written = container.size_rw if isinstance(container.size_rw, int) else 0
        whole = container.size_root_fs if isinstance(container.size_root_fs, int) else 0
        row["Size"] = f"{format_size(written)} (virtual {format_size(whole)})"
    return row


def format_ports(ports: list[PortSummary]) -> str:
    """Return docker's one line for a container's ports."""
    texts = []
    for one in sorted(ports, key=lambda port: (port.private_port, port.type)):
        if isinstance(one.public_port, int):
            texts.append(f"{one.ip}:{one.public_port}->{one.private_port}/{one.type}")
        else:
            texts.append(f"{one.private_port}/{one.type}")
    return ", ".join(texts)

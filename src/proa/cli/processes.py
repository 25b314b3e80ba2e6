# SPDX-License-Identifier: Apache-2.0
"""``proa top`` and ``proa stats``. Source: docker top and docker stats references."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import click

from proa.cli.context import get_client
from proa.cli.table import print_rows
from proa.cli.times import format_size
from proa.client.client import Client
from proa.client.errors import ApiError
from proa.wire import routes
from proa.wire.containers import ContainerSummary, ContainerTop
from proa.wire.stats import ContainerStats

_COLUMNS = (
    ("CONTAINER ID", "ID"),
    ("NAME", "Name"),
    ("CPU %", "CPUPerc"),
    ("MEM USAGE / LIMIT", "MemUsage"),
    ("MEM %", "MemPerc"),
    ("NET I/O", "NetIO"),
    ("BLOCK I/O", "BlockIO"),
    ("PIDS", "PIDs"),
)
_CLEAR = "\x1b[2J\x1b[H"


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("container")
@click.argument("ps_options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def top(ctx: click.Context, container: str, ps_options: tuple[str, ...]) -> None:
    """Display the running processes of CONTAINER, as ps with PS_OPTIONS does."""
    query = {"ps_args": " ".join(ps_options)}
    table = get_client(ctx).call(routes.CONTAINER_TOP, query=query, returns=ContainerTop, id=container)
    rows = [dict(zip(table.titles, row, strict=False)) for row in table.processes]
    print_rows(rows, [(title, title) for title in table.titles], None)


@click.command()
@click.option("-a", "--all", "all_", is_flag=True, help="Show all containers (default shows just running)")
@click.option("--format", "template", help="Format output: table, json or a template")
@click.option("--no-stream", is_flag=True, help="Disable streaming stats and only pull the first result")
@click.option("--no-trunc", is_flag=True, help="Do not truncate output")
@click.argument("containers", nargs=-1)
@click.pass_context
def stats(
    ctx: click.Context,
    containers: tuple[str, ...],
    all_: bool,
    template: str | None,
    no_stream: bool,
    no_trunc: bool,
) -> None:
    """Display a live stream of the resource usage of CONTAINERS (all that run when none is named)."""
    client = get_client(ctx)
    while True:
        rows = [_row(client, name, no_trunc=no_trunc) for name in _names(client, containers, all_=all_)]
        if not no_stream and sys.stdout.isatty():
            click.echo(_CLEAR, nl=False)
        print_rows([row for row in rows if row], _COLUMNS, template)
        if no_stream:
            return
        sys.stdout.flush()
        time.sleep(0.5)


def _names(client: Client, containers: Sequence[str], *, all_: bool) -> Sequence[str]:
    if containers:
        return containers
    found = client.call(routes.CONTAINER_LIST, query={"all": all_}, returns=list[ContainerSummary])
    return [container.id for container in found]


def _row(client: Client, name: str, *, no_trunc: bool) -> dict[str, str]:
    try:
        found = client.call(routes.CONTAINER_STATS, query={"stream": False}, returns=ContainerStats, id=name)
    except ApiError as error:
        if error.status == 404 and len(name) == 64:
            return {}  # it went away between the list and the question
        raise
    usage, limit = _memory(found)
    received = sent = 0
    if isinstance(found.networks, dict):
        received = sum(network.rx_bytes for network in found.networks.values())
        sent = sum(network.tx_bytes for network in found.networks.values())
    entries = found.blkio_stats.io_service_bytes_recursive or []
    read = sum(entry.value for entry in entries if entry.op.lower() == "read")
    written = sum(entry.value for entry in entries if entry.op.lower() == "write")
    pids = found.pids_stats.current
    return {
        "ID": found.id if no_trunc else found.id[:12],
        "Name": found.name.removeprefix("/"),
        "CPUPerc": f"{cpu_percent(found):.2f}%",
        "MemUsage": f"{format_size(usage, base=1024, digits=4)} / {format_size(limit, base=1024, digits=4)}",
        "MemPerc": f"{100 * usage / limit if limit else 0:.2f}%",
        "NetIO": f"{format_size(received)} / {format_size(sent)}",
        "BlockIO": f"{format_size(read)} / {format_size(written)}",
        "PIDs": str(pids) if isinstance(pids, int) else "0",
        "Container": name,
    }


def cpu_percent(stats: ContainerStats) -> float:
    """Return the share of one CPU used between the two readings, in percent; of four CPUs up to 400."""
    now, before = stats.cpu_stats, stats.precpu_stats
    if not isinstance(now.system_cpu_usage, int) or not isinstance(before.system_cpu_usage, int):
        return 0.0
    used = now.cpu_usage.total_usage - before.cpu_usage.total_usage
    whole = now.system_cpu_usage - before.system_cpu_usage
    cpus = now.online_cpus if isinstance(now.online_cpus, int) else 1
    return 100.0 * cpus * used / whole if whole > 0 and used > 0 else 0.0


def _memory(stats: ContainerStats) -> tuple[int, int]:
    memory = stats.memory_stats
    usage = memory.usage if isinstance(memory.usage, int) else 0
    limit = memory.limit if isinstance(memory.limit, int) else 0
    details = memory.stats if isinstance(memory.stats, dict) else {}
    # docker leaves out the page cache that the kernel would drop first.
    cache = details.get("total_inactive_file", details.get("inactive_file", 0))
    return max(usage - cache, 0) if cache < usage else usage, limit

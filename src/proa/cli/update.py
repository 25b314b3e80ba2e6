# SPDX-License-Identifier: Apache-2.0
"""``proa update``. Source: docker update reference."""

from __future__ import annotations

import click

from proa.cli import values
from proa.cli.context import for_each, get_client
from proa.wire import routes
from proa.wire.containers import ContainerUpdated, ContainerUpdateRequest


@click.command()
@click.option("--blkio-weight", type=int, default=0, help="Block IO (relative weight), between 10 and 1000")
@click.option("--cpu-period", type=int, default=0, help="Limit CPU CFS period (microseconds)")
@click.option("--cpu-quota", type=int, default=0, help="Limit CPU CFS quota (microseconds)")
@click.option("-c", "--cpu-shares", type=int, default=0, help="CPU shares (relative weight)")
@click.option("--cpus", help="Number of CPUs")
@click.option("--cpuset-cpus", default="", help="CPUs in which to allow execution (0-3, 0,1)")
@click.option("--cpuset-mems", default="", help="MEMs in which to allow execution (0-3, 0,1)")
@click.option("-m", "--memory", help="Memory limit")
@click.option("--memory-reservation", help="Memory soft limit")
@click.option("--memory-swap", help="Swap limit equal to memory plus swap: -1 for unlimited")
@click.option("--pids-limit", type=int, help="Tune container pids limit (-1 for unlimited)")
@click.option("--restart", help="Restart policy to apply when a container exits")
@click.argument("containers", nargs=-1, required=True)
@click.pass_context
def update(
    ctx: click.Context,
    containers: tuple[str, ...],
    blkio_weight: int,
    cpu_period: int,
    cpu_quota: int,
    cpu_shares: int,
    cpus: str | None,
    cpuset_cpus: str,
    cpuset_mems: str,
    memory: str | None,
    memory_reservation: str | None,
    memory_swap: str | None,
    pids_limit: int | None,
    restart: str | None,
) -> None:
    """Update the configuration of one or more CONTAINERS."""
    request = ContainerUpdateRequest(
        blkio_weight=blkio_weight,
        cpu_period=cpu_period,
        cpu_quota=cpu_quota,
        cpu_shares=cpu_shares,
        nano_cpus=values.parse_nano_cpus(cpus) if cpus else 0,
        cpuset_cpus=cpuset_cpus,
        cpuset_mems=cpuset_mems,
        memory=values.parse_size(memory) if memory else 0,
        memory_reservation=values.parse_size(memory_reservation) if memory_reservation else 0,
        memory_swap=values.parse_swap(memory_swap) if memory_swap else 0,
        pids_limit=pids_limit,
        restart_policy=values.parse_restart(restart) if restart else None,
    )
    if request == ContainerUpdateRequest():
        raise click.UsageError("you must provide one or more flags when using this command")
    client = get_client(ctx)

    def do(name: str) -> None:
        done = client.call(routes.CONTAINER_UPDATE, body=request, returns=ContainerUpdated, id=name)
        for warning in done.warnings or ():
            click.echo(f"WARNING: {warning}", err=True)

    for_each(containers, do)

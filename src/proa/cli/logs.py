# SPDX-License-Identifier: Apache-2.0
"""``proa logs``. Source: docker logs reference."""

from __future__ import annotations

import time

import click

from proa.cli.context import get_client
from proa.cli.terminal import write_output
from proa.cli.times import parse_moment
from proa.wire import routes
from proa.wire.containers import ContainerInspect
from proa.wire.stdio import FrameReader


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Follow log output")
@click.option("--since", default="", help="Show logs since timestamp or relative (42m)")
@click.option("--until", default="", help="Show logs before a timestamp or relative (42m)")
@click.option("-n", "--tail", default="all", help="Number of lines to show from the end of the logs [all]")
@click.option("-t", "--timestamps", is_flag=True, help="Show timestamps")
@click.option("--details", is_flag=True, help="Show extra details provided to logs")
@click.argument("container")
@click.pass_context
def logs(
    ctx: click.Context,
    container: str,
    follow: bool,
    since: str,
    until: str,
    tail: str,
    timestamps: bool,
    details: bool,
) -> None:
    """Fetch the logs of CONTAINER."""
    client = get_client(ctx)
    now = time.time()
    found = client.call(routes.CONTAINER_INSPECT, returns=ContainerInspect, id=container)
    query: dict[str, str | bool] = {
        "follow": follow,
        "stdout": True,
        "stderr": True,
        "since": parse_moment(since, now),
        "until": parse_moment(until, now),
        "tail": tail,
        "timestamps": timestamps,
        "details": details,
    }
    with client.stream(routes.CONTAINER_LOGS, query=query, id=found.id) as response:
        if found.config.tty:
            write_output((1, data) for data in response.iter_bytes())
            return
        reader = FrameReader()
        write_output(record for data in response.iter_bytes() for record in reader.feed(data))

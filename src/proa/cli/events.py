# SPDX-License-Identifier: Apache-2.0
"""``proa events``. Source: docker system events reference."""

from __future__ import annotations

import time
from typing import Any

import click

from proa.cli import values
from proa.cli.context import get_client
from proa.cli.table import render
from proa.cli.times import parse_moment
from proa.client.client import filters_query
from proa.wire import routes
from proa.wire.codec import encode
from proa.wire.system import Event


@click.command()
@click.option("-f", "--filter", "filters", multiple=True, metavar="FILTER", help="Filter output")
@click.option("--format", "template", help="Format output: json or a template")
@click.option("--since", default="", help="Show all events created since timestamp")
@click.option("--until", default="", help="Stream events until this timestamp")
@click.pass_context
def events(
    ctx: click.Context, filters: tuple[str, ...], template: str | None, since: str, until: str
) -> None:
    """Get real time events from the daemon."""
    now = time.time()
    query = {
        "since": parse_moment(since, now),
        "until": parse_moment(until, now),
        "filters": filters_query(values.parse_filters(filters)),
    }
    for event in get_client(ctx).iter_json(routes.EVENTS, Event, query=query):
        if template == "json":
            click.echo(encode(event))
        elif template:
            click.echo(render(template, _fields(event)))
        else:
            click.echo(format_event(event))


def format_event(event: Event) -> str:
    """Return docker's line of an event."""
    seconds, fraction = divmod(event.time_nano, 1_000_000_000)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))
    zone = time.strftime("%z", time.localtime(seconds))
    attributes = ", ".join(f"{key}={value}" for key, value in sorted(event.actor.attributes.items()))
    line = f"{moment}.{fraction:09d}{zone[:3]}:{zone[3:]} {event.type} {event.action} {event.actor.id}"
    return f"{line} ({attributes})" if attributes else line


def _fields(event: Event) -> dict[str, Any]:  # Any: JSON
    return {
        "Type": event.type,
        "Action": event.action,
        "Status": event.action,
        "ID": event.actor.id,
        "Actor": {"ID": event.actor.id, "Attributes": event.actor.attributes},
        "Scope": event.scope,
        "Time": event.time,
        "TimeNano": event.time_nano,
    }

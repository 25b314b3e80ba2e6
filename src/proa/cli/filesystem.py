# SPDX-License-Identifier: Apache-2.0
"""``proa diff``, ``export``, ``commit``: the files of a container as a whole.

Source: docker container diff, export and commit references.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from proa.cli.archive_files import refuse_terminal, write_archive
from proa.cli.context import get_client
from proa.cli.values import split_tag
from proa.wire import routes
from proa.wire.files import Committed, FilesystemChange

_KINDS = ("C", "A", "D")


@click.command()
@click.argument("container")
@click.pass_context
def diff(ctx: click.Context, container: str) -> None:
    """Inspect changes to files or directories on a container's filesystem."""
    for change in get_client(ctx).call(
        routes.CONTAINER_CHANGES, returns=list[FilesystemChange], id=container
    ):
        click.echo(f"{_KINDS[change.kind]} {change.path}")


@click.command()
@click.option("-o", "--output", metavar="FILE", help="Write to a file, instead of STDOUT")
@click.argument("container")
@click.pass_context
def export(ctx: click.Context, container: str, output: str | None) -> None:
    """Export a container's filesystem as a tar archive."""
    refuse_terminal(output)
    with get_client(ctx).stream(routes.CONTAINER_EXPORT, id=container) as response:
        write_archive(response, output, failed="failed to export container: {error}")


@click.command()
@click.option("-a", "--author", default="", help='Author (e.g., "John Hannibal Smith <hannibal@a-team.com>")')
@click.option(
    "-c", "--change", multiple=True, metavar="INSTRUCTION", help="Apply Dockerfile instruction to the image"
)
@click.option("-m", "--message", default="", help="Commit message")
@click.option(
    "-p/-P", "--pause/--no-pause", default=True, help="Pause container during commit (default true)"
)
@click.argument("container")
@click.argument("name", required=False, default="")
@click.pass_context
def commit(
    ctx: click.Context,
    container: str,
    name: str,
    author: str,
    change: tuple[str, ...],
    message: str,
    pause: bool,
) -> None:
    """Create a new image from a container's changes."""
    repository, tag = split_tag(name)
    query: dict[str, str | int | bool | Sequence[str] | None] = {
        "container": container,
        "repo": repository,
        "tag": tag,
        "author": author,
        "comment": message,
        "changes": list(change),
        "pause": pause,
    }
    click.echo(get_client(ctx).call(routes.IMAGE_COMMIT, returns=Committed, query=query).id)

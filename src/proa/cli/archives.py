# SPDX-License-Identifier: Apache-2.0
"""``proa load``, ``save``, ``import``: long transfers, with a bar on a terminal.

Source: docker image load, save and import references.
"""

from __future__ import annotations

import sys

import click

from proa.cli.archive_files import open_archive, pieces_of, refuse_terminal, write_archive
from proa.cli.context import get_client
from proa.cli.progress import bar
from proa.cli.values import split_tag
from proa.client.errors import ApiError
from proa.wire import routes
from proa.wire.errors import Progress


@click.command()
@click.option(
    "-i", "--input", "source", metavar="FILE", help="Read from a tar archive file, instead of STDIN"
)
@click.option("-q", "--quiet", is_flag=True, help="Suppress the load output")
@click.pass_context
def load(ctx: click.Context, source: str | None, quiet: bool) -> None:
    """Load images from a tar archive or standard input."""
    if source is None and sys.stdin.isatty():
        raise click.ClickException("requested load from stdin, but stdin is empty")
    client = get_client(ctx)
    with open_archive(source) as (file, size), bar("Loading", size, quiet=quiet) as advance:
        body = pieces_of(file, advance)
        query = {"quiet": True}
        for line in client.iter_json(routes.IMAGE_LOAD, Progress, query=query, body=body):
            _check(line)
            if line.stream:
                click.echo(line.stream, nl=False)


@click.command()
@click.option("-o", "--output", metavar="FILE", help="Write to a file, instead of STDOUT")
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def save(ctx: click.Context, names: tuple[str, ...], output: str | None) -> None:
    """Save one or more images to a tar archive (streamed to STDOUT by default)."""
    refuse_terminal(output)
    client = get_client(ctx)
    with client.stream(routes.IMAGE_GET_ALL, query={"names": list(names)}) as response:
        write_archive(response, output, failed="failed to save image: {error}", title="Saving")


@click.command("import")
@click.option("-c", "--change", multiple=True, metavar="INSTRUCTION", help="Apply Dockerfile instruction")
@click.option("-m", "--message", default="", help="Set commit message for imported image")
@click.option("--platform", default="", help="Set platform if server is multi-platform capable")
@click.argument("source")
@click.argument("name", required=False, default="")
@click.pass_context
def import_(
    ctx: click.Context, source: str, name: str, change: tuple[str, ...], message: str, platform: str
) -> None:
    """Import a tarball FILE (or - for standard input) to create the image NAME[:TAG]."""
    repository, tag = split_tag(name)
    query = {
        "fromSrc": "-",
        "repo": repository,
        "tag": tag,
        "message": message,
        "changes": list(change),
        "platform": platform,
    }
    client = get_client(ctx)
    with open_archive(None if source == "-" else source) as (file, size), bar("Importing", size) as advance:
        for line in client.iter_json(
            routes.IMAGE_CREATE, Progress, query=query, body=pieces_of(file, advance)
        ):
            _check(line)
            if line.status:
                click.echo(line.status)


def _check(line: Progress) -> None:
    if line.error:
        raise ApiError(500, line.error)

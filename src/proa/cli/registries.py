# SPDX-License-Identifier: Apache-2.0
"""``proa pull``, ``push`` and ``search``. Source: docker image pull, image push and search references."""

from __future__ import annotations

import click

from proa.cli import credentials, values
from proa.cli.context import get_client
from proa.cli.table import print_rows
from proa.cli.transfer import show_transfer
from proa.cli.values import split_tag
from proa.client.client import Client, filters_query
from proa.wire import routes
from proa.wire.errors import Progress
from proa.wire.registries import AUTH_HEADER, SearchResult, registry_of

DESCRIPTION_WIDTH = 45


@click.command()
@click.option("-a", "--all-tags", is_flag=True, help="Download all tagged images in the repository")
@click.option("--platform", help="Set platform if server is multi-platform capable")
@click.option("-q", "--quiet", is_flag=True, help="Suppress verbose output")
@click.argument("name")
@click.pass_context
def pull(ctx: click.Context, name: str, all_tags: bool, platform: str | None, quiet: bool) -> None:
    """Download the image NAME[:TAG|@DIGEST] from a registry."""
    repository, tag = split_tag(name)
    if all_tags and (tag or "@" in name):
        raise click.ClickException("tag can't be used with --all-tags/-a")
    if not (all_tags or tag or "@" in name):
        name = f"{repository}:latest"
        if not quiet:
            click.echo("Using default tag: latest")
    pull_image(get_client(ctx), name, platform=platform, quiet=quiet, all_tags=all_tags, err=False)
    click.echo(_canonical(name))


def pull_image(
    client: Client,
    name: str,
    *,
    platform: str | None = None,
    quiet: bool = False,
    all_tags: bool = False,
    err: bool = True,
) -> None:
    """Have the daemon pull an image, and show how it gets on (``err``: on standard error).

    Raises ApiError, also for what fails in the middle.
    """
    repository, tag = split_tag(name)
    if not all_tags and not tag and "@" not in name:
        tag = "latest"
    query = {"fromImage": repository, "tag": tag, "platform": platform}
    lines = client.iter_json(
        routes.IMAGE_CREATE, Progress, query=query, headers=credentials.headers_for(name)
    )
    show_transfer(lines, quiet=quiet, err=err)


@click.command()
@click.option("-a", "--all-tags", is_flag=True, help="Push all tags of an image to the repository")
@click.option("-q", "--quiet", is_flag=True, help="Suppress verbose output")
@click.argument("name")
@click.pass_context
def push(ctx: click.Context, name: str, all_tags: bool, quiet: bool) -> None:
    """Upload the image NAME[:TAG] to its registry."""
    repository, tag = split_tag(name)
    if all_tags and tag:
        raise click.ClickException("tag can't be used with --all-tags/-a")
    if not all_tags and not tag:
        tag = "latest"
        if not quiet:
            click.echo("Using default tag: latest")
    lines = get_client(ctx).iter_json(
        routes.IMAGE_PUSH,
        Progress,
        query={"tag": tag},
        headers={AUTH_HEADER: "", **credentials.headers_for(repository)},
        name=repository,
    )
    show_transfer(lines, quiet=quiet, err=False)
    if quiet:
        click.echo(_canonical(name))


@click.command()
@click.option("-f", "--filter", "filters", multiple=True, metavar="FILTER", help="Filter output")
@click.option("--format", "template", help="Format output: table, json or a template")
@click.option("--limit", type=int, metavar="N", help="Max number of search results")
@click.option("--no-trunc", is_flag=True, help="Don't truncate output")
@click.argument("term")
@click.pass_context
def search(
    ctx: click.Context,
    term: str,
    filters: tuple[str, ...],
    template: str | None,
    limit: int | None,
    no_trunc: bool,
) -> None:
    """Search Docker Hub (or HOST/TERM) for images."""
    query = {"term": term, "limit": limit, "filters": filters_query(values.parse_filters(filters))}
    found = get_client(ctx).call(
        routes.IMAGE_SEARCH,
        query=query,
        headers=credentials.headers_for(term),
        returns=list[SearchResult],
    )
    rows = []
    for result in found:
        text = " ".join(result.description.split())
        if not no_trunc and len(text) > DESCRIPTION_WIDTH:
            text = text[: DESCRIPTION_WIDTH - 1] + "…"
        rows.append(
            {
                "Name": result.name,
                "Description": text,
                "StarCount": str(result.star_count),
                "IsOfficial": "[OK]" if result.is_official else "",
            }
        )
    columns = (("NAME", "Name"), ("DESCRIPTION", "Description"), ("STARS", "StarCount"))
    print_rows(rows, (*columns, ("OFFICIAL", "IsOfficial")), template)


def _canonical(name: str) -> str:
    """Return the whole name of an image, as docker prints it last."""
    registry = registry_of(name)
    if registry != "docker.io":
        return name
    path = name.partition("/")[2] if name.partition("/")[0].endswith("docker.io") else name
    return f"docker.io/{path}" if "/" in path else f"docker.io/library/{path}"

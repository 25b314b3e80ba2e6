# SPDX-License-Identifier: Apache-2.0
"""``proa images``, ``rmi``, ``tag``, ``history``. Source: docker image references."""

from __future__ import annotations

import time

import click

from proa.cli import values
from proa.cli.context import get_client, report
from proa.cli.table import print_rows
from proa.cli.times import format_ago, format_size
from proa.client.client import filters_query
from proa.client.errors import ApiError
from proa.wire import routes
from proa.wire.images import ImageDeleted, ImageHistoryItem, ImagesPruned, ImageSummary


@click.command()
@click.option("-a", "--all", "all_", is_flag=True, help="Show all images (default hides intermediate images)")
@click.option("--digests", is_flag=True, help="Show digests")
@click.option("-f", "--filter", "filters", multiple=True, metavar="FILTER", help="Filter output")
@click.option("--format", "template", help="Format output: table, json or a template")
@click.option("--no-trunc", is_flag=True, help="Don't truncate output")
@click.option("-q", "--quiet", is_flag=True, help="Only show image IDs")
@click.argument("repository", required=False)
@click.pass_context
def images(
    ctx: click.Context,
    repository: str | None,
    all_: bool,
    digests: bool,
    filters: tuple[str, ...],
    template: str | None,
    no_trunc: bool,
    quiet: bool,
) -> None:
    """List images, or those of one REPOSITORY[:TAG]."""
    wanted = dict(values.parse_filters(filters))
    if repository:
        wanted["reference"] = [*wanted.get("reference", []), repository]
    query = {"all": all_, "filters": filters_query(wanted)}
    found = get_client(ctx).call(routes.IMAGE_LIST, query=query, returns=list[ImageSummary])
    rows = [row for image in found for row in _rows(image, no_trunc=no_trunc)]
    if quiet:
        for identifier in dict.fromkeys(row["ID"] for row in rows):
            click.echo(identifier)
        return
    columns = [("REPOSITORY", "Repository"), ("TAG", "Tag")]
    columns += [("DIGEST", "Digest")] if digests else []
    columns += [("IMAGE ID", "ID"), ("CREATED", "CreatedSince"), ("SIZE", "Size")]
    print_rows(rows, columns, template)


@click.command()
@click.option("-f", "--force", is_flag=True, help="Force removal of the image")
@click.option("--no-prune", is_flag=True, help="Do not delete untagged parents")
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def rmi(ctx: click.Context, names: tuple[str, ...], force: bool, no_prune: bool) -> None:
    """Remove one or more images by NAME or id."""
    client = get_client(ctx)
    failed = False
    for name in names:
        try:
            query = {"force": force, "noprune": no_prune}
            done = client.call(routes.IMAGE_DELETE, query=query, returns=list[ImageDeleted], name=name)
        except ApiError as error:
            if force and error.status == 404:
                continue
            report(error)
            failed = True
        else:
            print_deleted(done)
    if failed:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("source")
@click.argument("target")
@click.pass_context
def tag(ctx: click.Context, source: str, target: str) -> None:
    """Create a tag TARGET that refers to SOURCE."""
    repository, name = values.split_tag(target)
    get_client(ctx).do(routes.IMAGE_TAG, query={"repo": repository, "tag": name}, name=source)


@click.command()
@click.option("--format", "template", help="Format output: table, json or a template")
@click.option("-H", "--human/--no-human", default=True, help="Print sizes and dates in human readable format")
@click.option("--no-trunc", is_flag=True, help="Don't truncate output")
@click.option("-q", "--quiet", is_flag=True, help="Only show image IDs")
@click.argument("image")
@click.pass_context
def history(
    ctx: click.Context, image: str, template: str | None, human: bool, no_trunc: bool, quiet: bool
) -> None:
    """Show the history of IMAGE."""
    found = get_client(ctx).call(routes.IMAGE_HISTORY, returns=list[ImageHistoryItem], name=image)
    rows = []
    for item in found:
        command = " ".join(item.created_by.split())
        identifier = item.id.removeprefix("sha256:")
        rows.append(
            {
                "ID": identifier if no_trunc else identifier[:12],
                "CreatedSince": format_ago(item.created) if item.created > 0 else "N/A",
                "CreatedAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(max(item.created, 0))),
                "CreatedBy": command if no_trunc or len(command) <= 45 else command[:44] + "…",
                "Size": format_size(item.size) if human else str(item.size),
                "Comment": item.comment,
            }
        )
    if quiet:
        for row in rows:
            click.echo(row["ID"])
        return
    created = "CreatedSince" if human else "CreatedAt"
    columns = (("IMAGE", "ID"), ("CREATED", created), ("CREATED BY", "CreatedBy"), ("SIZE", "Size"))
    print_rows(rows, (*columns, ("COMMENT", "Comment")), template)


@click.command("prune")
@click.option("-a", "--all", "all_", is_flag=True, help="Remove all unused images, not just dangling ones")
@click.option("--filter", "filters", multiple=True, metavar="FILTER", help="Provide filter values")
@click.option("-f", "--force", is_flag=True, help="Do not prompt for confirmation")
@click.pass_context
def prune(ctx: click.Context, all_: bool, filters: tuple[str, ...], force: bool) -> None:
    """Remove unused images."""
    what = "all images without at least one container associated to them" if all_ else "all dangling images"
    if not force:
        click.confirm(f"WARNING! This will remove {what}.\nAre you sure you want to continue?", abort=True)
    wanted = {**values.parse_filters(filters), "dangling": ["false" if all_ else "true"]}
    query = {"filters": filters_query(wanted)}
    done = get_client(ctx).call(routes.IMAGE_PRUNE, query=query, returns=ImagesPruned)
    if done.images_deleted:
        click.echo("Deleted Images:")
        print_deleted(done.images_deleted)
        click.echo("")
    click.echo(f"Total reclaimed space: {format_size(done.space_reclaimed)}")


def print_deleted(entries: list[ImageDeleted]) -> None:
    for entry in entries:
        click.echo(f"Deleted: {entry.deleted}" if entry.deleted else f"Untagged: {entry.untagged}")


def _rows(image: ImageSummary, *, no_trunc: bool) -> list[dict[str, str]]:
    digest = next((text.partition("@")[2] for text in image.repo_digests), "<none>")
    rows = []
    for name in image.repo_tags or ["<none>:<none>"]:
        repository, tag_ = values.split_tag(name)
        rows.append(
            {
                "Repository": repository,
                "Tag": tag_ or "<none>",
                "Digest": digest,
                "ID": image.id if no_trunc else image.id.removeprefix("sha256:")[:12],
                "CreatedSince": format_ago(image.created) if image.created > 0 else "N/A",
                "CreatedAt": time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(max(image.created, 0))),
                "Size": format_size(image.size),
            }
        )
    return rows

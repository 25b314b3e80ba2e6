# SPDX-License-Identifier: Apache-2.0
"""``proa build`` and ``proa builder prune``. Source: docker image build and docker builder references."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from proa.build.git_address import is_git_context
from proa.cli import credentials, values
from proa.cli.build_output import parse_output, write_output
from proa.cli.build_progress import BuildFailed, show_build
from proa.cli.context import get_client
from proa.cli.local_context import open_context, pack_directory
from proa.cli.times import format_size
from proa.client.client import filters_query
from proa.wire import routes
from proa.wire.builds import (
    CONTEXTS_PARAMETER,
    REGISTRY_CONFIG_HEADER,
    SECRETS_HEADER,
    BuildLine,
    PruneReport,
)
from proa.wire.registries import encode_auths
from proa.wire.sections import join_streams

SECRET_MAX_BYTES = 64 * 1024  # they travel in a header


@click.command()
@click.option("-t", "--tag", "tags", multiple=True, metavar="NAME[:TAG]", help="Name and optionally a tag")
@click.option("-f", "--file", "dockerfile", metavar="PATH", help="Name of the Dockerfile")
@click.option("--build-arg", "build_args", multiple=True, metavar="NAME[=VALUE]", help="Set a build argument")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Set metadata for the image")
@click.option("--target", default="", help="Set the target build stage to build")
@click.option("--no-cache", is_flag=True, help="Do not use cache when building the image")
@click.option("--cache-from", multiple=True, metavar="IMAGE", help="Images to consider as cache sources")
@click.option("--pull", is_flag=True, help="Always attempt to pull newer versions of the images")
@click.option("--platform", default="", help="Set the target platform")
@click.option("--network", default="", help="Set the networking mode for RUN instructions")
@click.option("--add-host", "hosts", multiple=True, metavar="HOST:IP", help="Add a custom host-to-IP mapping")
@click.option("--secret", "secrets", multiple=True, metavar="id=NAME[,src=FILE]", help="A secret for RUN")
@click.option("--ssh", multiple=True, metavar="SPEC", help="SSH agent to expose (cannot be carried: refused)")
@click.option(
    "--build-context",
    "contexts",
    multiple=True,
    metavar="NAME=SOURCE",
    help="Additional context: a directory, docker-image://IMAGE, target:STAGE, an address",
)
@click.option(
    "--allow", multiple=True, metavar="ENTITLEMENT", help="Allow network.host or security.insecure to RUN"
)
@click.option("-m", "--memory", default="", metavar="BYTES", help="Memory limit of RUN")
@click.option("--memory-swap", default="", metavar="BYTES", help="Swap and memory; -1 for unlimited swap")
@click.option("-c", "--cpu-shares", type=int, help="CPU shares (relative weight)")
@click.option("--cpu-period", type=int, help="Limit the CPU CFS period")
@click.option("--cpu-quota", type=int, help="Limit the CPU CFS quota")
@click.option("--cpuset-cpus", default="", help="CPUs in which to allow execution (0-3, 0,1)")
@click.option("--cpuset-mems", default="", help="MEMs in which to allow execution (0-3, 0,1)")
@click.option("--shm-size", default="", metavar="BYTES", help="Size of /dev/shm")
@click.option("--ulimit", "ulimits", multiple=True, metavar="NAME=SOFT[:HARD]", help="Ulimit options")
@click.option("--cgroup-parent", default="", help="Parent cgroup of the containers that RUN makes")
@click.option("--isolation", default="", help="Container isolation technology")
@click.option("--security-opt", multiple=True, help="Security options")
@click.option("--rm/--no-rm", "remove", default=True, help="Remove intermediate containers")
@click.option("--force-rm", is_flag=True, help="Always remove intermediate containers (they are anyway)")
@click.option("--iidfile", metavar="FILE", help="Write the image ID to the file")
@click.option("--metadata-file", metavar="FILE", help="Write what was built to the file, as JSON")
@click.option(
    "--progress", type=click.Choice(["auto", "plain", "tty", "quiet"]), default="auto", help="Style of output"
)
@click.option("-q", "--quiet", is_flag=True, help="Suppress the build output and print the image ID")
@click.option(
    "-o", "--output", default="", metavar="DEST", help="Write the files out: a path, type=local|tar,dest=PATH"
)
@click.option("--load", is_flag=True, help="The image goes into the engine anyway")
@click.argument("path")
@click.pass_context
def build(ctx: click.Context, /, path: str, **options: Any) -> None:  # Any: click's options
    """Build an image from a Dockerfile. PATH is a directory, - for standard input, or an address.

    Secrets travel to the daemon with the request. Docker's classic build API has no way to reach the client's
    SSH agent: --ssh is refused.
    """
    _refuse(options)
    output = parse_output(options["output"])
    context = open_context(path, options["dockerfile"])
    query = _query(options, context.dockerfile, context.remote)
    headers = _headers(options["secrets"])
    named, directories = _read_contexts(options["contexts"])
    query[CONTEXTS_PARAMETER] = json.dumps(named) if named else None
    body = join_streams([context.pieces, *directories]) if directories else context.pieces
    client = get_client(ctx)
    lines = client.iter_json(routes.IMAGE_BUILD, BuildLine, query=query, body=body, headers=headers)
    try:
        image_id = show_build(
            lines, quiet=options["quiet"], style=options["progress"], is_image=output.type == "image"
        )
    except BuildFailed as error:
        click.echo(f"ERROR: {error}", err=True)
        raise click.exceptions.Exit(error.code or 1) from error
    if output.type != "image":
        write_output(client, image_id, output)
    if options["iidfile"] and image_id:
        Path(options["iidfile"]).write_text(image_id)
    if options["metadata_file"] and image_id:
        told = {"containerimage.config.digest": image_id, "image.name": ",".join(options["tags"])}
        Path(options["metadata_file"]).write_text(json.dumps(told, indent=2) + "\n")


@click.group()
def builder() -> None:
    """Manage the build cache."""


builder.add_command(build)


@builder.command("prune")
@click.option("-a", "--all", "all_", is_flag=True, help="Remove all build cache, not just what no image has")
@click.option("--filter", "filters", multiple=True, metavar="FILTER", help="Provide filter values")
@click.option("-f", "--force", is_flag=True, help="Do not prompt for confirmation")
@click.option("--keep-storage", default="", metavar="BYTES", help="Amount of disk space to keep for cache")
@click.pass_context
def prune(ctx: click.Context, all_: bool, filters: tuple[str, ...], force: bool, keep_storage: str) -> None:
    """Remove build cache."""
    if not force:
        what = "all build cache" if all_ else "all dangling build cache"
        click.confirm(f"WARNING! This will remove {what}. Are you sure you want to continue?", abort=True)
    query = {
        "all": all_,
        "filters": filters_query(values.parse_filters(filters)),
        "keep-storage": values.parse_size(keep_storage) if keep_storage else None,
    }
    report = get_client(ctx).call(routes.BUILD_PRUNE, returns=PruneReport, query=query)
    for name in report.caches_deleted or ():
        click.echo(name)
    click.echo(f"Total:\t{format_size(report.space_reclaimed)}")


def _refuse(options: dict[str, Any]) -> None:  # Any: click's options
    if options["ssh"]:
        raise click.ClickException("--ssh: the classic build API has no way to reach the client's SSH agent")


def _read_contexts(entries: tuple[str, ...]) -> tuple[dict[str, str], list[Iterator[bytes]]]:
    """Return the named contexts as the daemon reads them, and the tars of those that are directories here."""
    named: dict[str, str] = {}
    directories: list[Iterator[bytes]] = []
    for entry in entries:
        name, equals, source = entry.partition("=")
        if not (name and equals and source):
            raise click.ClickException(f"invalid context value: {entry}, expected key=value")
        if name in named:
            raise click.ClickException(f"--build-context: {name} is given twice")
        is_address = source.startswith(("docker-image://", "target:", "http://", "https://"))
        named[name] = source if is_address or is_git_context(source) else ""
        if not named[name]:
            directories.append(pack_directory(source))
    return named, directories


def _query(options: dict[str, Any], dockerfile: str, remote: str) -> dict[str, Any]:  # Any: as above
    build_args: dict[str, str | None] = {}
    for entry in options["build_args"]:
        name, equals, value = entry.partition("=")
        build_args[name] = value if equals else os.environ.get(name)
    return {
        "t": list(options["tags"]),
        "dockerfile": dockerfile,
        "remote": remote,
        "buildargs": json.dumps(build_args) if build_args else None,
        "labels": json.dumps(values.parse_labels(options["labels"])) if options["labels"] else None,
        "target": options["target"],
        "nocache": options["no_cache"],
        "cachefrom": json.dumps(list(options["cache_from"])) if options["cache_from"] else None,
        "pull": options["pull"],
        "platform": options["platform"],
        "networkmode": options["network"],
        "extrahosts": list(options["hosts"]),
        "memory": values.parse_size(options["memory"]) if options["memory"] else None,
        "memswap": values.parse_swap(options["memory_swap"]) if options["memory_swap"] else None,
        "cpushares": options["cpu_shares"],
        "cpuperiod": options["cpu_period"],
        "cpuquota": options["cpu_quota"],
        "cpusetcpus": options["cpuset_cpus"],
        "cpusetmems": options["cpuset_mems"],
        "shmsize": values.parse_size(options["shm_size"]) if options["shm_size"] else None,
        "ulimits": _ulimits(options["ulimits"]),
        "cgroupparent": options["cgroup_parent"],
        "isolation": options["isolation"],
        "securityopt": list(options["security_opt"]),
        "rm": options["remove"],
        "forcerm": options["force_rm"],
        "q": options["quiet"],
        "allow": list(options["allow"]),
    }


def _ulimits(entries: tuple[str, ...]) -> str | None:
    limits = [values.parse_ulimit(entry) for entry in entries]
    found = [{"Name": one.name, "Soft": one.soft, "Hard": one.hard} for one in limits]
    return json.dumps(found) if found else None


def _headers(secrets: tuple[str, ...]) -> dict[str, str]:
    headers: dict[str, str] = {}
    known = credentials.find_all()
    if known:
        headers[REGISTRY_CONFIG_HEADER] = encode_auths(known)
    found = dict(_read_secret(entry) for entry in secrets)
    if found:
        document = {name: base64.b64encode(data).decode() for name, data in found.items()}
        headers[SECRETS_HEADER] = base64.urlsafe_b64encode(json.dumps(document).encode()).decode()
        if len(headers[SECRETS_HEADER]) > SECRET_MAX_BYTES:
            raise click.ClickException(f"--secret: at most {SECRET_MAX_BYTES * 9 // 16} bytes altogether")
    return headers


def _read_secret(text: str) -> tuple[str, bytes]:
    fields = dict(part.strip().partition("=")[::2] for part in text.split(","))
    name = fields.get("id", "")
    source = fields.get("src") or fields.get("source") or ""
    variable = fields.get("env", "")
    if not name:
        raise click.ClickException(f"--secret: id is missing in '{text}'")
    if variable or (fields.get("type") == "env") or (not source and name in os.environ):
        value = os.environ.get(variable or source or name)
        if value is None:
            raise click.ClickException(f"--secret {name}: environment variable {variable or name} is not set")
        return name, value.encode(errors="surrogateescape")
    try:
        return name, Path(source or name).read_bytes()
    except OSError as error:
        raise click.ClickException(f"--secret {name}: {source or name}: {error.strerror}") from error

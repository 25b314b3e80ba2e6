# SPDX-License-Identifier: Apache-2.0
"""``proa machine``: full machines that carry an engine of their own, whose socket is on this host.

Source: docs/reference/machine.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

import click

from proa.cli import values
from proa.cli.context import for_each, get_client
from proa.cli.machine_disk import START, write_context
from proa.cli.machine_forward import Forwarder
from proa.cli.machine_ssh import Place, close_connection, ssh_words, wait_until_up
from proa.cli.table import print_rows
from proa.cli.times import format_size
from proa.client.client import Client, filters_query
from proa.client.errors import ApiError, ClientError
from proa.model.machine import MachineConfig, MachineNic
from proa.wire import routes, vm_routes
from proa.wire.builds import BuildLine
from proa.wire.vms import Vm, VmCreated

DEFAULT_NAME = "proa-machine"
LABEL = "io.proa.machine"
_PIECE = 1 << 20
_SOCKET_S = 60.0  # for ssh to begin to listen
_NAME = re.compile(
    r"[a-z0-9][a-z0-9-]{0,40}"
)  # an image is called so for a while, and a path of a socket has it
_name = click.argument("name", default=DEFAULT_NAME)


@click.group()
def machine() -> None:
    """Manage machines that carry an engine of their own."""


@machine.command()
@click.option(
    "--image", "base", default="", metavar="IMAGE", help="Image that has what an engine needs [built]"
)
@click.option("--cpus", type=int, default=2, help="Processors [2]")
@click.option("-m", "--memory", default="2g", help="Memory [2g]")
@click.option("--disk-size", default="20g", metavar="SIZE", help="Size of the disk [20g]")
@click.option("--network", default="", metavar="NAME", help="Network to be on [bridge]")
@click.option(
    "-v", "--volume", "volumes", multiple=True, metavar="HOST:GUEST", help="Refused: nothing is shared"
)
@click.option("--now", is_flag=True, help="Start it as well")
@_name
@click.pass_context
def init(ctx: click.Context, /, name: str, **flags: object) -> None:
    """Make a machine; without --image its image is built of Debian, with this proa in it."""
    if flags["volumes"]:
        raise click.UsageError(
            "--volume: folders of the host cannot be shared with a machine yet; docker cp copies"
        )
    if _NAME.fullmatch(name) is None:
        raise click.UsageError(f"invalid name of a machine: {name!r} (small letters, digits and -)")
    client, place = _local_client(ctx), Place(name)
    if place.kept.exists() or _find(client, name) is not None:
        raise click.ClickException(f"there is a machine {name} already: proa machine rm {name}")
    config = MachineConfig(
        cpus=int(str(flags["cpus"])),
        memory=values.parse_size(str(flags["memory"])),
        image=f"proa-machine/{name}:new",
        image_disk_size=values.parse_size(str(flags["disk_size"])),
        cmd=[START],
        kernel_arguments="proa.modules=engine",
        nics=[MachineNic(network=str(flags["network"]))],
        headless=True,
        labels={LABEL: "1"},
    )
    place.kept.mkdir(mode=0o700, parents=True)
    try:
        _make(client, place, str(flags["base"]), config)
    except BaseException:
        shutil.rmtree(place.kept, ignore_errors=True)
        raise
    click.echo(name)
    if flags["now"]:
        _start(ctx, client, place)


@machine.command()
@_name
@click.pass_context
def start(ctx: click.Context, name: str) -> None:
    """Start a machine, and wait until its engine answers."""
    _start(ctx, _local_client(ctx), Place(name))


@machine.command()
@click.option("-t", "--timeout", type=int, help="Seconds before it is ended by force [60]")
@_name
@click.pass_context
def stop(ctx: click.Context, name: str, timeout: int | None) -> None:
    """Stop a machine, with all that runs in it."""
    client = get_client(ctx)
    _get(client, name)
    for_each([name], lambda one: client.do(vm_routes.VM_STOP, query={"t": timeout}, id=one))
    close_connection(Place(name))


@machine.command(context_settings={"ignore_unknown_options": True})
@click.argument("name", default=DEFAULT_NAME)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def ssh(ctx: click.Context, name: str, command: tuple[str, ...]) -> None:
    """Log in to a machine as root, or run COMMAND there."""
    address = _address(_get(get_client(ctx), name))
    words = [*ssh_words(Place(name)), f"root@{address}", *command]
    os.execvp(words[0], words)


@machine.command("ls")
@click.option("--format", "template", help="Format output: table, json or a template")
@click.pass_context
def list_(ctx: click.Context, template: str | None) -> None:
    """List machines."""
    query = {"filters": filters_query({"label": [LABEL]})}
    found = get_client(ctx).call(vm_routes.VM_LIST, query=query, returns=list[Vm])
    rows = [
        {
            "Name": one.name,
            "State": one.state,
            "Cpus": str(one.config.cpus),
            "Memory": format_size(one.config.memory),
            "Socket": str(Place(one.name).socket) if one.state == "running" else "",
        }
        for one in found
    ]
    columns = (
        ("NAME", "Name"),
        ("STATE", "State"),
        ("CPUS", "Cpus"),
        ("MEMORY", "Memory"),
        ("SOCKET", "Socket"),
    )
    print_rows(rows, columns, template)


@machine.command()
@_name
@click.pass_context
def inspect(ctx: click.Context, name: str) -> None:
    """Display detailed information on a machine."""
    client = get_client(ctx)
    _get(client, name)
    found = client.call(vm_routes.VM_INSPECT, returns=dict[str, object], id=name)
    found["Socket"] = str(Place(name).socket)
    click.echo(json.dumps(found, indent=4, ensure_ascii=False))


@machine.command()
@click.option("-f", "--force", is_flag=True, help="Remove it even while it runs")
@_name
@click.pass_context
def rm(ctx: click.Context, name: str, force: bool) -> None:
    """Remove a machine, with its disk and all that is in it."""
    client, place = get_client(ctx), Place(name)
    if _find(client, name) is not None or not place.kept.exists():
        _get(client, name)
        client.do(vm_routes.VM_DELETE, query={"force": force}, id=name)
        close_connection(place)
    shutil.rmtree(place.kept, ignore_errors=True)
    shutil.rmtree(place.run, ignore_errors=True)
    _docker("context", "rm", "-f", name)
    click.echo(name)


@machine.command(hidden=True)
@_name
@click.pass_context
def serve(ctx: click.Context, name: str) -> None:
    """Carry the engine's socket and the published ports, until the machine is off."""
    # Not as a command that prints: a connection that has gone is an error here, and no end.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    Forwarder(_local_client(ctx), Place(name)).run()


# --- machinery ---


def _local_client(ctx: click.Context) -> Client:
    client = get_client(ctx)
    if not client.endpoint.is_local:
        raise click.ClickException(
            "a machine's socket and addresses are on the daemon's host: run proa there"
        )
    return client


def _find(client: Client, name: str) -> Vm | None:
    try:
        return client.call(vm_routes.VM_INSPECT, returns=Vm, id=name)
    except ApiError as error:
        if error.status == 404:
            return None
        raise


def _get(client: Client, name: str) -> Vm:
    found = client.call(vm_routes.VM_INSPECT, returns=Vm, id=name)
    if LABEL not in (found.config.labels or {}):
        raise click.ClickException(f"{name} is no machine of proa machine: see proa vm")
    return found


def _address(found: Vm) -> str:
    if not found.networks:
        raise click.ClickException(f"{found.name} is {found.state}: proa machine start {found.name}")
    return found.networks[0].address.partition("/")[0]


def _make(client: Client, place: Place, base: str, config: MachineConfig) -> None:
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", place.name, "-f", str(place.kept / "key")]
    try:
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise click.ClickException("ssh is not installed: apt install openssh-client") from None
    with tempfile.TemporaryFile() as context:
        write_context(context, base=base, key=(place.kept / "key.pub").read_text())
        context.seek(0)
        query = {"t": config.image}
        for line in client.iter_json(routes.IMAGE_BUILD, BuildLine, query=query, body=_pieces(context)):
            if line.error:
                raise click.ClickException(f"the image of the machine cannot be built: {line.error}")
    try:
        client.call(vm_routes.VM_CREATE, query={"name": place.name}, body=config, returns=VmCreated)
    finally:
        with suppress(ApiError):
            client.call(routes.IMAGE_DELETE, returns=list[object], name=config.image)


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def _start(ctx: click.Context, client: Client, place: Place) -> None:
    found = _get(client, place.name)
    if found.state != "running":
        client.do(vm_routes.VM_START, id=place.name)
    wait_until_up(place, _address(_get(client, place.name)))
    place.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    words = [sys.executable, "-c", "from proa.cli.main import main; main()", "-H", client.endpoint.host]
    with (place.run / "log").open("ab") as log:
        subprocess.Popen(
            [*words, "machine", "serve", place.name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    host = f"unix://{place.socket}"
    _wait_for_socket(host)
    _docker("context", "create", place.name, "--docker", f"host={host}")
    click.echo(
        f"{place.name} is up. Its engine: docker --context {place.name}, or DOCKER_HOST={host}", err=True
    )


def _wait_for_socket(host: str) -> None:
    deadline = time.monotonic() + _SOCKET_S
    while True:
        try:
            with Client(host) as engine, engine.stream(routes.PING):
                return
        except ClientError as error:
            if time.monotonic() > deadline:
                raise click.ClickException(f"{host} does not answer: {error}") from error
        time.sleep(0.1)


def _docker(*words: str) -> None:
    """Tell docker, when it is there; what it has already it keeps."""
    with suppress(FileNotFoundError):
        subprocess.run(
            ["docker", *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

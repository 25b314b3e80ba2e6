# SPDX-License-Identifier: Apache-2.0
"""``proa vm``: full machines. Source: docs/reference/vm.md."""

from __future__ import annotations

import json
from typing import Any

import click

from proa.cli import values, vm_copies, vm_guest, vm_parts
from proa.cli.context import for_each, get_client
from proa.cli.table import print_rows, render
from proa.cli.times import format_size
from proa.cli.vm_flags import absolute, parse_cloud_init, parse_disk, parse_nics
from proa.client.client import filters_query
from proa.model.machine import MachineConfig
from proa.wire import vm_routes as routes
from proa.wire.vms import Vm, VmCreated, VmUpdate

_names = click.argument("names", nargs=-1, required=True)


@click.group()
def vm() -> None:
    """Manage full virtual machines: any guest system, from a disk image, an installer or a kernel."""


@vm.command()
@click.option("--name", default="", help="Name of the machine")
@click.option(
    "--disk",
    "disks",
    multiple=True,
    metavar="[NAME=]IMAGE[:SIZE]|[NAME=]SIZE",
    help="Copy of a qcow2 or raw image, or a blank disk",
)
@click.option("--from-image", "image", default="", metavar="IMAGE", help="Image to make the root disk of")
@click.option("--root-size", default="", metavar="SIZE", help="Size of the root disk of the image [8g]")
@click.option("--cdrom", default="", metavar="FILE", help="ISO image to boot when no disk does")
@click.option("--kernel", default="", metavar="FILE", help="Kernel to boot")
@click.option("--initrd", default="", metavar="FILE", help="Initial ram disk of the kernel")
@click.option("--append", "arguments", default="", metavar="WORDS", help="Command line of the kernel")
@click.option("--firmware", default="", metavar="KIND", help="bios, uefi, uefi-secure, or a file")
@click.option("--arch", default="", help="x86_64, aarch64 or riscv64 [the host's]")
@click.option("--cpus", type=int, default=1, help="Processors [1]")
@click.option("-m", "--memory", default="512m", help="Memory [512m]")
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="NAME[,ip=…,mac=…,alias=…]",
    help="Network to be on; none for none [bridge]",
)
@click.option("-p", "--publish", multiple=True, help="Publish a port to the host")
@click.option("--hostname", default="", help="Host name told to the guest [the name]")
@click.option("--user", default="", help="cloud-init: user to make")
@click.option(
    "--ssh-key", "keys", multiple=True, metavar="FILE", help="cloud-init: public key that may log in"
)
@click.option("--password", default="", help="cloud-init: password of the user")
@click.option("--package", "packages", multiple=True, help="cloud-init: package to install")
@click.option("--user-data", default="", metavar="FILE", help="cloud-init: a whole document")
@click.option("--cloud-init", is_flag=True, help="cloud-init: host name only")
@click.option("--tpm", is_flag=True, help="A TPM 2.0")
@click.option("--headless", is_flag=True, help="No display, no VNC: a serial console only")
@click.option("--autostart", is_flag=True, help="Start it when the host has started")
@click.option("-l", "--label", multiple=True, metavar="KEY=VALUE", help="Set metadata")
@click.option("--start", is_flag=True, help="Start it as well")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def create(ctx: click.Context, /, **flags: Any) -> None:  # Any: click's values, by flag name
    """Create a machine. Files are those of the daemon's host; key and user-data files are read here.

    COMMAND, after --, is what an image runs in place of its own kernel, init or command.
    """
    _, bindings = values.parse_ports(flags["publish"], ())
    config = MachineConfig(
        architecture=flags["arch"],
        cpus=flags["cpus"],
        memory=values.parse_size(flags["memory"]),
        firmware=absolute(flags["firmware"]) if "/" in flags["firmware"] else flags["firmware"],
        kernel=absolute(flags["kernel"]),
        initrd=absolute(flags["initrd"]),
        kernel_arguments=flags["arguments"],
        disks=[parse_disk(text) for text in flags["disks"]] or None,
        cdrom=absolute(flags["cdrom"]),
        image=flags["image"],
        image_disk_size=values.parse_size(flags["root_size"]) if flags["root_size"] else 0,
        cmd=list(flags["command"]) or None,
        cloud_init=parse_cloud_init(flags),
        nics=parse_nics(flags["networks"]),
        port_bindings=bindings or None,
        hostname=flags["hostname"],
        autostart=flags["autostart"],
        headless=flags["headless"],
        tpm=flags["tpm"],
        labels=values.parse_labels(flags["label"]) or None,
    )
    client = get_client(ctx)
    made = client.call(routes.VM_CREATE, query={"name": flags["name"]}, body=config, returns=VmCreated)
    if flags["start"]:
        client.do(routes.VM_START, id=made.id)
    click.echo(made.name)


@vm.command("ls")
@click.option("-f", "--filter", "filters", multiple=True, metavar="FILTER", help="Provide filter values")
@click.option("--format", "template", help="Format output: table, json or a template")
@click.option("-q", "--quiet", is_flag=True, help="Only display names")
@click.pass_context
def list_(ctx: click.Context, filters: tuple[str, ...], template: str | None, quiet: bool) -> None:
    """List machines."""
    query = {"filters": filters_query(values.parse_filters(filters))}
    found = get_client(ctx).call(routes.VM_LIST, query=query, returns=list[Vm])
    rows = [_row(one) for one in found]
    if quiet:
        for row in rows:
            click.echo(row["Name"])
        return
    columns = (
        ("NAME", "Name"),
        ("STATE", "State"),
        ("CPUS", "Cpus"),
        ("MEMORY", "Memory"),
        ("ADDRESS", "Address"),
        ("PORTS", "Ports"),
    )
    print_rows(rows, columns, template)


@vm.command()
@click.option("-f", "--format", "template", help="Format output using a template, or json")
@_names
@click.pass_context
def inspect(ctx: click.Context, names: tuple[str, ...], template: str | None) -> None:
    """Display detailed information on one or more machines."""
    client = get_client(ctx)
    found = [client.call(routes.VM_INSPECT, returns=dict[str, Any], id=name) for name in names]
    if template and template != "json":
        for one in found:
            click.echo(render(template, one))
        return
    click.echo(json.dumps(found, indent=None if template else 4, ensure_ascii=False))


# --- life ---


@vm.command()
@_names
@click.pass_context
def start(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Start one or more machines."""
    client = get_client(ctx)
    for_each(names, lambda name: client.do(routes.VM_START, id=name))


@vm.command()
@click.option("-t", "--timeout", type=int, help="Seconds before it is ended by force [60]")
@click.option("-f", "--force", is_flag=True, help="End it at once: the guest is not asked")
@_names
@click.pass_context
def stop(ctx: click.Context, names: tuple[str, ...], timeout: int | None, force: bool) -> None:
    """Press the power button of one or more machines, and wait until they are off."""
    client = get_client(ctx)
    query = {"t": 0 if force else timeout}
    for_each(names, lambda name: client.do(routes.VM_STOP, query=query, id=name))


@vm.command()
@_names
@click.pass_context
def kill(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Pull the plug of one or more machines."""
    client = get_client(ctx)
    for_each(names, lambda name: client.do(routes.VM_KILL, id=name))


@vm.command()
@click.option("-t", "--timeout", type=int, help="Seconds before it is ended by force [60]")
@click.option("--hard", is_flag=True, help="Press the reset button: the guest is not asked")
@_names
@click.pass_context
def reboot(ctx: click.Context, names: tuple[str, ...], timeout: int | None, hard: bool) -> None:
    """Shut down one or more machines, and start them again."""
    client = get_client(ctx)
    for_each(names, lambda name: client.do(routes.VM_REBOOT, query={"t": timeout, "hard": hard}, id=name))


@vm.command()
@_names
@click.pass_context
def pause(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Halt the processors of one or more machines."""
    client = get_client(ctx)
    for_each(names, lambda name: client.do(routes.VM_PAUSE, id=name))


@vm.command()
@_names
@click.pass_context
def resume(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Let one or more paused machines go on."""
    client = get_client(ctx)
    for_each(names, lambda name: client.do(routes.VM_RESUME, id=name))


@vm.command()
@click.option("-f", "--force", is_flag=True, help="Remove it even while it runs")
@_names
@click.pass_context
def rm(ctx: click.Context, names: tuple[str, ...], force: bool) -> None:
    """Remove one or more machines, with their disks."""
    client = get_client(ctx)
    for_each(names, lambda name: client.do(routes.VM_DELETE, query={"force": force}, id=name))


@vm.command()
@click.argument("name")
@click.argument("new_name")
@click.pass_context
def rename(ctx: click.Context, name: str, new_name: str) -> None:
    """Rename a machine."""
    get_client(ctx).do(routes.VM_RENAME, query={"name": new_name}, id=name)


@vm.command("set")
@click.option("--cpus", type=int, help="Processors, of a stopped machine")
@click.option("-m", "--memory", help="Memory, of a stopped machine")
@click.argument("name")
@click.pass_context
def set_(ctx: click.Context, name: str, cpus: int | None, memory: str | None) -> None:
    """Change what a machine has."""
    if cpus is None and memory is None:
        raise click.UsageError("nothing to change: --cpus or --memory")
    change = VmUpdate(cpus=cpus, memory=values.parse_size(memory) if memory else None)
    get_client(ctx).do(routes.VM_UPDATE, body=change, id=name)


@vm.command()
@click.option("--disable", is_flag=True, help="Do not start it any more")
@_names
@click.pass_context
def autostart(ctx: click.Context, names: tuple[str, ...], disable: bool) -> None:
    """Start one or more machines whenever the host has started."""
    client = get_client(ctx)
    change = VmUpdate(autostart=not disable)
    for_each(names, lambda name: client.do(routes.VM_UPDATE, body=change, id=name))


for _command in (*vm_copies.COMMANDS, *vm_guest.COMMANDS, *vm_parts.GROUPS):
    vm.add_command(_command)


def _row(one: Vm) -> dict[str, str]:
    ports = [
        f"{binding.host_ip}:{binding.host_port}->{key}"
        for key, bindings in (one.ports or {}).items()
        for binding in bindings
    ]
    return {
        "ID": one.id[:12],
        "Name": one.name,
        "State": one.state,
        "Cpus": str(one.config.cpus),
        "Memory": format_size(one.config.memory),
        "Address": ", ".join(found.address.partition("/")[0] for found in one.networks or ()),
        "Ports": ", ".join(ports),
        "Reason": one.reason,
    }

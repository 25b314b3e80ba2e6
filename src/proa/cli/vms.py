# SPDX-License-Identifier: Apache-2.0
"""``proa vm``: full machines. Source: docs/reference/vm.md."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from proa.cli import values
from proa.cli.context import for_each, get_client
from proa.cli.table import print_rows, render
from proa.cli.terminal import is_terminal, pump, raw_terminal
from proa.cli.times import format_size
from proa.client.client import filters_query
from proa.model.machine import CloudInit, MachineConfig, MachineDisk, MachineNic
from proa.wire import vm_routes as routes
from proa.wire.detach import parse_detach_keys
from proa.wire.vms import (
    Vm,
    VmCreated,
    VmDiskAdded,
    VmDiskResize,
    VmExec,
    VmExecResult,
    VmSnapshot,
    VmSnapshotSave,
    VmStats,
    VmUpdate,
    VmVnc,
)

CONSOLE_KEYS = "ctrl-]"  # as virsh; the daemon looks for ctrl-p,ctrl-q as well
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
        firmware=_absolute(flags["firmware"]) if "/" in flags["firmware"] else flags["firmware"],
        kernel=_absolute(flags["kernel"]),
        initrd=_absolute(flags["initrd"]),
        kernel_arguments=flags["arguments"],
        disks=[parse_disk(text) for text in flags["disks"]] or None,
        cdrom=_absolute(flags["cdrom"]),
        image=flags["image"],
        image_disk_size=values.parse_size(flags["root_size"]) if flags["root_size"] else 0,
        cmd=list(flags["command"]) or None,
        cloud_init=_cloud_init(flags),
        nics=_nics(flags["networks"]),
        port_bindings=bindings or None,
        hostname=flags["hostname"],
        autostart=flags["autostart"],
        headless=flags["headless"],
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


# --- looking at it ---


@vm.command()
@click.option(
    "--detach-keys", default=CONSOLE_KEYS, help="Keys that leave the console [ctrl-]; ctrl-p,ctrl-q]"
)
@click.argument("name")
@click.pass_context
def console(ctx: click.Context, name: str, detach_keys: str) -> None:
    """Connect to the serial console of a running machine."""
    try:
        keys = parse_detach_keys(detach_keys)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    hijacked = get_client(ctx).hijack(routes.VM_CONSOLE, tty=True, id=name)
    if is_terminal(0):
        click.echo(f"Connected to {name}; {detach_keys} or ctrl-p,ctrl-q leaves.", err=True)
    with raw_terminal(wanted=True):
        pump(hijacked, stdin=True, detach_keys=keys)
    hijacked.close()


@vm.command()
@click.argument("name")
@click.pass_context
def logs(ctx: click.Context, name: str) -> None:
    """Print what is kept of the serial console."""
    with get_client(ctx).stream(routes.VM_LOGS, id=name) as answer:
        sys.stdout.buffer.write(answer.read())


@vm.command()
@click.argument("name")
@click.argument("file")
@click.pass_context
def screenshot(ctx: click.Context, name: str, file: str) -> None:
    """Write the screen of a machine to FILE as PNG; - is the standard output."""
    with get_client(ctx).stream(routes.VM_SCREENSHOT, id=name) as answer:
        content = answer.read()
    if file == "-":
        sys.stdout.buffer.write(content)
    else:
        Path(file).write_bytes(content)


@vm.command()
@click.argument("name")
@click.pass_context
def vnc(ctx: click.Context, name: str) -> None:
    """Let a VNC client in: print where, and a password for the next minute."""
    found = get_client(ctx).call(routes.VM_VNC, returns=VmVnc, id=name)
    click.echo(f"{found.host}:{found.port} password {found.password} (for {found.valid_seconds} s)")


@vm.command()
@_names
@click.pass_context
def stats(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Print what running machines take of the host."""
    client = get_client(ctx)
    rows = []
    for name in names:
        found = client.call(routes.VM_STATS, returns=VmStats, id=name)
        rows.append(
            {
                "Name": name,
                "Cpu": f"{found.cpu_ns / 1e9:.1f} s",
                "Memory": format_size(found.memory_bytes),
                "Io": f"{format_size(found.read_bytes)} / {format_size(found.write_bytes)}",
            }
        )
    print_rows(rows, (("NAME", "Name"), ("CPU TIME", "Cpu"), ("MEMORY", "Memory"), ("DISK I/O", "Io")), None)


@vm.command()
@click.argument("name")
@click.pass_context
def port(ctx: click.Context, name: str) -> None:
    """List the published ports of a running machine."""
    found = get_client(ctx).call(routes.VM_INSPECT, returns=Vm, id=name)
    for key, bindings in sorted((found.ports or {}).items()):
        for binding in bindings:
            click.echo(f"{key} -> {binding.host_ip}:{binding.host_port}")


@vm.command(context_settings={"ignore_unknown_options": True})
@click.option("-l", "--user", default="", help="User to log in as [the one that cloud-init made]")
@click.argument("name")
@click.argument("command", nargs=-1)
@click.pass_context
def ssh(ctx: click.Context, name: str, user: str, command: tuple[str, ...]) -> None:
    """Log in to a running machine by ssh, at its address on its first network."""
    found = get_client(ctx).call(routes.VM_INSPECT, returns=Vm, id=name)
    if not found.networks:
        raise click.ClickException(f"{name} is {found.state} and has no address")
    user = user or (found.config.cloud_init.user if found.config.cloud_init else "")
    address = found.networks[0].address.partition("/")[0]
    # Every machine has a new key, and addresses are used again: what ssh remembers would be another's.
    words = [
        "ssh",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "LogLevel=ERROR",
    ]
    try:
        os.execvp("ssh", [*words, f"{user}@{address}" if user else address, *command])
    except FileNotFoundError:
        raise click.ClickException("ssh is not installed: apt install openssh-client") from None


@vm.command("exec", context_settings={"ignore_unknown_options": True})
@click.option("-e", "--env", multiple=True, metavar="KEY=VALUE", help="Set environment variables")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input, read to its end first")
@click.option("-t", "--timeout", type=int, default=60, help="Seconds to wait for it [60]")
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def exec_(
    ctx: click.Context,
    name: str,
    command: tuple[str, ...],
    env: tuple[str, ...],
    interactive: bool,
    timeout: int,
) -> None:
    """Run COMMAND in a guest by its qemu-guest-agent, and print what it wrote when it has ended."""
    body = VmExec(
        cmd=list(command),
        env=list(env) or None,
        stdin=sys.stdin.buffer.read() if interactive else b"",
        timeout=timeout,
    )
    done = get_client(ctx).call(routes.VM_EXEC, body=body, returns=VmExecResult, id=name)
    sys.stdout.buffer.write(done.stdout)
    sys.stdout.buffer.flush()
    sys.stderr.buffer.write(done.stderr)
    if done.truncated:
        click.echo("(the guest agent kept only the beginning of the output)", err=True)
    raise click.exceptions.Exit(done.exit_code)


# --- snapshots ---


@vm.group()
def snapshot() -> None:
    """Manage snapshots: of a running machine with its memory, of a stopped one of its disks."""


@snapshot.command("create")
@click.argument("name")
@click.argument("snapshot")
@click.pass_context
def snapshot_create(ctx: click.Context, name: str, snapshot: str) -> None:
    """Keep the present state of a machine."""
    get_client(ctx).do(routes.VM_SNAPSHOT_SAVE, body=VmSnapshotSave(name=snapshot), id=name)


@snapshot.command("ls")
@click.argument("name")
@click.pass_context
def snapshot_list(ctx: click.Context, name: str) -> None:
    """List the snapshots of a machine."""
    found = get_client(ctx).call(routes.VM_SNAPSHOT_LIST, returns=list[VmSnapshot], id=name)
    rows = [
        {
            "Name": one.name,
            "Created": one.created,
            "Memory": format_size(one.memory_bytes) if one.memory_bytes else "none",
        }
        for one in found
    ]
    print_rows(rows, (("NAME", "Name"), ("CREATED", "Created"), ("MEMORY", "Memory")), None)


@snapshot.command("restore")
@click.argument("name")
@click.argument("snapshot")
@click.pass_context
def snapshot_restore(ctx: click.Context, name: str, snapshot: str) -> None:
    """Go back to a snapshot; what has changed since is lost."""
    get_client(ctx).do(routes.VM_SNAPSHOT_LOAD, id=name, snapshot=snapshot)


@snapshot.command("rm")
@click.argument("name")
@click.argument("snapshot")
@click.pass_context
def snapshot_remove(ctx: click.Context, name: str, snapshot: str) -> None:
    """Forget a snapshot."""
    get_client(ctx).do(routes.VM_SNAPSHOT_DELETE, id=name, snapshot=snapshot)


# --- disks and networks ---


@vm.group()
def disk() -> None:
    """Manage the disks of a machine."""


@disk.command("add")
@click.argument("name")
@click.argument("what", metavar="[NAME=]IMAGE[:SIZE]|[NAME=]SIZE")
@click.pass_context
def disk_add(ctx: click.Context, name: str, what: str) -> None:
    """Give a stopped machine one more disk."""
    client = get_client(ctx)
    click.echo(client.call(routes.VM_DISK_ADD, body=parse_disk(what), returns=VmDiskAdded, id=name).name)


@disk.command("resize")
@click.argument("name")
@click.argument("disk")
@click.argument("size")
@click.pass_context
def disk_resize(ctx: click.Context, name: str, disk: str, size: str) -> None:
    """Let a disk grow to SIZE."""
    body = VmDiskResize(size=values.parse_size(size))
    get_client(ctx).do(routes.VM_DISK_RESIZE, body=body, id=name, disk=disk)


@disk.command("rm")
@click.argument("name")
@click.argument("disk")
@click.pass_context
def disk_remove(ctx: click.Context, name: str, disk: str) -> None:
    """Remove a disk of a stopped machine, with all that is on it."""
    get_client(ctx).do(routes.VM_DISK_DELETE, id=name, disk=disk)


@vm.group()
def network() -> None:
    """Manage the networks of a stopped machine."""


@network.command("connect")
@click.argument("name")
@click.argument("network", metavar="NETWORK[,ip=…,mac=…,alias=…]")
@click.pass_context
def network_connect(ctx: click.Context, name: str, network: str) -> None:
    """Put a machine on one more network."""
    get_client(ctx).do(routes.VM_CONNECT, body=_nic(network), id=name)


@network.command("disconnect")
@click.argument("name")
@click.argument("network")
@click.pass_context
def network_disconnect(ctx: click.Context, name: str, network: str) -> None:
    """Take a machine off a network."""
    get_client(ctx).do(routes.VM_DISCONNECT, id=name, network=network)


# --- reading flags ---


def parse_disk(text: str) -> MachineDisk:
    """Read ``[NAME=]IMAGE[:SIZE]`` or ``[NAME=]SIZE``; an image has a slash or a dot in it."""
    name, separator, rest = text.partition("=")
    if not separator or "/" in name:
        name, rest = "", text
    if "/" not in rest and not Path(rest.partition(":")[0]).is_file():
        return MachineDisk(name=name, size=values.parse_size(rest))
    source, colon, size = rest.rpartition(":")
    if not colon:
        source, size = rest, ""
    return MachineDisk(name=name, source=_absolute(source), size=values.parse_size(size) if size else 0)


def _absolute(name: str) -> str:
    return str(Path(name).expanduser().absolute()) if name else ""


def _nics(networks: tuple[str, ...]) -> list[MachineNic] | None:
    if not networks:
        return None
    return [] if networks == ("none",) else [_nic(text) for text in networks]


def _nic(text: str) -> MachineNic:
    name, *options = text.split(",")
    fields = dict(word.partition("=")[::2] for word in options)
    unknown = set(fields) - {"ip", "mac", "alias"}
    if unknown:
        raise click.BadParameter(f"invalid network option: {min(unknown)}")
    aliases = [fields["alias"]] if "alias" in fields else None
    return MachineNic(network=name, address=fields.get("ip", ""), mac=fields.get("mac", ""), aliases=aliases)


def _cloud_init(flags: dict[str, Any]) -> CloudInit | None:  # Any: as in create
    keys = [line for file in flags["keys"] for line in _read(file).splitlines() if line.strip()]
    wanted = CloudInit(
        user=flags["user"],
        ssh_keys=keys or None,
        password=flags["password"],
        packages=list(flags["packages"]) or None,
        user_data=_read(flags["user_data"]) if flags["user_data"] else "",
    )
    return wanted if wanted != CloudInit() or flags["cloud_init"] else None


def _read(name: str) -> str:
    try:
        return Path(name).read_text()
    except OSError as error:
        raise click.BadParameter(f"open {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{name} contains invalid utf8 bytes") from error


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

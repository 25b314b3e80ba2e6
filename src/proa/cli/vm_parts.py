# SPDX-License-Identifier: Apache-2.0
"""``proa vm snapshot``, ``disk`` and ``network``: what a machine is made of. Source: docs/reference/vm.md."""

from __future__ import annotations

import click

from proa.cli import values
from proa.cli.context import get_client
from proa.cli.table import print_rows
from proa.cli.times import format_since, format_size
from proa.cli.vm_flags import parse_disk, parse_nic
from proa.wire import vm_routes as routes
from proa.wire.vms import VmDiskAdded, VmDiskResize, VmSnapshot, VmSnapshotSave

# --- snapshots ---


@click.group()
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
            "CreatedSince": format_since(one.created),
            "Memory": format_size(one.memory_bytes) if one.memory_bytes else "none",
        }
        for one in found
    ]
    print_rows(rows, (("NAME", "Name"), ("CREATED", "CreatedSince"), ("MEMORY", "Memory")), None)


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


@click.group()
def disk() -> None:
    """Manage the disks of a machine."""


@disk.command("add")
@click.argument("name")
@click.argument("what", metavar="[NAME=]IMAGE[:SIZE]|[NAME=]SIZE")
@click.pass_context
def disk_add(ctx: click.Context, name: str, what: str) -> None:
    """Give a machine one more disk, while it runs too."""
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
    """Remove a disk, with all that is on it; of a running machine one that was added since its start."""
    get_client(ctx).do(routes.VM_DISK_DELETE, id=name, disk=disk)


@click.group()
def network() -> None:
    """Manage the networks of a stopped machine."""


@network.command("connect")
@click.argument("name")
@click.argument("network", metavar="NETWORK[,ip=…,mac=…,alias=…]")
@click.pass_context
def network_connect(ctx: click.Context, name: str, network: str) -> None:
    """Put a machine on one more network."""
    get_client(ctx).do(routes.VM_CONNECT, body=parse_nic(network), id=name)


@network.command("disconnect")
@click.argument("name")
@click.argument("network")
@click.pass_context
def network_disconnect(ctx: click.Context, name: str, network: str) -> None:
    """Take a machine off a network."""
    get_client(ctx).do(routes.VM_DISCONNECT, id=name, network=network)


GROUPS = (snapshot, disk, network)

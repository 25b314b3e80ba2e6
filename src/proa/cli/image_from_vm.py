# SPDX-License-Identifier: Apache-2.0
"""``proa image from-vm``. Source: docs/reference/vm.md."""

from __future__ import annotations

import click

from proa.cli import values
from proa.cli.context import get_client
from proa.wire import vm_routes as routes
from proa.wire.vms import VmImage


@click.command("from-vm")
@click.option("-t", "--tag", default="", metavar="NAME[:TAG]", help="Name of the image")
@click.option("-c", "--change", "changes", multiple=True, help="Apply a Dockerfile instruction to the image")
@click.option("-m", "--message", default="", help="Message of the image's history")
@click.argument("name")
@click.pass_context
def from_vm(ctx: click.Context, tag: str, changes: tuple[str, ...], message: str, name: str) -> None:
    """Make an image of the root file system of a full machine that is off."""
    repository, tag = values.split_tag(tag)
    query = {"repo": repository, "tag": tag, "comment": message, "changes": list(changes)}
    click.echo(get_client(ctx).call(routes.VM_IMAGE, query=query, returns=VmImage, id=name).id)

# SPDX-License-Identifier: Apache-2.0
"""``proa network``. Source: docker network references."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network

import click
from msgspec.structs import replace

from proa.cli import values
from proa.cli.context import for_each, get_client
from proa.cli.inspect import inspect_objects
from proa.cli.table import print_rows
from proa.client.client import filters_query
from proa.model.config import EndpointIpamConfig, EndpointSettings
from proa.wire import routes
from proa.wire.networks import (
    Ipam,
    IpamConfig,
    Network,
    NetworkConnectRequest,
    NetworkCreated,
    NetworkCreateRequest,
    NetworkDisconnectRequest,
    NetworksPruned,
)


@click.group()
def network() -> None:
    """Manage networks."""


@network.command()
@click.option("-d", "--driver", default="bridge", help="Driver to manage the network [bridge]")
@click.option("--attachable", is_flag=True, help="Enable manual container attachment")
@click.option("--aux-address", multiple=True, metavar="NAME=ADDRESS", help="Address no container may get")
@click.option("--gateway", multiple=True, help="IPv4 or IPv6 gateway for the subnet")
@click.option("--internal", is_flag=True, help="Restrict external access to the network")
@click.option("--ip-range", multiple=True, help="Allocate container ip from a sub-range")
@click.option(
    "--ipv4", type=bool, is_flag=False, flag_value=True, help="Enable IPv4 address assignment [true]"
)
@click.option("--ipv6", is_flag=True, help="Enable IPv6 address assignment")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="Set metadata on a network")
@click.option("-o", "--opt", multiple=True, metavar="KEY=VALUE", help="Set driver specific options")
@click.option("--subnet", multiple=True, help="Subnet in CIDR format that represents a network segment")
@click.argument("name")
@click.pass_context
def create(
    ctx: click.Context,
    name: str,
    driver: str,
    attachable: bool,
    aux_address: tuple[str, ...],
    gateway: tuple[str, ...],
    internal: bool,
    ip_range: tuple[str, ...],
    ipv4: bool | None,
    ipv6: bool,
    label: tuple[str, ...],
    opt: tuple[str, ...],
    subnet: tuple[str, ...],
) -> None:
    """Create a network NAME."""
    pools = {one: IpamConfig(subnet=one) for one in subnet}
    for text in gateway:
        owner = _owner(text, pools, "gateway")
        pools[owner] = replace(pools[owner], gateway=text)
    for text in ip_range:
        owner = _owner(text.partition("/")[0], pools, "ip-range")
        pools[owner] = replace(pools[owner], ip_range=text)
    for name_of, text in values.parse_labels(aux_address).items():
        owner = _owner(text, pools, "aux-address")
        known = pools[owner].auxiliary_addresses or {}
        pools[owner] = replace(pools[owner], auxiliary_addresses={**known, name_of: text})
    request = NetworkCreateRequest(
        name=name,
        driver=driver,
        attachable=attachable,
        internal=internal,
        enable_ipv4=ipv4,
        enable_ipv6=ipv6 or None,
        ipam=Ipam(config=list(pools.values()) or None),
        options=values.parse_labels(opt) or None,
        labels=values.parse_labels(label) or None,
    )
    done = get_client(ctx).call(routes.NETWORK_CREATE, body=request, returns=NetworkCreated)
    if done.warning:
        click.echo(f"WARNING: {done.warning}", err=True)
    click.echo(done.id)


@network.command("ls")
@click.option("-f", "--filter", "filters", multiple=True, metavar="FILTER", help="Provide filter values")
@click.option("--format", "template", help="Format output: table, json or a template")
@click.option("--no-trunc", is_flag=True, help="Do not truncate the output")
@click.option("-q", "--quiet", is_flag=True, help="Only display network IDs")
@click.pass_context
def list_(
    ctx: click.Context, filters: tuple[str, ...], template: str | None, no_trunc: bool, quiet: bool
) -> None:
    """List networks."""
    query = {"filters": filters_query(values.parse_filters(filters))}
    found = get_client(ctx).call(routes.NETWORK_LIST, query=query, returns=list[Network])
    rows = [
        {
            "ID": one.id if no_trunc else one.id[:12],
            "Name": one.name,
            "Driver": one.driver,
            "Scope": one.scope,
            "Internal": str(one.internal).lower(),
            "Labels": ",".join(f"{key}={value}" for key, value in sorted((one.labels or {}).items())),
        }
        for one in sorted(found, key=lambda one: one.name)
    ]
    if quiet:
        for row in rows:
            click.echo(row["ID"])
        return
    columns = (("NETWORK ID", "ID"), ("NAME", "Name"), ("DRIVER", "Driver"), ("SCOPE", "Scope"))
    print_rows(rows, columns, template)


@network.command("inspect")
@click.option("-f", "--format", "template", help="Format output using a template, or json")
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def inspect_(ctx: click.Context, names: tuple[str, ...], template: str | None) -> None:
    """Display detailed information on one or more networks."""
    inspect_objects(get_client(ctx), names, template, kind="network")


@network.command("rm")
@click.option("-f", "--force", is_flag=True, help="Do not error if the network does not exist")
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def remove(ctx: click.Context, names: tuple[str, ...], force: bool) -> None:
    """Remove one or more networks."""
    client = get_client(ctx)
    del force
    for_each(names, lambda name: client.do(routes.NETWORK_DELETE, id=name))


@network.command()
@click.option("--alias", multiple=True, help="Add network-scoped alias for the container")
@click.option("--gw-priority", default=0, help="Highest gw-priority provides the default gateway")
@click.option("--ip", default="", help="IPv4 address")
@click.option("--ip6", default="", help="IPv6 address")
@click.argument("name")
@click.argument("container")
@click.pass_context
def connect(
    ctx: click.Context, name: str, container: str, alias: tuple[str, ...], gw_priority: int, ip: str, ip6: str
) -> None:
    """Connect CONTAINER to the network NAME."""
    addresses = EndpointIpamConfig(i_pv4_address=ip, i_pv6_address=ip6)
    settings = EndpointSettings(
        aliases=list(alias) or None, gw_priority=gw_priority, ipam_config=addresses if ip or ip6 else None
    )
    body = NetworkConnectRequest(container=container, endpoint_config=settings)
    get_client(ctx).do(routes.NETWORK_CONNECT, body=body, id=name)


@network.command()
@click.option("-f", "--force", is_flag=True, help="Force the container to disconnect from a network")
@click.argument("name")
@click.argument("container")
@click.pass_context
def disconnect(ctx: click.Context, name: str, container: str, force: bool) -> None:
    """Disconnect CONTAINER from the network NAME."""
    body = NetworkDisconnectRequest(container=container, force=force)
    get_client(ctx).do(routes.NETWORK_DISCONNECT, body=body, id=name)


@network.command()
@click.option("--filter", "filters", multiple=True, metavar="FILTER", help="Provide filter values")
@click.option("-f", "--force", is_flag=True, help="Do not prompt for confirmation")
@click.pass_context
def prune(ctx: click.Context, filters: tuple[str, ...], force: bool) -> None:
    """Remove all unused networks."""
    if not force:
        click.confirm(
            "WARNING! This will remove all custom networks not used by at least one container.\n"
            "Are you sure you want to continue?",
            abort=True,
        )
    query = {"filters": filters_query(values.parse_filters(filters))}
    done = get_client(ctx).call(routes.NETWORK_PRUNE, query=query, returns=NetworksPruned)
    if done.networks_deleted:
        click.echo("Deleted Networks:")
        for name in done.networks_deleted:
            click.echo(name)


def _owner(text: str, pools: Mapping[str, IpamConfig], what: str) -> str:
    """Return the subnet that holds an address."""
    try:
        address = ip_address(text)
        owner = next((one for one in pools if address in ip_network(one, strict=False)), None)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if owner is None:
        raise click.UsageError(f"no matching subnet for {what} {text}")
    return owner

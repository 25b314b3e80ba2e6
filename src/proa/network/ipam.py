# SPDX-License-Identifier: Apache-2.0
"""Which subnet a network gets, and which address a container. Pure: what is taken comes as an argument.

Source: moby daemon/libnetwork/ipamutils (default pools), daemon/libnetwork/ipamapi/errors.go (wording).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network

from proa.model.errors import Forbidden, InvalidParameter, Unavailable
from proa.model.network import NetworkRequest

MIN_PREFIX = 30  # network, gateway, one container, broadcast


def default_pools() -> Iterator[IPv4Network]:
    """Yield the subnets tried in turn for a network that names none: Docker's, then podman's."""
    for second in range(17, 32):
        yield IPv4Network((f"172.{second}.0.0", 16))
    yield IPv4Network("10.88.0.0/16")
    yield from IPv4Network("192.168.0.0/16").subnets(new_prefix=20)
    yield from IPv4Network("10.89.0.0/16").subnets(new_prefix=24)


def choose_subnet(taken: Collection[IPv4Network]) -> IPv4Network:
    """Return the first default subnet that shares no address with those taken.

    :raises Unavailable: all of them do.
    """
    for pool in default_pools():
        if not any(pool.overlaps(other) for other in taken):
            return pool
    raise Unavailable(
        "all predefined address pools have been fully subnetted: could not find an available, "
        "non-overlapping IPv4 address pool; name one with --subnet"
    )


def check_pool(request: NetworkRequest, ours: Iterable[IPv4Network]) -> None:
    """Check the addresses a request names against each other and against our other networks.

    :raises InvalidParameter: they do not fit together.
    :raises Forbidden: the subnet overlaps with that of another network.
    """
    subnet = request.subnet
    if subnet is None:
        if request.gateway is not None:
            raise InvalidParameter(f"no matching subnet for gateway {request.gateway}")
        if request.ip_range is not None:
            raise InvalidParameter(f"no matching subnet for range {request.ip_range}")
        return
    if subnet.prefixlen > MIN_PREFIX:
        raise InvalidParameter(f"invalid subnet {subnet}: it has no room for a gateway and a container")
    if subnet.is_multicast or subnet.is_loopback or subnet.network_address.is_unspecified:
        raise InvalidParameter(f"invalid subnet {subnet}: it cannot be used by a bridge network")
    if request.gateway is not None and request.gateway not in subnet:
        raise InvalidParameter(f"no matching subnet for gateway {request.gateway}")
    if request.gateway in (subnet.network_address, subnet.broadcast_address):
        raise InvalidParameter(f"invalid gateway {request.gateway}: it is not the address of a host")
    if request.ip_range is not None and not request.ip_range.subnet_of(subnet):
        raise InvalidParameter(f"no matching subnet for range {request.ip_range}")
    if any(subnet.overlaps(other) for other in ours):
        raise Forbidden("invalid pool request: Pool overlaps with other one on this address space")


def choose_gateway(subnet: IPv4Network) -> IPv4Address:
    """Return the first host address of the subnet."""
    return subnet.network_address + 1


def choose_address(
    subnet: IPv4Network, ip_range: IPv4Network | None, taken: Collection[IPv4Address]
) -> IPv4Address:
    """Return the lowest free host address. ``taken`` includes the gateway.

    :raises Forbidden: there is none left.
    """
    pool = ip_range or subnet
    reserved = (subnet.network_address, subnet.broadcast_address)
    for number in range(int(pool.network_address), int(pool.broadcast_address) + 1):
        address = IPv4Address(number)
        if address not in taken and address not in reserved:
            return address
    raise Forbidden("no available IPv4 addresses on this network's address pools")


def check_address(address: IPv4Address, subnet: IPv4Network, taken: Collection[IPv4Address]) -> None:
    """Check an address that a user asks for.

    :raises InvalidParameter: it is not an address of a host in the subnet.
    :raises Forbidden: it is taken.
    """
    if address not in subnet or address in (subnet.network_address, subnet.broadcast_address):
        raise InvalidParameter(f"no configured subnet or ip-range contain the IP address {address}")
    if address in taken:
        raise Forbidden("Address already in use")


def mac_of(address: IPv4Address) -> str:
    """Return the MAC address of whoever has this IP address: 02:42 and its four bytes.

    The same address always comes with the same MAC, so what neighbours remember stays true when a container
    is replaced by another.
    """
    return ":".join(f"{byte:02x}" for byte in b"\x02\x42" + address.packed)

# SPDX-License-Identifier: Apache-2.0
"""Which subnet a network gets, and which address a container. Pure: what is taken comes as an argument.

Source: moby daemon/libnetwork/ipamutils (default pools), daemon/libnetwork/ipamapi/errors.go (wording).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from proa.model.errors import Forbidden, InvalidParameter, Unavailable
from proa.model.network import NetworkRequest

MIN_PREFIX = 30  # network, gateway, one container, broadcast
MIN_PREFIX6 = 126

Subnet = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


def default_pools() -> Iterator[IPv4Network]:
    """Yield the subnets tried in turn for a network that names none: Docker's, then podman's."""
    for second in range(17, 32):
        yield IPv4Network((f"172.{second}.0.0", 16))
    yield IPv4Network("10.88.0.0/16")
    yield from IPv4Network("192.168.0.0/16").subnets(new_prefix=20)
    yield from IPv4Network("10.89.0.0/16").subnets(new_prefix=24)


def choose_subnet(taken: Collection[Subnet]) -> IPv4Network:
    """Return the first default subnet that shares no address with those taken.

    :raises Unavailable: all of them do.
    """
    for pool in default_pools():
        if not any(overlap(pool, other) for other in taken):
            return pool
    raise Unavailable(
        "all predefined address pools have been fully subnetted: could not find an available, "
        "non-overlapping IPv4 address pool; name one with --subnet"
    )


def choose_subnet6(network_id: str) -> IPv6Network:
    """Return the private prefix of a network: fd, 56 bits that no other network has, and room for 64.

    :param network_id: random hex digits. Source: RFC 4193, section 3.
    """
    return IPv6Network((bytes([0xFD]) + bytes.fromhex(network_id[:14]) + bytes(8), 64))


def check_pool(request: NetworkRequest, ours: Iterable[Subnet]) -> None:
    """Check the addresses a request names against each other and against our other networks.

    :raises InvalidParameter: they do not fit together.
    :raises Forbidden: the subnet overlaps with that of another network.
    """
    others = list(ours)
    _check_family(request.subnet, request.gateway, request.ip_range, others)
    _check_family(request.subnet6, request.gateway6, request.ip_range6, others)
    for name, address in request.auxiliary.items():
        subnet = request.subnet if address.version == 4 else request.subnet6
        if subnet is None or address not in subnet:
            raise InvalidParameter(f"no matching subnet for aux-address {address} ({name})")
        if address in (request.gateway, request.gateway6):
            raise Forbidden(
                f"failed to allocate secondary ip address ({name}:{address}): Address already in use"
            )


def _check_family(
    subnet: Subnet | None, gateway: Address | None, ip_range: Subnet | None, ours: Iterable[Subnet]
) -> None:
    if subnet is None:
        if gateway is not None:
            raise InvalidParameter(f"no matching subnet for gateway {gateway}")
        if ip_range is not None:
            raise InvalidParameter(f"no matching subnet for range {ip_range}")
        return
    if subnet.prefixlen > (MIN_PREFIX if subnet.version == 4 else MIN_PREFIX6):
        raise InvalidParameter(f"invalid subnet {subnet}: it has no room for a gateway and a container")
    first = subnet.network_address
    if first.is_multicast or first.is_loopback or first.is_unspecified:
        raise InvalidParameter(f"invalid subnet {subnet}: it cannot be used by a bridge network")
    if gateway is not None and gateway not in subnet:
        raise InvalidParameter(f"no matching subnet for gateway {gateway}")
    if gateway is not None and gateway in reserved(subnet):
        raise InvalidParameter(f"invalid gateway {gateway}: it is not the address of a host")
    if ip_range is not None and not _is_within(ip_range, subnet):
        raise InvalidParameter(f"no matching subnet for range {ip_range}")
    if any(overlap(subnet, other) for other in ours):
        raise Forbidden("invalid pool request: Pool overlaps with other one on this address space")


def reserved(subnet: Subnet) -> tuple[Address, ...]:
    """Return the addresses that are no host's: the first, and of IPv4 the last (broadcast)."""
    if subnet.version == 6:
        return (subnet.network_address,)
    return (subnet.network_address, subnet.broadcast_address)


def overlap(one: Subnet, other: Subnet) -> bool:
    """Tell whether two subnets share an address."""
    return one.version == other.version and one.overlaps(other)


def _is_within(inner: Subnet, outer: Subnet) -> bool:
    return inner.network_address in outer and inner.prefixlen >= outer.prefixlen


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


def choose_gateway6(subnet: IPv6Network) -> IPv6Address:
    """Return the first host address of the subnet."""
    return subnet.network_address + 1


def choose_address6(
    subnet: IPv6Network, ip_range: IPv6Network | None, taken: Collection[IPv6Address], *, like: int
) -> IPv6Address:
    """Return the host address with number ``like`` in its subnet if that is free, else the lowest free one.

    The number is that of the container's IPv4 address: the two, and the MAC that follows from one of them,
    always come together, so what neighbours remember stays true.

    :raises Forbidden: there is none left.
    """
    pool = ip_range or subnet
    if 0 < like < pool.num_addresses and pool.network_address + like not in taken:
        return pool.network_address + like
    for number in range(int(pool.network_address), int(pool.broadcast_address) + 1):
        address = IPv6Address(number)
        if address not in taken and address != subnet.network_address:
            return address
    raise Forbidden("no available IPv6 addresses on this network's address pools")


def check_address(address: Address, subnet: Subnet, taken: Collection[Address]) -> None:
    """Check an address that a user asks for.

    :raises InvalidParameter: it is not an address of a host in the subnet.
    :raises Forbidden: it is taken.
    """
    if address not in subnet or address in reserved(subnet):
        raise InvalidParameter(f"no configured subnet or ip-range contain the IP address {address}")
    if address in taken:
        raise Forbidden("Address already in use")


def mac_of(address: Address) -> str:
    """Return the MAC address of whoever has this IP address: 02:42 and its last four bytes.

    The same address always comes with the same MAC, so what neighbours remember stays true when a container
    is replaced by another.
    """
    return ":".join(f"{byte:02x}" for byte in b"\x02\x42" + address.packed[-4:])

# SPDX-License-Identifier: Apache-2.0
"""What a network becomes of a request for one: the defaults of every driver. Pure."""

from __future__ import annotations

from ipaddress import IPv4Network

from proa.model.ids import NetworkId, short
from proa.model.network import Network, NetworkRequest
from proa.network import ipam
from proa.network.request import DEFAULT_MTU, OPTION_BRIDGE_NAME, OPTION_MTU


def network_of(
    request: NetworkRequest,
    *,
    network_id: NetworkId,
    subnet: IPv4Network | None,
    created_at_ns: int,
    parent_mtu: int = 0,
) -> Network:
    """Return the network that a checked request makes.

    :param subnet: the request's, or one that was chosen for it; None for a network without IPv4.
    :param parent_mtu: of the device that a network of a parent driver is on, which it cannot exceed.
    """
    subnet6 = request.subnet6
    if request.ipv6 and subnet6 is None:
        subnet6 = ipam.choose_subnet6(network_id)
    gateway = request.gateway
    if subnet is not None and gateway is None:
        gateway = ipam.choose_gateway(subnet)
    gateway6 = request.gateway6
    if subnet6 is not None and gateway6 is None:
        gateway6 = ipam.choose_gateway6(subnet6)
    is_bridge = request.driver == "bridge"
    return Network(
        id=network_id,
        name=request.name,
        driver=request.driver,
        created_at_ns=created_at_ns,
        internal=request.internal,
        attachable=request.attachable,
        subnet=subnet,
        ip_range=request.ip_range,
        gateway=gateway,
        subnet6=subnet6,
        ip_range6=request.ip_range6,
        gateway6=gateway6,
        auxiliary=dict(request.auxiliary),
        bridge=request.options.get(OPTION_BRIDGE_NAME, f"pn-{short(network_id)}") if is_bridge else "",
        mtu=int(request.options.get(OPTION_MTU, parent_mtu or DEFAULT_MTU)),
        options=dict(request.options),
        labels=dict(request.labels),
    )

# SPDX-License-Identifier: Apache-2.0
"""What a user may ask of a network: names that are taken for good, drivers, options. Pure.

Source: moby daemon/network.go, daemon/libnetwork/drivers/bridge/labels.go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address

from proa.host.rtnetlink import IFNAME_MAX, IPVLAN_MODES, MACVLAN_MODES
from proa.model.errors import Forbidden, InvalidParameter, NotFound
from proa.model.network import NetworkRequest

DEFAULT_NETWORK = "bridge"
PREDEFINED = {DEFAULT_NETWORK: "bridge", "host": "host", "none": "null"}  # name: driver

OPTION_BRIDGE_NAME = "com.docker.network.bridge.name"
OPTION_ICC = "com.docker.network.bridge.enable_icc"
OPTION_MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
OPTION_MTU = "com.docker.network.driver.mtu"
OPTION_HOST_BINDING = "com.docker.network.bridge.host_binding_ipv4"
OPTION_GATEWAY_MODES = (
    "com.docker.network.bridge.gateway_mode_ipv4",
    "com.docker.network.bridge.gateway_mode_ipv6",
)
OPTION_PARENT = "parent"
PARENT_DRIVERS = {
    "macvlan": ("macvlan_mode", "bridge", tuple(MACVLAN_MODES)),
    "ipvlan": ("ipvlan_mode", "l2", tuple(IPVLAN_MODES)),
}
"""Drivers whose networks are on a device of the host: the option that names a mode, its default, and all."""

MTU_MIN, MTU_MAX = 68, 65535  # of IPv4: RFC 791, and the kernel's limit for a veth
DEFAULT_MTU = 1500
_SWITCHES = (OPTION_ICC, OPTION_MASQUERADE)
_TRUE = ("1", "t", "true")  # Go's strconv.ParseBool, which Docker uses
_FALSE = ("0", "f", "false")
_DEVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def check_request(request: NetworkRequest) -> None:
    """Check all of a request but its addresses.

    :raises InvalidParameter, Forbidden, NotFound: the name, an option, or the driver will not do.
    """
    if not request.ipv4 and not request.ipv6:
        raise InvalidParameter("IPv4 or IPv6 must be enabled")
    if not request.name.strip():
        raise InvalidParameter("network name cannot be empty")
    if request.name in (*PREDEFINED, "default"):
        raise Forbidden(f"operation is not permitted on predefined {request.name} network")
    if request.driver in ("host", "null"):
        raise Forbidden(f'only one instance of "{request.driver}" network is allowed')
    if request.driver in PARENT_DRIVERS:
        _check_parent(request)
    elif request.driver != "bridge":
        raise NotFound(f"could not find plugin {request.driver} in v1 plugin registry: plugin not found")
    device = request.options.get(OPTION_BRIDGE_NAME)
    if device is not None and (len(device) > IFNAME_MAX or not _DEVICE_NAME.fullmatch(device)):
        raise _bad_option(OPTION_BRIDGE_NAME, device)
    mtu = request.options.get(OPTION_MTU)
    if mtu is not None and not (mtu.isdecimal() and MTU_MIN <= int(mtu) <= MTU_MAX):
        raise _bad_option(OPTION_MTU, mtu)
    try:
        host_binding(request.options)
    except ValueError:
        raise _bad_option(OPTION_HOST_BINDING, request.options[OPTION_HOST_BINDING]) from None
    for option in OPTION_GATEWAY_MODES:
        if request.options.get(option, "nat") != "nat":
            raise InvalidParameter(
                f"{option}={request.options[option]} is not supported: proa translates (nat)"
            )
    for option in _SWITCHES:
        value = request.options.get(option, "true")
        if value.lower() not in _TRUE + _FALSE:
            raise _bad_option(option, value)


def host_binding(options: Mapping[str, str]) -> IPv4Address:
    """Return the address on which a network publishes ports that name none."""
    return IPv4Address(options.get(OPTION_HOST_BINDING) or 0)


def mode_of(driver: str, options: Mapping[str, str]) -> str:
    """Return the mode of a network on a parent device."""
    option, default, _modes = PARENT_DRIVERS[driver]
    return options.get(option, default)


def _check_parent(request: NetworkRequest) -> None:
    _option, _default, modes = PARENT_DRIVERS[request.driver]
    mode = mode_of(request.driver, request.options)
    if mode not in modes:
        raise InvalidParameter(f"unknown {request.driver} mode: {mode}: use one of {', '.join(modes)}")
    parent = request.options.get(OPTION_PARENT, "")
    if not parent:
        raise InvalidParameter(
            f"a {request.driver} network needs the device of the host that it is on: -o parent=eth0"
        )
    if parent and (len(parent) > IFNAME_MAX or not _DEVICE_NAME.fullmatch(parent)):
        raise _bad_option(OPTION_PARENT, parent)


def is_off(options: Mapping[str, str], option: str) -> bool:
    """Tell whether a switch that is on by default has been turned off."""
    return options.get(option, "true").lower() in _FALSE


def _bad_option(option: str, value: str) -> InvalidParameter:
    return InvalidParameter(f'invalid value for option {option}: "{value}"')

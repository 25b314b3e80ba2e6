# SPDX-License-Identifier: Apache-2.0
"""What a user asks of one network: driver options, link-local addresses."""

from __future__ import annotations

from ipaddress import IPv4Interface
from typing import Any

import pytest

from proa.engine.networking import check_live_options, endpoint_requests, endpoint_sysctls
from proa.model.config import EndpointIpamConfig, EndpointSettings
from proa.model.errors import InvalidParameter
from proa.model.ids import NetworkId
from proa.model.task import Interface

OPTION = "com.docker.network.endpoint."


def asked(**options: str) -> dict[str, EndpointSettings]:
    driver_opts = {OPTION + name: value for name, value in options.items()}
    return {"back": EndpointSettings(driver_opts=driver_opts, network_id="1")}


def test_an_interface_is_named_and_set() -> None:
    networking = asked(ifname="lan0", sysctls="net.ipv4.conf.ifname.log_martians=1,net.ipv6.neigh.IFNAME.x=2")
    (request,) = endpoint_requests(networking)
    assert request.interface == "lan0"
    interface = Interface(
        name="lan0",
        device="pv1",
        network_id=NetworkId("1"),
        mac="02:42:ac:11:00:02",
        address=IPv4Interface("172.17.0.2/16"),
    )
    assert endpoint_sysctls(networking, [interface]) == {
        "net.ipv4.conf.lan0.log_martians": "1",
        "net.ipv6.neigh.lan0.x": "2",
    }
    with pytest.raises(InvalidParameter, match="stop it first"):
        check_live_options(networking["back"])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"driver_opts": {"a": "b"}}, "the driver option a of an endpoint is not supported"),
        ({"driver_opts": {OPTION + "ifname": "a.b"}}, "invalid interface name: a.b"),
        ({"driver_opts": {OPTION + "ifname": "lo"}}, "invalid interface name: lo"),
        ({"driver_opts": {OPTION + "sysctls": "net.ipv4.conf.eth0.x=1"}}, "unrecognised network interface"),
        ({"driver_opts": {OPTION + "sysctls": "kernel.IFNAME.x=1"}}, "unrecognised network interface"),
        ({"ipam_config": EndpointIpamConfig(link_local_i_ps=["10.0.0.1"])}, "invalid link-local IP address"),
        ({"ipam_config": EndpointIpamConfig(link_local_i_ps=["x"])}, "invalid link-local IP address"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidParameter, match=sentence):
        endpoint_requests({"back": EndpointSettings(**settings)})

# SPDX-License-Identifier: Apache-2.0
"""Messages about networks. Source: Engine API, tag Network."""

from __future__ import annotations

import msgspec

from proa.model.config import ApiStruct, EndpointSettings


class IpamConfig(ApiStruct, frozen=True, kw_only=True, omit_defaults=True):
    subnet: str = ""
    ip_range: str = msgspec.field(default="", name="IPRange")
    gateway: str = ""
    auxiliary_addresses: dict[str, str] | None = None


class Ipam(ApiStruct, frozen=True, kw_only=True):
    driver: str = "default"
    options: dict[str, str] | None = None
    config: list[IpamConfig] | None = None


class ConfigReference(ApiStruct, frozen=True, kw_only=True):
    network: str = ""


class NetworkCreateRequest(ApiStruct, frozen=True, kw_only=True):
    name: str = ""
    check_duplicate: bool = False  # ignored, as Docker does since API 1.44
    driver: str = ""
    scope: str = ""
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: ConfigReference | None = None
    ipam: Ipam | None = msgspec.field(default=None, name="IPAM")
    enable_ipv4: bool | None = msgspec.field(default=None, name="EnableIPv4")
    enable_ipv6: bool | None = msgspec.field(default=None, name="EnableIPv6")
    options: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class NetworkCreated(ApiStruct, frozen=True, kw_only=True):
    id: str
    warning: str = ""


class NetworkContainer(ApiStruct, frozen=True, kw_only=True):
    name: str = ""
    endpoint_id: str = msgspec.field(default="", name="EndpointID")
    mac_address: str = ""
    ipv4_address: str = msgspec.field(default="", name="IPv4Address")  # with the prefix length
    ipv6_address: str = msgspec.field(default="", name="IPv6Address")


class Network(ApiStruct, frozen=True, kw_only=True):
    name: str
    id: str
    created: str = ""
    scope: str = "local"
    driver: str = ""
    enable_ipv4: bool = msgspec.field(default=True, name="EnableIPv4")
    enable_ipv6: bool = msgspec.field(default=False, name="EnableIPv6")
    ipam: Ipam = msgspec.field(default=Ipam(), name="IPAM")
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_from: ConfigReference = ConfigReference()
    config_only: bool = False
    containers: dict[str, NetworkContainer] | None = None
    options: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class NetworkConnectRequest(ApiStruct, frozen=True, kw_only=True):
    container: str = ""
    endpoint_config: EndpointSettings | None = None


class NetworkDisconnectRequest(ApiStruct, frozen=True, kw_only=True):
    container: str = ""
    force: bool = False


class NetworksPruned(ApiStruct, frozen=True, kw_only=True):
    networks_deleted: list[str] | None = None

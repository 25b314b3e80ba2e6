# SPDX-License-Identifier: Apache-2.0
"""Put containers on networks and take them off. The hot path of a start: no process, no wait for RCU.

What an attachment consists of, in the order it is made, each step undone when a later one fails:

    addresses      chosen by ``ipam``; taken as soon as the record is in the catalog
    ports          claimed in ``ports``
    devices        a veth with one end in the namespace (or a tap), a port of the network's bridge
    namespace      mounted under EXEC_ROOT/netns
    rules          an element for each published port
    names          a file for the network's resolver
    record         in the database

From the choice of addresses to the record nothing is awaited, so no other attach can come between.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

from proa.host.netns import Namespace, NamespacePool, unbind
from proa.host.rtnetlink import (
    RouteSocket,
    VethPair,
    add_address,
    add_default_route,
    create_veth,
    delete_link,
    fix_port_of_mac,
    parse_mac,
    set_link,
    set_port,
)
from proa.host.tap import create_tap
from proa.model.errors import EngineError, Internal, InvalidParameter
from proa.model.ids import new_id, short
from proa.model.network import Endpoint, EndpointRequest, Network, PublishedPort
from proa.model.task import Interface, NetworkAttachment, NetworkKind
from proa.network import ipam
from proa.network.bridge import Bridges, alias_of, is_bridge_filtered
from proa.network.catalog import Catalog
from proa.network.filter import Filter
from proa.network.names import Resolvers
from proa.network.ports import PortTable, PortTaken
from proa.network.reaper import Reaper
from proa.network.request import DEFAULT_NETWORK, OPTION_ICC, is_off
from proa.network.store import Place, Record

_DEVICE_DIGITS = 12  # of the endpoint's id; "pv" and "pt" before it stay below IFNAMSIZ

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """What a container got. ``ports`` have their ``host_port`` chosen."""

    attachment: NetworkAttachment
    endpoints: tuple[Endpoint, ...]
    ports: tuple[PublishedPort, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachRequest:
    """Whom to attach, and to what."""

    container_id: str
    kind: NetworkKind
    endpoints: tuple[EndpointRequest, ...]
    ports: tuple[PublishedPort, ...]
    name: str
    hostname: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TapSettings:
    """How taps are made. ``owner``: uid of QEMU; None lets in every user that may open /dev/net/tun."""

    owner: int | None = None
    vnet_hdr: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacher:
    """The parts an attachment is made of; all of them belong to ``Networks``."""

    exec_root: Path
    catalog: Catalog
    bridges: Bridges
    route: RouteSocket
    pool: NamespacePool
    filter: Filter
    ports: PortTable
    resolvers: Resolvers
    reaper: Reaper
    tap: TapSettings

    async def attach(self, request: AttachRequest) -> Attached:
        """Do all of it or nothing."""
        networks = [self.catalog.get(wanted.network) for wanted in request.endpoints]
        if any(network.driver == "host" for network in networks):
            return Attached(attachment=NetworkAttachment(host=True), endpoints=(), ports=())
        self.detach(request.container_id)  # of a start that a dead daemon did not finish
        namespace = await self._take_namespace(request)
        with contextlib.ExitStack() as undo:
            if namespace is not None:
                # On success it lives by its mount; otherwise its end takes the veths with it.
                undo.callback(namespace.close)
            with contextlib.ExitStack() as steps:
                record = self._build(request, namespace, steps)
                steps.pop_all()
        return attached_of(record)

    def detach(self, container_id: str) -> Record | None:
        """Take a container off its networks; the kernel ends the namespace and its veths later. Idempotent.

        A step that fails is logged, and the others are done all the same.
        """
        record = self.catalog.remove_record(container_id)
        if record is None:
            return None
        with _logged("rules"):
            self.filter.unpublish(record)
        self.ports.release(container_id, record.ports)
        with _logged("names"):
            for endpoint in record.endpoints:
                self.resolvers.remove(self.catalog.of_id(endpoint.network_id), endpoint)
        with _logged("namespace"):
            if record.namespace is not None:
                unbind(record.namespace)
        # A veth goes with its namespace, unless another container has joined that.
        self.reaper.bury(place.interface.device for place in record.places)
        self._forget_udp(record.ports)
        return record

    # --- the steps ---

    async def _take_namespace(self, request: AttachRequest) -> Namespace | None:
        if request.kind is NetworkKind.TAP:
            return None
        try:
            return await self.pool.take()
        except OSError as error:
            raise Internal(f"cannot make a network namespace: {error}") from error

    def _build(
        self, request: AttachRequest, namespace: Namespace | None, undo: contextlib.ExitStack
    ) -> Record:
        record = self._plan(request)
        if record.target is not None and request.ports:
            record = replace(record, ports=self._claim(record, request.ports))
            undo.callback(self.ports.release, record.container_id, record.ports)
        try:
            for place in record.places:
                self._plug(place, namespace, undo)
            if namespace is not None:
                assert record.namespace is not None
                unbind(record.namespace)
                namespace.bind(record.namespace)
                undo.callback(unbind, record.namespace)
            for endpoint in record.endpoints:
                if endpoint.dns_names:
                    network = self.catalog.of_id(endpoint.network_id)
                    self.resolvers.add(network, endpoint)
                    undo.callback(self.resolvers.remove, network, endpoint)
        except OSError as error:
            raise Internal(f"failed to set up container networking: {error}") from error
        self.filter.publish(record)
        undo.callback(self.filter.unpublish, record)
        self.catalog.add_record(record)
        self._forget_udp(record.ports)
        return record

    def _plan(self, request: AttachRequest) -> Record:
        """Choose addresses and names; nothing is made."""
        places: list[Place] = []
        target: IPv4Address | None = None
        for wanted in request.endpoints:
            network = self.catalog.get(wanted.network)
            if network.driver != "bridge":
                continue
            place = self._place(request, wanted, network, position=len(places), with_route=target is None)
            if place.interface.gateway is not None:
                target = place.interface.address.ip
            places.append(place)
        path = self.exec_root / "netns" / short(request.container_id)
        return Record(
            container_id=request.container_id,
            kind=request.kind,
            name=request.name,
            hostname=request.hostname,
            namespace=path if request.kind is NetworkKind.NAMESPACE else None,
            places=tuple(places),
            target=target,
        )

    def _place(
        self,
        request: AttachRequest,
        wanted: EndpointRequest,
        network: Network,
        *,
        position: int,
        with_route: bool,
    ) -> Place:
        assert network.subnet is not None
        address = IPv4Interface((self._choose_address(wanted, network), network.subnet.prefixlen))
        endpoint_id = new_id()
        gateway = None if network.internal else network.gateway
        mac = _checked_mac(wanted.mac) if wanted.mac else ipam.mac_of(address.ip)
        prefix = "pv" if request.kind is NetworkKind.NAMESPACE else "pt"
        endpoint = Endpoint(
            container_id=request.container_id,
            network_id=network.id,
            endpoint_id=endpoint_id,
            name=request.name,
            mac=mac,
            address=address,
            gateway=gateway,
            dns_names=self._names(request, wanted, network),
        )
        interface = Interface(
            name=f"eth{position}",
            device=prefix + endpoint_id[:_DEVICE_DIGITS],
            network_id=network.id,
            mac=mac,
            address=address,
            gateway=gateway if with_route else None,
            mtu=network.mtu,
        )
        return Place(endpoint=endpoint, interface=interface)

    def _choose_address(self, wanted: EndpointRequest, network: Network) -> IPv4Address:
        assert network.subnet is not None
        taken = self.catalog.taken_addresses(network)
        if wanted.address is None:
            return ipam.choose_address(network.subnet, network.ip_range, taken)
        if network.name == DEFAULT_NETWORK:
            raise InvalidParameter("user specified IP address is supported on user defined networks only")
        if not self.catalog.has_own_subnet(network):
            raise InvalidParameter(
                "user specified IP address is supported only when connecting to networks with user "
                "configured subnets"
            )
        ipam.check_address(wanted.address, network.subnet, taken)
        return wanted.address

    @staticmethod
    def _names(request: AttachRequest, wanted: EndpointRequest, network: Network) -> tuple[str, ...]:
        """The default network has no names, as in Docker."""
        if network.name == DEFAULT_NETWORK:
            return ()
        names = (request.name, *wanted.aliases, short(request.container_id), request.hostname)
        return tuple(dict.fromkeys(name for name in names if name))

    def _claim(self, record: Record, ports: Sequence[PublishedPort]) -> tuple[PublishedPort, ...]:
        endpoint = next(found for found in record.endpoints if found.address.ip == record.target)
        failed = f"driver failed programming external connectivity on endpoint {record.name}"
        try:
            return self.ports.claim(record.container_id, ports)
        except PortTaken as error:
            raise PortTaken(f"{failed} ({endpoint.endpoint_id}): {error.message}") from error
        except InvalidParameter as error:
            raise InvalidParameter(f"{failed} ({endpoint.endpoint_id}): {error.message}") from error

    def _plug(self, place: Place, namespace: Namespace | None, undo: contextlib.ExitStack) -> None:
        network = self.catalog.of_id(place.endpoint.network_id)
        bridge = self.bridges.index(network)
        if namespace is None:
            index = self._make_tap(place.interface, bridge, undo)
        else:
            index = self._make_veth(place.interface, bridge, namespace)
        messages = [fix_port_of_mac(index, place.interface.mac)]
        isolated, hairpin = is_off(network.options, OPTION_ICC), is_bridge_filtered()
        if isolated or hairpin:
            messages.append(set_port(index, isolated=isolated, hairpin=hairpin))
        self.route.transact(*messages)

    def _make_veth(self, interface: Interface, bridge: int, namespace: Namespace) -> int:
        pair = VethPair(
            device=interface.device,
            bridge=bridge,
            peer=interface.name,
            peer_mac=interface.mac,
            namespace=namespace.fd,
            mtu=interface.mtu,
        )
        self.route.transact(create_veth(pair))
        peer = namespace.route.find_link(interface.name)
        assert peer is not None
        messages = [set_link(peer.index, up=True), add_address(peer.index, interface.address)]
        if interface.gateway is not None:
            messages.append(add_default_route(peer.index, interface.gateway))
        namespace.route.transact(*messages)
        return socket.if_nametoindex(interface.device)

    def _make_tap(self, interface: Interface, bridge: int, undo: contextlib.ExitStack) -> int:
        create_tap(interface.device, owner=self.tap.owner, vnet_hdr=self.tap.vnet_hdr)
        index = socket.if_nametoindex(interface.device)
        undo.callback(self.route.transact, delete_link(index))
        alias = alias_of(self.exec_root)
        self.route.transact(set_link(index, up=True, master=bridge, mtu=interface.mtu, alias=alias))
        return index

    def _forget_udp(self, ports: Sequence[PublishedPort]) -> None:
        targets = frozenset((port.host_ip, port.host_port) for port in ports if port.protocol == "udp")
        if targets:
            self.reaper.forget_udp(targets)


def attached_of(record: Record) -> Attached:
    """Return what the engine sees of a record."""
    return Attached(attachment=record.attachment, endpoints=record.endpoints, ports=record.ports)


def _checked_mac(mac: str) -> str:
    """:raises InvalidParameter: it is not a MAC address of one device."""
    try:
        packed = parse_mac(mac)
    except ValueError:
        raise InvalidParameter(f"invalid MAC address: {mac}") from None
    if packed[0] & 1 or not any(packed):
        raise InvalidParameter(f"invalid MAC address: {mac}: it is not one of a single device")
    return mac.lower()


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EngineError) as error:
        _log.warning("detaching a container: %s: %s", what, error)

# SPDX-License-Identifier: Apache-2.0
"""Put containers on networks and take them off. The hot path of a start: no process, no wait for RCU.

What an attachment consists of, in the order it is made, each step undone when a later one fails:

    addresses      chosen by ``ipam``; taken when the record is in the catalog
    ports          claimed in ``ports``
    devices        a veth with one end in the namespace (or a tap), a port of the network's bridge
    namespace      mounted under EXEC_ROOT/netns
    names          a file for the network's resolver
    rules          an element for each published port
    record         in the database

Attaches take turns (``turn``), so that no two choose the same address. Devices are made in a worker thread:
the kernel takes a millisecond when it is idle, but waits for others' RCU grace periods when it is not.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import anyio
import anyio.to_thread

from proa.host.netns import Namespace, NamespacePool
from proa.host.rtnetlink import parse_mac
from proa.model.errors import EngineError, Internal, InvalidParameter
from proa.model.ids import new_id, short
from proa.model.network import Endpoint, EndpointRequest, Network, PublishedPort
from proa.model.task import Interface, NetworkAttachment, NetworkKind
from proa.network import ipam
from proa.network.bridge import Bridges
from proa.network.catalog import Catalog
from proa.network.devices import DeviceMaker, Plug
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
class Attacher:
    """The parts an attachment is made of; all of them belong to ``Networks``."""

    exec_root: Path
    catalog: Catalog
    bridges: Bridges
    maker: DeviceMaker
    pool: NamespacePool
    filter: Filter
    ports: PortTable
    resolvers: Resolvers
    reaper: Reaper
    turn: anyio.Lock = field(default_factory=anyio.Lock)
    threads: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1))

    async def attach(self, request: AttachRequest) -> Attached:
        """Do all of it or nothing."""
        networks = [self.catalog.get(wanted.network) for wanted in request.endpoints]
        if any(network.driver == "host" for network in networks):
            return Attached(attachment=NetworkAttachment(host=True), endpoints=(), ports=())
        self.detach(request.container_id)  # of a start that a dead daemon did not finish
        self.reaper.hold_back()
        namespace = await self._take_namespace(request)
        with contextlib.ExitStack() as always:
            if namespace is not None:
                # On success it lives by its mount; otherwise its end takes the veths with it.
                always.callback(namespace.close)
            async with self.turn:
                with contextlib.ExitStack() as undo:
                    record = await self._build(request, namespace, undo)
                    undo.pop_all()
        return attached_of(record)

    def detach(self, container_id: str) -> Record | None:
        """Take a container off its networks; its devices and its namespace end a moment later. Idempotent.

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
        self.reaper.bury(record)
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

    async def _build(
        self, request: AttachRequest, namespace: Namespace | None, undo: contextlib.ExitStack
    ) -> Record:
        record = self._plan(request)
        if record.target is not None and request.ports:
            record = replace(record, ports=self._claim(record, request.ports))
            undo.callback(self.ports.release, record.container_id, record.ports)
        await self.reaper.make_way(record)
        undo.callback(self.reaper.bury, record)
        plugs = [self._plug_of(place) for place in record.places]
        try:
            await anyio.to_thread.run_sync(self.maker.make, record, plugs, namespace, limiter=self.threads)
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
        # A name of its own: the namespace of the container's last run may not be gone yet.
        path = self.exec_root / "netns" / f"{short(request.container_id)}-{secrets.token_hex(3)}"
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

    def _plug_of(self, place: Place) -> Plug:
        network = self.catalog.of_id(place.endpoint.network_id)
        return Plug(
            interface=place.interface,
            bridge=self.bridges.index(network),
            isolated=is_off(network.options, OPTION_ICC),
        )

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

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
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import anyio
import anyio.to_thread

from proa.host.netlink import Message
from proa.host.netns import Namespace, NamespacePool
from proa.host.rtnetlink import add_default_route
from proa.model.errors import Conflict, EngineError, Internal, InvalidParameter
from proa.model.network import Endpoint, EndpointRequest, Network, PublishedPort
from proa.model.task import NetworkAttachment, NetworkKind
from proa.network.bridge import Bridges
from proa.network.catalog import Catalog
from proa.network.devices import DeviceMaker, Plug
from proa.network.filter import Filter
from proa.network.names import Resolvers
from proa.network.plan import AttachRequest, Planner
from proa.network.ports import PortTable, PortTaken
from proa.network.reaper import Reaper
from proa.network.request import OPTION_ICC, PARENT_DRIVERS, host_binding, is_off, mode_of
from proa.network.store import Place, Record

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """What a container got. ``ports`` have their ``host_port`` chosen."""

    attachment: NetworkAttachment
    endpoints: tuple[Endpoint, ...]
    ports: tuple[PublishedPort, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacher:
    """The parts an attachment is made of; all of them belong to ``Networks``."""

    catalog: Catalog
    planner: Planner
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
                if endpoint.dns_names:
                    self.resolvers.remove(endpoint)
        self.reaper.bury(record)
        self._forget_udp(record.ports)
        return record

    def check(self, container_id: str, wanted: EndpointRequest) -> None:
        """Plan a place without taking it. Raises as ``attach``."""
        nobody = Record(
            container_id=container_id, kind=NetworkKind.NAMESPACE, name="", hostname="", namespace=None
        )
        self.planner.with_place(nobody, wanted)

    # --- while a container runs ---

    async def connect(
        self, container_id: str, wanted: EndpointRequest, ports: Sequence[PublishedPort]
    ) -> Attached:
        """Put a container that is attached on one more network, or do nothing.

        :param ports: what it publishes, if so far it could not: no network of it led out.

        The default routes and the published ports move if the new network comes first.
        """
        async with self.turn:
            old = self._record_of(container_id)
            new = self.planner.with_place(old, wanted)
            self._check_kind(new)
            place = new.places[-1]
            async with self._entered(old) as namespace:
                with contextlib.ExitStack() as undo:
                    if not old.published_versions and new.published_versions and ports:
                        new = replace(new, ports=self._claim(new, ports))
                        undo.callback(self.ports.release, container_id, new.ports)
                    await self._connect_device(place, new, namespace, undo)
                    undo.callback(self._make_known(place.endpoint, new.dns))
                    self.catalog.replace_record(new)
                    undo.callback(self.catalog.replace_record, old)
                    self.filter.move(old, new)
                    undo.pop_all()
        return attached_of(new)

    async def disconnect(self, container_id: str, network: Network) -> Attached:
        """Take a container off one of its networks; what led by it leads by another, if there is one.

        A tap is only cut off: ``Networks.discard`` it when nobody has it open any more.
        """
        async with self.turn:
            old = self._record_of(container_id)
            new = self.planner.without_place(old, network)
            lost = [port for port in old.ports if port.host_ip.version not in new.published_versions]
            new = replace(new, ports=tuple(port for port in old.ports if port not in lost))
            gone = next(place for place in old.places if place.endpoint.network_id == network.id)
            async with self._entered(old) as namespace:
                self.catalog.replace_record(new)
                self.filter.move(old, new)
                self.ports.release(container_id, lost)
                with _logged("names"):
                    if gone.endpoint.dns_names:
                        self.resolvers.remove(gone.endpoint)
                try:
                    await self._remove_device(gone, new, namespace)
                except OSError as error:
                    raise Internal(f"failed to take the container off the network: {error}") from error
        return attached_of(new)

    async def _remove_device(self, gone: Place, new: Record, namespace: Namespace | None) -> None:
        if namespace is None:
            await anyio.to_thread.run_sync(self.maker.cut, gone.interface, limiter=self.threads)
            return
        await anyio.to_thread.run_sync(self.maker.remove, gone.interface, namespace, limiter=self.threads)
        namespace.route.transact(*_routes_of(new, namespace))

    async def _connect_device(
        self, place: Place, new: Record, namespace: Namespace | None, undo: contextlib.ExitStack
    ) -> None:
        plug = self._plug_of(place)
        alone = replace(new, places=(place,))
        await self.reaper.make_way(alone)
        try:
            if namespace is None:
                await anyio.to_thread.run_sync(self.maker.add, plug, None, limiter=self.threads)
                undo.callback(self.reaper.bury, alone)
                return
            if place.endpoint.address6 is not None or _has_ipv6_link_local(place):
                await self.pool.allow_ipv6(namespace)
            await anyio.to_thread.run_sync(self.maker.add, plug, namespace, limiter=self.threads)
            undo.callback(self.maker.remove, place.interface, namespace)
            namespace.route.transact(*_routes_of(new, namespace))
        except OSError as error:
            raise Internal(f"failed to set up container networking: {error}") from error

    def _record_of(self, container_id: str) -> Record:
        record = self.catalog.find_record(container_id)
        if record is None or (record.kind is NetworkKind.NAMESPACE and record.namespace is None):
            raise Conflict(f"container {container_id} has no network namespace of its own")
        return record

    @contextlib.asynccontextmanager
    async def _entered(self, record: Record) -> AsyncIterator[Namespace | None]:
        if record.namespace is None:
            yield None
            return
        try:
            namespace = await self.pool.enter(record.namespace)
        except OSError as error:
            raise Internal(f"cannot enter the container's network namespace: {error}") from error
        try:
            yield namespace
        finally:
            namespace.close()

    # --- the steps ---

    def _check_kind(self, record: Record) -> None:
        for endpoint in record.endpoints:
            network = self.catalog.of_id(endpoint.network_id)
            if record.kind is NetworkKind.TAP and network.driver in PARENT_DRIVERS:
                raise InvalidParameter(
                    f"network {network.name}: a virtual machine cannot be on a {network.driver} network"
                )
            if record.kind is NetworkKind.TAP and endpoint.address is None:
                raise InvalidParameter(
                    f"network {network.name}: a virtual machine cannot be on a network without IPv4"
                )

    async def _take_namespace(self, request: AttachRequest) -> Namespace | None:
        if request.kind is NetworkKind.TAP:
            return None
        try:
            if request.user_namespace is not None:
                return await self.pool.make_of(request.user_namespace)
            return await self.pool.take()
        except OSError as error:
            raise Internal(f"cannot make a network namespace: {error}") from error

    async def _build(
        self, request: AttachRequest, namespace: Namespace | None, undo: contextlib.ExitStack
    ) -> Record:
        record = self.planner.plan(request)
        self._check_kind(record)
        if record.published_versions and request.ports:
            record = replace(record, ports=self._claim(record, request.ports))
            undo.callback(self.ports.release, record.container_id, record.ports)
        await self.reaper.make_way(record)
        undo.callback(self.reaper.bury, record)
        plugs = [self._plug_of(place) for place in record.places]
        try:
            if namespace is not None and any(endpoint.address6 for endpoint in record.endpoints):
                await self.pool.allow_ipv6(namespace)
            if namespace is not None and any(_has_ipv6_link_local(place) for place in record.places):
                await self.pool.allow_ipv6(namespace)
            await anyio.to_thread.run_sync(self.maker.make, record, plugs, namespace, limiter=self.threads)
            for endpoint in record.endpoints:
                undo.callback(self._make_known(endpoint, record.dns))
        except OSError as error:
            raise Internal(f"failed to set up container networking: {error}") from error
        self.filter.publish(record)
        undo.callback(self.filter.unpublish, record)
        self.catalog.add_record(record)
        self._forget_udp(record.ports)
        return record

    def _claim(self, record: Record, ports: Sequence[PublishedPort]) -> tuple[PublishedPort, ...]:
        endpoint = record.target(4) or record.target(6)
        assert endpoint is not None
        versions = record.published_versions
        network = self.catalog.of_id(endpoint.network_id)
        failed = f"driver failed programming external connectivity on endpoint {record.name}"
        binding = host_binding(network.options)
        wanted = [replace(port, host_ip=binding) if port.any_address else port for port in ports]
        for port in wanted:
            if port.host_ip.version == 6 not in versions:
                raise InvalidParameter(
                    f"{failed} ({endpoint.endpoint_id}): cannot publish on [{port.host_ip}]: "
                    f"network {network.name} has no IPv6"
                )
            if port.host_ip.version == 4 not in versions and not port.any_address:
                raise InvalidParameter(
                    f"{failed} ({endpoint.endpoint_id}): cannot publish on {port.host_ip}: "
                    f"network {network.name} has no IPv4"
                )
        try:
            return self.ports.claim(record.container_id, wanted, versions=versions)
        except PortTaken as error:
            raise PortTaken(f"{failed} ({endpoint.endpoint_id}): {error.message}") from error
        except InvalidParameter as error:
            raise InvalidParameter(f"{failed} ({endpoint.endpoint_id}): {error.message}") from error

    def _plug_of(self, place: Place) -> Plug:
        network = self.catalog.of_id(place.endpoint.network_id)
        if network.driver in PARENT_DRIVERS:
            return Plug(
                interface=place.interface,
                index=self.bridges.parent_index(network),
                driver=network.driver,
                mode=mode_of(network.driver, network.options),
            )
        return Plug(
            interface=place.interface,
            index=self.bridges.index(network),
            isolated=is_off(network.options, OPTION_ICC),
        )

    def _make_known(self, endpoint: Endpoint, servers: Sequence[str]) -> Callable[[], None]:
        """Tell the endpoint's names, if it has any; return what takes them back."""
        if not endpoint.dns_names:
            return lambda: None
        self.resolvers.add(self.catalog.of_id(endpoint.network_id), endpoint, servers)
        return lambda: self.resolvers.remove(endpoint)

    def _forget_udp(self, ports: Sequence[PublishedPort]) -> None:
        targets = frozenset((port.host_ip, port.host_port) for port in ports if port.protocol == "udp")
        if targets:
            self.reaper.forget_udp(targets)


def _has_ipv6_link_local(place: Place) -> bool:
    return any(address.version == 6 for address in place.interface.link_local)


def attached_of(record: Record) -> Attached:
    """Return what the engine sees of a record."""
    return Attached(attachment=record.attachment, endpoints=record.endpoints, ports=record.ports)


def _routes_of(record: Record, namespace: Namespace) -> list[Message]:
    """Return what sets the default routes of a container right."""
    messages: list[Message] = []
    for place in record.places:
        link = namespace.route.find_link(place.interface.name)
        if link is not None:
            gateways = (place.interface.gateway, place.interface.gateway6)
            messages += (add_default_route(link.index, gateway) for gateway in gateways if gateway)
    return messages


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EngineError) as error:
        _log.warning("detaching a container: %s: %s", what, error)

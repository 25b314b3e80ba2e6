# SPDX-License-Identifier: Apache-2.0
"""Networks as the engine uses them: made, looked up, attached to, removed, and found again by a later daemon.

Owns the three networks that always exist and everything on the host that belongs to networks: bridges, veths,
taps, namespaces, one table of packet filter rules, resolvers. All of that goes on when the daemon ends; the
database says what should be, ``open`` makes the host agree with it. ``teardown`` is for removing it all.

Source: Engine API, Network; moby daemon/network.go and daemon/libnetwork/errors.go for wording.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread

from proa.host.database import Database
from proa.host.netns import NamespacePool, is_bound, unbind
from proa.host.rtnetlink import RouteSocket
from proa.host.ruleset_watch import RulesetWatch
from proa.model.errors import Conflict, EngineError, Forbidden, InvalidParameter, NameInUse
from proa.model.ids import NetworkId, new_id, short
from proa.model.network import Endpoint, EndpointRequest, IpAddress, Network, NetworkRequest, PublishedPort
from proa.model.task import Interface, NetworkKind
from proa.network import files, ipam
from proa.network.attach import Attached, Attacher, attached_of
from proa.network.bridge import (
    Bridges,
    default_bridge_name,
    enable_forwarding,
    table_name,
)
from proa.network.catalog import Catalog
from proa.network.creation import network_of
from proa.network.devices import DeviceMaker, TapSettings
from proa.network.filter import Filter
from proa.network.host_files import RESOLV_CONF, read_hosts, read_resolv_conf
from proa.network.names import Resolvers
from proa.network.plan import AttachRequest, Planner
from proa.network.ports import PortTable
from proa.network.reaper import Reaper, delete_devices
from proa.network.request import (
    DEFAULT_NETWORK,
    OPTION_BRIDGE_NAME,
    OPTION_MTU,
    OPTION_PARENT,
    PARENT_DRIVERS,
    PREDEFINED,
    check_request,
)
from proa.network.store import NetworkStore, Record, StoredNetwork

RULES_SETTLE_S = 0.3  # between a change of the host's packet filter and a look at it

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """What a daemon may set. ``resolv_conf``: where the host's nameservers are written."""

    resolv_conf: Path = RESOLV_CONF
    tap: TapSettings = field(default_factory=TapSettings)


class Networks:
    """All networks of one daemon. ``tasks`` runs its helpers: ``close`` before the group ends.

    Creating and removing take turns; attaching and detaching need no lock (see ``attach``).
    """

    def __init__(
        self,
        *,
        db: Database,
        exec_root: Path,
        tasks: anyio.abc.TaskGroup,
        settings: NetworkSettings | None = None,
    ) -> None:
        self._settings = settings or NetworkSettings()
        self._exec_root = exec_root
        self._tasks = tasks
        self._catalog = Catalog(NetworkStore(db))
        self._changing = anyio.Lock()
        self._watching = anyio.CancelScope()
        self._route = RouteSocket()
        self._bridges = Bridges(self._route, exec_root)
        self._maker = DeviceMaker(exec_root, self._settings.tap)
        self._ports = PortTable()
        self._filter = Filter(table_name(exec_root), self._catalog)
        self._pool = NamespacePool(tasks)
        self._reaper = Reaper(tasks)
        self._resolvers = Resolvers(exec_root / "dns", self._settings.resolv_conf, tasks, self._known)
        self._attacher = Attacher(
            catalog=self._catalog,
            planner=Planner(exec_root, self._catalog),
            bridges=self._bridges,
            maker=self._maker,
            pool=self._pool,
            filter=self._filter,
            ports=self._ports,
            resolvers=self._resolvers,
            reaper=self._reaper,
        )

    # --- life of the daemon ---

    async def open(self) -> None:
        """Make the host agree with the database: after a reboot, a flush, or the end of another daemon.

        Attachments whose namespace or taps have gone are forgotten; the others go on untouched.

        :raises Internal: the kernel refuses what networks need.
        """
        (self._exec_root / "netns").mkdir(parents=True, exist_ok=True)
        self._pool.open()
        self._reaper.open()
        enable_forwarding()
        self._ensure_predefined()
        for record in self._catalog.records():
            if not self._is_alive(record):
                self._attacher.detach(record.container_id)
        for network in self._catalog.bridged():
            # One network whose device somebody else has taken must not keep the daemon from the others.
            try:
                self._bridges.ensure(network)
            except EngineError as error:
                _log.error("network %s cannot be used: %s", network.name, error)
        for record in self._catalog.records():
            self._plug(record)
            self._ports.restore(record.container_id, record.ports)
        watch = RulesetWatch(table_name(self._exec_root))
        self._filter.rebuild()
        self._filter.follow_host()
        self._tasks.start_soon(self._follow_host, watch, name="packet filter watch")
        wanted = [network for network in self._catalog.bridged() if self._wants_resolver(network)]
        if wanted:
            self._resolvers.want(*wanted)
            self._tasks.start_soon(self._resolvers.ensure)

    async def close(self) -> None:
        """Stop this daemon's helpers. Networks, containers' attachments and resolvers go on. Idempotent."""
        self._resolvers.close()
        self._watching.cancel()
        await self._pool.close()
        await self._reaper.close()
        self._ports.close()
        self._filter.close()
        self._maker.close()
        self._route.close()

    async def cleanup(self, known_ids: Collection[str]) -> None:
        """Remove what belongs to containers other than these, and what no record accounts for."""
        for record in self._catalog.records():
            if record.container_id not in known_ids:
                self._attacher.detach(record.container_id)
        records = self._catalog.records()
        mounts = {record.namespace for record in records}
        for path in (self._exec_root / "netns").iterdir():
            if path not in mounts:
                unbind(path)
        known = {network.bridge for network in self._catalog.bridged()}
        known |= {device for record in records for device in record.devices}
        strangers = [link.name for link in self._bridges.strangers(known)]
        if strangers:
            await anyio.to_thread.run_sync(delete_devices, strangers)

    # --- networks ---

    async def create(self, request: NetworkRequest) -> Network:
        """Make a network. Raises NameInUse, Forbidden (overlap, predefined name), NotFound (driver),
        InvalidParameter, Conflict (device name), Unavailable (no subnet left), Internal."""
        check_request(request)
        async with self._changing:
            if self._catalog.find_named(request.name) is not None:
                raise NameInUse(f"network with name {request.name} already exists")
            ours = self._catalog.subnets()
            ipam.check_pool(request, ours)
            parent_mtu = self._check_device(request)
            subnet = request.subnet
            if subnet is None and request.ipv4:
                subnet = ipam.choose_subnet([*ours, *self._taken_subnets()])
            network = network_of(
                request,
                network_id=NetworkId(new_id()),
                subnet=subnet,
                created_at_ns=time.time_ns(),
                parent_mtu=parent_mtu,
            )
            await self._make(StoredNetwork(network=network, own_subnet=request.subnet is not None))
            return network

    def get(self, ref: str) -> Network:
        """Look up by id, name or unique prefix of the id. Raises NoSuchNetwork, InvalidParameter."""
        return self._catalog.get(ref)

    def list(self) -> list[Network]:
        """Return all networks, in the order they were made."""
        return self._catalog.networks()

    async def remove(self, ref: str) -> Network:
        """Remove a network without endpoints. Raises NoSuchNetwork, Forbidden."""
        async with self._changing, self._attacher.turn:
            network = self._catalog.get(ref)
            if network.name in PREDEFINED:
                raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
            endpoints = self._catalog.endpoints_of(network)
            if endpoints:
                users = ", ".join(
                    f'name:"{found.name}" id:"{short(found.endpoint_id)}"' for found in endpoints
                )
                raise Forbidden(
                    f"error while removing network: network {network.name} id {network.id} "
                    f"has active endpoints ({users})"
                )
            # Out of the catalog first: from here on nobody can attach to it.
            self._catalog.remove_network(network)
            if network.driver == "bridge":
                self._filter.rebuild()
                await self._resolvers.stop(network)
                await anyio.to_thread.run_sync(delete_devices, [network.bridge])
            return network

    def unused(self) -> Sequence[Network]:
        """Return what prune may remove: networks that users made and no running container is on."""
        return [
            network
            for network in self._catalog.networks()
            if network.name not in PREDEFINED and not self._catalog.endpoints_of(network)
        ]

    def endpoints(self, network_id: NetworkId) -> Sequence[Endpoint]:
        """Return the endpoints on a network, in the order they were made."""
        return self._catalog.endpoints_of(self._catalog.of_id(network_id))

    # --- containers ---

    async def attach(
        self,
        container_id: str,
        *,
        kind: NetworkKind,
        endpoints: Sequence[EndpointRequest],
        ports: Sequence[PublishedPort],
        container_name: str,
        hostname: str,
        dns: Sequence[str] = (),
        user_namespace: Path | None = None,
    ) -> Attached:
        """Attach a container to its networks (see ``plan`` for which of them carries the default route and
        the published ports), or do nothing. An attachment it still has is replaced.

        NAMESPACE gives a prepared network namespace, with loopback only when there are no endpoints; TAP one
        tap for each endpoint. A container on internal networks only publishes nothing, as in Docker.

        :raises NoSuchNetwork, InvalidParameter, Forbidden, PortTaken, Internal: nothing is left behind.
        """
        request = AttachRequest(
            container_id=container_id,
            kind=kind,
            endpoints=tuple(endpoints),
            ports=tuple(ports),
            name=container_name,
            hostname=hostname,
            dns=tuple(dns),
            user_namespace=user_namespace,
        )
        return await self._attacher.attach(request)

    def check(self, container_id: str, wanted: EndpointRequest) -> None:
        """Raise what joining a network would, were the container started now."""
        self._attacher.check(container_id, wanted)

    async def connect(
        self, container_id: str, wanted: EndpointRequest, ports: Sequence[PublishedPort] = ()
    ) -> Attached:
        """Put an attached container on one more network, or do nothing. Its ``ports`` are published now if
        no network that it was on could. Of TAP only the host's side is done.

        :raises NoSuchNetwork, InvalidParameter, Forbidden, Conflict, Internal: as ``attach``.
        """
        return await self._attacher.connect(container_id, wanted, ports)

    async def disconnect(self, container_id: str, network_id: NetworkId) -> Attached:
        """Take an attached container off a network that it is on. Raises Conflict, Internal.

        Its tap, if that is what it had there, is cut off, and goes with ``discard``.
        """
        return await self._attacher.disconnect(container_id, self._catalog.of_id(network_id))

    async def discard(self, interface: Interface) -> None:
        """Delete the tap of a network that a container was taken off. Idempotent."""
        await anyio.to_thread.run_sync(delete_devices, [interface.device])

    async def detach(self, container_id: str) -> None:
        """Take a container off its networks. Idempotent; returns before the kernel has finished."""
        self._attacher.detach(container_id)

    def find(self, container_id: str) -> Attached | None:
        """Return what a container has, None when it is not attached."""
        record = self._catalog.find_record(container_id)
        return None if record is None else attached_of(record)

    def rename(self, container_id: str, name: str) -> tuple[Endpoint, ...]:
        """Make a container known by another name, and return its endpoints as they are then."""
        record = self._catalog.find_record(container_id)
        if record is None:
            return ()
        places = []
        for place in record.places:
            old = place.endpoint
            names = dict.fromkeys(name if known == record.name else known for known in old.dns_names)
            places.append(replace(place, endpoint=replace(old, name=name, dns_names=tuple(names))))
        renamed = replace(record, name=name, places=tuple(places))
        self._catalog.replace_record(renamed)
        for endpoint in renamed.endpoints:
            if endpoint.dns_names:
                self._resolvers.add(self._catalog.of_id(endpoint.network_id), endpoint, renamed.dns)
        return renamed.endpoints

    # --- files of containers ---

    def resolv_conf(
        self,
        endpoints: Sequence[Endpoint],
        *,
        dns: Sequence[str] = (),
        search: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> bytes:
        """Return a container's /etc/resolv.conf. Without endpoints it is for the host's own network."""
        host = read_resolv_conf(self._settings.resolv_conf)
        if not endpoints:
            return files.resolv_conf(host=host, dns=dns, search=search, options=options)
        resolvers: list[IpAddress] = []
        reachable = files.without_loopback(host)
        for endpoint in endpoints:
            network = self._catalog.of_id(endpoint.network_id)
            if network.driver != "bridge":
                continue
            is_wanted = network.name != DEFAULT_NETWORK or not (dns or reachable.nameservers)
            gateway = network.gateway or network.gateway6
            if is_wanted and gateway is not None and self._resolvers.may_be_asked(network):
                resolvers.append(gateway)
        # One is enough, for it knows the names of all networks of the asker; and asks ``dns`` for the others.
        return files.resolv_conf(
            host=reachable,
            resolvers=resolvers[:1],
            dns=() if resolvers else dns,
            search=search,
            options=options,
        )

    def hosts_file(
        self,
        endpoints: Sequence[Endpoint],
        *,
        hostname: str,
        domainname: str = "",
        extra_hosts: Sequence[str] = (),
        on_host: bool = False,
        links: Sequence[tuple[str, Endpoint]] = (),
    ) -> bytes:
        """Return a container's /etc/hosts; with ``on_host`` for the host's own network, which begins with the
        host's lines; ``links``: what peers are called, with their places. Raises InvalidParameter for a
        malformed extra host."""
        return files.hosts_file(
            addresses=files.addresses_of(endpoints),
            hostname=hostname,
            domainname=domainname,
            extra_hosts=extra_hosts,
            host_gateway=self.host_gateway,
            base=read_hosts() if on_host else None,
            links=[(names, files.addresses_of([endpoint])) for names, endpoint in links],
        )

    @property
    def host_gateway(self) -> IPv4Address | None:
        """The address by which containers reach the host: the default bridge's, as in Docker."""
        return self._catalog.get(DEFAULT_NETWORK).gateway

    # --- machinery ---

    async def _follow_host(self, watch: RulesetWatch) -> None:
        with self._watching, contextlib.closing(watch):
            while True:
                await watch.changed()
                # A firewall is loaded in many steps; and nobody can make us do nothing but this.
                await anyio.sleep(RULES_SETTLE_S)
                self._filter.follow_host()

    def _ensure_predefined(self) -> None:
        for name, driver in PREDEFINED.items():
            found = self._catalog.find_named(name)
            if found is not None and driver == "bridge" and self._has_lost_subnet(found):
                self._catalog.remove_network(found)
                found = None
            if found is None:
                self._catalog.add_network(
                    StoredNetwork(network=self._predefined(name, driver), own_subnet=False)
                )

    def _predefined(self, name: str, driver: str) -> Network:
        network = Network(id=NetworkId(new_id()), name=name, driver=driver, created_at_ns=time.time_ns())
        if driver != "bridge":
            return network
        subnet = ipam.choose_subnet([*self._catalog.subnets(), *self._taken_subnets()])
        bridge = default_bridge_name(self._exec_root)
        options = {
            "com.docker.network.bridge.default_bridge": "true",
            "com.docker.network.bridge.enable_icc": "true",
            "com.docker.network.bridge.enable_ip_masquerade": "true",
            "com.docker.network.bridge.host_binding_ipv4": "0.0.0.0",
            OPTION_BRIDGE_NAME: bridge,
            OPTION_MTU: "1500",
        }
        return replace(
            network, subnet=subnet, gateway=ipam.choose_gateway(subnet), bridge=bridge, options=options
        )

    def _has_lost_subnet(self, network: Network) -> bool:
        """Whether the default network's subnet now belongs to something else of the host. It is then chosen
        anew, unless containers are on it."""
        if self._route.find_link(network.bridge) is not None or self._catalog.endpoints_of(network):
            return False
        assert network.subnet is not None
        return any(network.subnet.overlaps(taken) for taken in self._taken_subnets())

    def _taken_subnets(self) -> Sequence[IPv4Network]:
        return self._bridges.taken_subnets(self._settings.resolv_conf)

    def _check_device(self, request: NetworkRequest) -> int:
        """Check the host's device that a request names; return the MTU of one that it is on, else 0."""
        if request.driver in PARENT_DRIVERS:
            parent = self._route.find_link(request.options[OPTION_PARENT])
            if parent is None:
                raise InvalidParameter(
                    f"parent device {request.options[OPTION_PARENT]} does not exist on this host"
                )
            return parent.mtu
        device = request.options.get(OPTION_BRIDGE_NAME)
        if device is not None and self._route.find_link(device) is not None:
            raise Conflict(f"a device {device} exists already on this host")
        return 0

    async def _make(self, stored: StoredNetwork) -> None:
        network = stored.network
        if network.driver != "bridge":
            self._catalog.add_network(stored)
            return
        async with contextlib.AsyncExitStack() as undo:
            self._bridges.ensure(network)
            undo.callback(self._bridges.remove, network)
            self._catalog.add_network(stored)
            undo.callback(self._catalog.remove_network, network)
            self._filter.rebuild()
            undo.callback(self._filter.rebuild)
            undo.push_async_callback(self._resolvers.stop, network)
            await self._resolvers.ensure(network)
            undo.pop_all()

    def _plug(self, record: Record) -> None:
        for place in record.places:
            network = self._catalog.of_id(place.endpoint.network_id)
            if not place.interface.device:
                continue
            try:
                self._bridges.plug(network, place.interface.device)
            except (EngineError, OSError) as error:
                _log.error("container %s is cut off from network %s: %s", record.name, network.name, error)

    def _is_alive(self, record: Record) -> bool:
        """Whether what the container was attached by still exists; a reboot takes it all."""
        if record.namespace is not None:
            return is_bound(record.namespace)
        links = {link.name for link in self._route.links()}
        return all(place.interface.device in links for place in record.places)

    def _wants_resolver(self, network: Network) -> bool:
        """The default network needs one only where the host's nameservers cannot be reached from it."""
        if network.name != DEFAULT_NETWORK:
            return True
        return not files.without_loopback(read_resolv_conf(self._settings.resolv_conf)).nameservers

    def _known(self) -> Sequence[tuple[Network, Endpoint, Sequence[str]]]:
        """Return what the resolver is told: all endpoints that have names."""
        return [
            (self._catalog.of_id(endpoint.network_id), endpoint, record.dns)
            for record in self._catalog.records()
            for endpoint in record.endpoints
            if endpoint.dns_names
        ]

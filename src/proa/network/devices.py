# SPDX-License-Identifier: Apache-2.0
"""The devices of one attachment: veths into a namespace, or taps. Runs in a worker thread, one at a time."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from proa.host.netns import Namespace
from proa.host.rtnetlink import (
    RouteSocket,
    SubDevice,
    VethPair,
    add_address,
    add_default_route,
    create_sub_device,
    create_veth,
    delete_link,
    fix_port_of_mac,
    set_link,
    set_port,
)
from proa.host.tap import create_tap
from proa.model.task import Interface
from proa.network.bridge import alias_of, is_bridge_filtered
from proa.network.store import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class TapSettings:
    """How taps are made. ``owner``: uid of QEMU; None lets in every user that may open /dev/net/tun."""

    owner: int | None = None
    vnet_hdr: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Plug:
    """An interface and where it is plugged in.

    :ivar index: of the bridge, or of the parent device.
    :ivar isolated: from its neighbours.
    :ivar driver: of the network; ``mode`` of one on a parent device.
    """

    interface: Interface
    index: int
    isolated: bool = False
    driver: str = "bridge"
    mode: str = ""


class DeviceMaker:
    """Makes devices by a netlink socket of its own, so that the event loop's thread may use another."""

    def __init__(self, exec_root: Path, tap: TapSettings) -> None:
        self._alias = alias_of(exec_root)
        self._tap = tap
        self._route = RouteSocket()

    def make(self, record: Record, plugs: Sequence[Plug], namespace: Namespace | None) -> None:
        """Make the devices, and mount the namespace at the record's path.

        :raises OSError: the taps made so far are gone; veths go when the caller closes the namespace.
        """
        with contextlib.ExitStack() as undo:
            for plug in plugs:
                self._make_one(plug, namespace, undo)
            if namespace is not None:
                assert record.namespace is not None
                namespace.bind(record.namespace)
            undo.pop_all()

    def add(self, plug: Plug, namespace: Namespace | None) -> None:
        """Make one more device in a container's namespace; without one a tap.

        :raises OSError: nothing is left.
        """
        with contextlib.ExitStack() as undo:
            if namespace is not None:
                undo.callback(self.remove, plug.interface, namespace)
            self._make_one(plug, namespace, undo)
            undo.pop_all()

    def remove(self, interface: Interface, namespace: Namespace) -> None:
        """Delete a container's device, which waits for RCU. Idempotent."""
        link = namespace.route.find_link(interface.name)
        if link is not None:
            namespace.route.transact(delete_link(link.index))

    def cut(self, interface: Interface) -> None:
        """Take a tap off its bridge; whoever has it open may go on to. Idempotent."""
        link = self._route.find_link(interface.device)
        if link is not None:
            self._route.transact(set_link(link.index, up=False, master=0))

    def close(self) -> None:
        self._route.close()

    def _make_one(self, plug: Plug, namespace: Namespace | None, undo: contextlib.ExitStack) -> None:
        if plug.driver != "bridge":
            assert namespace is not None
            self._make_sub_device(plug, namespace)
        else:
            index = self._make_veth(plug, namespace) if namespace else self._make_tap(plug, undo)
            self._set_up_port(plug, index, is_guests=namespace is None)

    def _make_sub_device(self, plug: Plug, namespace: Namespace) -> None:
        interface = plug.interface
        device = SubDevice(
            kind=plug.driver,
            mode=plug.mode,
            parent=plug.index,
            name=interface.name,
            mac=interface.mac,
            namespace=namespace.fd,
            mtu=interface.mtu,
        )
        self._route.transact(create_sub_device(device))
        self._set_up(interface, namespace)

    def _make_veth(self, plug: Plug, namespace: Namespace) -> int:
        interface = plug.interface
        pair = VethPair(
            device=interface.device,
            bridge=plug.index,
            peer=interface.name,
            peer_mac=interface.mac,
            namespace=namespace.fd,
            mtu=interface.mtu,
        )
        self._route.transact(create_veth(pair))
        self._set_up(interface, namespace)
        return socket.if_nametoindex(interface.device)

    @staticmethod
    def _set_up(interface: Interface, namespace: Namespace) -> None:
        peer = namespace.route.find_link(interface.name)
        assert peer is not None
        messages = [set_link(peer.index, up=True)]
        addresses = (interface.address, interface.address6)
        messages += (add_address(peer.index, address) for address in addresses if address is not None)
        messages += (add_address(peer.index, address) for address in interface.link_local)
        gateways = (interface.gateway, interface.gateway6)
        messages += (add_default_route(peer.index, gateway) for gateway in gateways if gateway is not None)
        namespace.route.transact(*messages)

    def _make_tap(self, plug: Plug, undo: contextlib.ExitStack) -> int:
        interface = plug.interface
        create_tap(interface.device, owner=self._tap.owner, vnet_hdr=self._tap.vnet_hdr)
        index = socket.if_nametoindex(interface.device)
        undo.callback(self._route.transact, delete_link(index))
        self._route.transact(
            set_link(index, up=True, master=plug.index, mtu=interface.mtu, alias=self._alias)
        )
        return index

    def _set_up_port(self, plug: Plug, index: int, *, is_guests: bool) -> None:
        messages = [fix_port_of_mac(index, plug.interface.mac)]
        hairpin = is_bridge_filtered()
        if plug.isolated or hairpin or is_guests:
            # A guest's kernel sends what it likes: the bridge takes from it what comes from its own MAC.
            messages.append(set_port(index, isolated=plug.isolated, hairpin=hairpin, locked=is_guests))
        self._route.transact(*messages)

# SPDX-License-Identifier: Apache-2.0
"""Names of containers on their networks: the daemon's side of the resolver.

The resolver (``proa.network.resolver.server``) is one process for all networks. It is nobody's child and goes
on without the daemon; a later daemon finds it by its control socket, and the daemon of the day starts it
again when it ends, and tells it all. It runs only while there is a network that wants it.

    EXEC_ROOT/dns/control, pid

A name is known as soon as ``add`` returns: the resolver reads what it has been told before it answers.
"""

from __future__ import annotations

import contextlib
import grp
import json
import logging
import os
import pwd
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

from proa.host.process import run
from proa.model.errors import ToolFailed
from proa.model.network import Endpoint, Network
from proa.network.files import addresses_of
from proa.network.resolver import server

USERS = ("nobody",)  # it needs no right but to read the host's resolv.conf
RESTART_DELAY_S = 1.0  # a resolver that cannot stay up must not busy the host
START_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 5.0
END_GRACE_S = 2.0
_DNS_PORT = 53
_IP_FREEBIND = 15  # the address may come back later: somebody may delete the bridge

_log = logging.getLogger(__name__)

Packet = dict[str, Any]  # Any: JSON
Known = Iterable[tuple[Network, Endpoint, Sequence[str]]]


class Resolvers:
    """What the networks need of the resolver. ``tasks`` runs what keeps it up.

    :param known: lists all endpoints with the nameservers their containers want, for a resolver that was
        started anew.
    """

    def __init__(
        self, root: Path, upstream: Path, tasks: anyio.abc.TaskGroup, known: Callable[[], Known]
    ) -> None:
        self._root = root
        self._upstream = upstream
        self._tasks = tasks
        self._known = known
        self._networks: dict[str, Network] = {}
        self._control: socket.socket | None = None
        self._scope = anyio.CancelScope()
        self._gone = anyio.Event()
        self._failed = False
        self._closed = False
        self._starting = anyio.Lock()

    def want(self, *networks: Network) -> None:
        """Have the networks answered for as soon as the resolver runs."""
        self._networks |= {network.id: network for network in networks}

    async def ensure(self, *networks: Network) -> bool:
        """Have the networks answered for. Their bridges have their addresses, or will.

        :return: whether the resolver runs. A failure is logged: the networks work, without names.
        """
        self.want(*networks)
        async with self._starting:
            if self._control is None and not self._closed and self._networks:
                return await self._connect_and_tell()
        for network in networks:
            self._tell_network(network, listens=False)
        return not self._failed

    def may_be_asked(self, network: Network) -> bool:
        """Whether the resolver answers for the network, or is about to."""
        return network.id in self._networks and not self._failed

    def add(self, network: Network, endpoint: Endpoint, servers: Sequence[str] = ()) -> None:
        """Make the endpoint's names known, in place of what it was known by. Idempotent.

        :param servers: whom its container wants asked for names that are not on its networks.
        """
        self._send(_endpoint_packet(network, endpoint, servers))

    def remove(self, endpoint: Endpoint) -> None:
        """Forget the endpoint's names. Idempotent."""
        self._send({"op": "drop", "key": endpoint.endpoint_id})

    async def stop(self, network: Network) -> None:
        """Answer for the network no more; the last one ends the resolver. Idempotent."""
        if self._networks.pop(network.id, None) is None:
            return
        if self._networks:
            self._send({"op": "forget", "key": network.id})
            return
        control, self._control = self._control, None
        if control is not None:
            with contextlib.suppress(OSError):
                control.send(json.dumps({"op": "end"}).encode())
            with anyio.move_on_after(END_GRACE_S, shield=True):
                await self._gone.wait()

    def close(self) -> None:
        """Leave the resolver, which goes on. Idempotent."""
        self._closed = True
        self._control = None
        self._scope.cancel()

    # --- the connection ---

    async def _connect_and_tell(self) -> bool:
        try:
            control, listening = await self._find_or_start()
        except (OSError, ToolFailed, TimeoutError) as error:
            _log.warning("names will not resolve: %s", error)
            self._failed = True
            return False
        self._failed = False
        if self._closed:
            control.close()
            return True
        self._control, self._gone = control, anyio.Event()
        self._scope = anyio.CancelScope()
        for network in list(self._networks.values()):
            self._tell_network(network, listens=network.id in listening)
        endpoints = list(self._known())
        for network, endpoint, servers in endpoints:
            self._send(_endpoint_packet(network, endpoint, servers))
        keys = [endpoint.endpoint_id for _network, endpoint, _servers in endpoints]
        self._send({"op": "keep", "networks": list(self._networks), "endpoints": keys})
        self._tasks.start_soon(self._keep_up, control, self._scope, self._gone, name="resolver")
        return True

    async def _find_or_start(self) -> tuple[socket.socket, Sequence[str]]:
        """Return a connection to the resolver, and the networks it listens for."""
        self._root.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            control = connect(self._root)
            answer = await _hello(control)
            if answer["version"] == server.VERSION:
                return control, answer["networks"]
            await _end(control)
        argv: list[str | Path] = [sys.executable, "-I", "-m", server.__name__]
        argv += (self._root, self._upstream, self._account())
        await run(argv, timeout_s=START_TIMEOUT_S)
        control = connect(self._root)
        return control, (await _hello(control))["networks"]

    def _account(self) -> str:
        """Choose whom it becomes: root only where nobody else may read the list of nameservers."""
        with contextlib.suppress(OSError):
            reachable = all(path.stat().st_mode & 0o001 for path in self._upstream.resolve().parents)
            if reachable and self._upstream.stat().st_mode & 0o004:
                for name in USERS:
                    with contextlib.suppress(KeyError):
                        grp.getgrgid(pwd.getpwnam(name).pw_gid)
                        return name
        return "root"

    def _tell_network(self, network: Network, *, listens: bool) -> None:
        packet = {
            "op": "network",
            "key": network.id,
            "name": network.name,
            "subnets": [str(subnet) for subnet in (network.subnet, network.subnet6) if subnet is not None],
            "internal": network.internal,
            "address": str(network.gateway or network.gateway6),
        }
        if listens:
            self._send(packet)
            return
        gateway = str(packet["address"])
        try:
            with contextlib.ExitStack() as opened:
                kinds = (socket.SOCK_DGRAM, socket.SOCK_STREAM)
                sockets = [opened.enter_context(_bind(gateway, kind)) for kind in kinds]
                self._send(packet, [one.fileno() for one in sockets])
        except OSError as error:
            _log.warning("network %s: names will not resolve: %s:53: %s", network.name, gateway, error)

    def _send(self, packet: Packet, descriptors: Sequence[int] = ()) -> None:
        if self._control is None:
            return  # it will be told all when it runs
        data = json.dumps(packet).encode()
        try:
            socket.send_fds(self._control, [data], list(descriptors))
        except OSError as error:
            # ``_keep_up`` sees the end of the connection, and begins anew.
            _log.warning("the resolver does not take what it is told: %s", error)
            self._control.shutdown(socket.SHUT_RDWR)

    async def _keep_up(self, control: socket.socket, scope: anyio.CancelScope, gone: anyio.Event) -> None:
        """Begin anew when the resolver ends, unless ``stop`` wants that; ``close`` cancels this."""
        with scope:
            with control:
                await anyio.wait_readable(control)  # it says nothing unasked: this is the end
            gone.set()
            if self._control is not control:
                return
            self._control = None
            _log.warning("the resolver has ended; starting it again")
            while not self._closed:
                if await self.ensure():
                    return
                await anyio.sleep(RESTART_DELAY_S)


def connect(root: Path) -> socket.socket:
    """Return a connection to the resolver of an exec root's ``dns`` directory.

    :raises OSError: it does not run.
    """
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        # By descriptor: the path itself may be longer than the 108 bytes an address takes.
        control.connect(f"/proc/self/fd/{folder}/{server.CONTROL}")
        control.setblocking(False)
    except OSError:
        control.close()
        raise
    finally:
        os.close(folder)
    return control


async def _hello(control: socket.socket) -> Packet:
    control.send(json.dumps({"op": "hello"}).encode())
    with anyio.fail_after(ANSWER_TIMEOUT_S):
        await anyio.wait_readable(control)
    data = control.recv(server.PACKET_BYTES)
    if not data:
        raise OSError("the resolver has ended")
    answer: Packet = json.loads(data)
    return answer


async def _end(control: socket.socket) -> None:
    """Have it end, and wait for that a moment."""
    with control, contextlib.suppress(OSError), anyio.move_on_after(END_GRACE_S, shield=True):
        control.send(json.dumps({"op": "end"}).encode())
        await anyio.wait_readable(control)


def _bind(address: str, kind: socket.SocketKind) -> socket.socket:
    with contextlib.ExitStack() as undo:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = undo.enter_context(socket.socket(family, kind))
        made.setsockopt(socket.SOL_IP, _IP_FREEBIND, 1)  # of IPv6 sockets too
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, _DNS_PORT))
        if kind == socket.SOCK_STREAM:
            made.listen(64)
        undo.pop_all()
    return made


def _endpoint_packet(network: Network, endpoint: Endpoint, servers: Sequence[str]) -> Packet:
    return {
        "op": "endpoint",
        "key": endpoint.endpoint_id,
        "network": network.id,
        "container": endpoint.container_id,
        "addresses": [str(address) for address in addresses_of([endpoint])],
        "names": list(endpoint.dns_names),
        "servers": list(servers),
        "links": dict(endpoint.links),
    }

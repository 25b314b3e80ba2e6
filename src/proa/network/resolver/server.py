# SPDX-License-Identifier: Apache-2.0
"""The resolver: one process for all networks of a daemon, which it outlives.

    python -I -m proa.network.resolver.server DIRECTORY RESOLV_CONF USER

It puts itself in the background once DIRECTORY/control accepts the daemon, and becomes USER, who owns
nothing: the sockets it answers on are bound by the daemon and handed over. What goes wrong is in
DIRECTORY/log. What it knows it is told on the control socket (SOCK_SEQPACKET, one JSON object in each packet)
by the daemon of the day:

    hello                          answered with {"version": 2, "networks": [keys it listens for]}
    network  key name subnets internal [address]   with two descriptors (UDP, TCP) unless it listens already
    endpoint key network container addresses names servers links
    drop     key                   forget an endpoint
    forget   key                   forget a network and close its sockets
    keep     networks endpoints    forget all others (keys)
    end                            stop

A packet is handled before any question that was sent after it: before it answers, the program reads what the
daemon has sent.

Source: docs/decisions/0007-names.md, for why it is ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import encodings.idna  # noqa: F401 - of getaddrinfo, which imports it late: USER may not read it
import json
import os
import pwd
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from proa.network.resolver import message
from proa.network.resolver.forward import Upstream, forward
from proa.network.resolver.message import Address, Question
from proa.network.resolver.views import EndpointEntry, NetworkEntry, Views

VERSION = 2
CONTROL = "control"
PID = "pid"
LOG = "log"
PACKET_BYTES = 256 * 1024
MAX_FORWARDED = 512  # questions that wait for other nameservers' answers
MAX_FORWARDED_OF_ONE = 64  # of one container, which must not use up the rest
TCP_IDLE_S = 10.0
DATAGRAMS_AT_ONCE = 64
QUERY_BYTES = 4096
MAX_TCP = 256  # connections

Packet = Mapping[str, Any]  # Any: what JSON may hold; the daemon alone can write to the socket


@dataclass(slots=True)
class _Listening:
    """The sockets of one network. ``address``: the gateway's, where they are bound."""

    udp: socket.socket
    tcp: asyncio.Task[asyncio.Server]
    address: str

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.udp)
        self.udp.close()
        self.tcp.add_done_callback(_close_server)


class Resolver:
    """Answers questions that come to any of the networks."""

    def __init__(self, upstream: Upstream) -> None:
        self.views = Views()
        self.ended = asyncio.Event()
        self._upstream = upstream
        self._listening: dict[str, _Listening] = {}
        self._waiting: dict[Address, int] = {}
        self._connections = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._daemons: set[socket.socket] = set()

    # --- what the daemon says ---

    def listen_to(self, daemon: socket.socket) -> None:
        """Take up a daemon's connection."""
        self._daemons.add(daemon)
        asyncio.get_running_loop().add_reader(daemon, self._hear, daemon)

    def _hear(self, daemon: socket.socket) -> None:
        """Carry out all packets that have come by a connection."""
        while True:
            try:
                data, descriptors, _flags, _address = socket.recv_fds(daemon, PACKET_BYTES, 2)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                asyncio.get_running_loop().remove_reader(daemon)
                self._daemons.discard(daemon)
                daemon.close()
                return
            answer = self.obey(json.loads(data), descriptors)
            if answer is not None:
                daemon.send(json.dumps(answer).encode())

    def obey(self, packet: Packet, descriptors: list[int]) -> Packet | None:
        """Carry out one packet; return what is answered."""
        key = packet.get("key", "")
        match packet["op"]:
            case "hello":
                return {"version": VERSION, "networks": list(self._listening)}
            case "network":
                subnets = tuple(ip_network(text) for text in packet["subnets"])
                self.views.networks[key] = NetworkEntry(
                    name=packet["name"], subnets=subnets, is_internal=packet["internal"]
                )
                if descriptors:
                    self._listen(key, packet["address"], descriptors)
            case "endpoint":
                self.views.put(key, _endpoint(packet))
            case "drop":
                self.views.drop(key)
            case "forget":
                self._forget(key)
            case "keep":
                self.views.keep_only(packet["endpoints"])
                for network in set(self.views.networks) - set(packet["networks"]):
                    self._forget(network)
            case "end":
                self.ended.set()
            case _:
                pass  # a later daemon asks for the version first
        return None

    def _forget(self, key: str) -> None:
        self.views.networks.pop(key, None)
        listening = self._listening.pop(key, None)
        if listening is not None:
            listening.close()

    def _listen(self, key: str, address: str, descriptors: list[int]) -> None:
        loop = asyncio.get_running_loop()
        udp, tcp = (socket.socket(fileno=descriptor) for descriptor in descriptors)
        udp.setblocking(False)
        old = self._listening.pop(key, None)
        if old is not None:
            old.close()
        server = loop.create_task(asyncio.start_server(partial(self._serve_connection, key), sock=tcp))
        self._listening[key] = _Listening(udp=udp, tcp=server, address=address)
        loop.add_reader(udp, self._receive, key, udp)

    # --- what containers ask ---

    def _receive(self, network: str, udp: socket.socket) -> None:
        """Answer the datagrams that have come to a network's socket, but not without end."""
        for daemon in list(self._daemons):
            self._hear(daemon)
        for _datagram in range(DATAGRAMS_AT_ONCE):
            try:
                data, peer = udp.recvfrom(QUERY_BYTES)
            except OSError:
                return
            question = message.parse_question(data)
            if question is None:
                continue
            source = ip_address(peer[0])
            answer = self.answer(network, source, question)
            if answer is not None:
                _send(udp, answer, peer)
                continue
            later = self._answer_later(network, source, data, question, udp, peer)
            task = asyncio.get_running_loop().create_task(later)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer_later(
        self, network: str, source: Address, data: bytes, question: Question, udp: socket.socket, peer: Any
    ) -> None:
        _send(udp, await self._ask_others(network, source, data, question, by_tcp=False), peer)

    def answer(
        self, network: str, source: Address, question: Question, limit: int | None = None
    ) -> bytes | None:
        """Return the answer to what is decided here; None for a question to other nameservers."""
        say = partial(message.answer, question, limit=limit)
        view = self.views.view(network, source)
        if view is None:
            return say(message.REFUSED)
        if not message.is_query(question):
            return say(message.NOTIMP)
        kinds = {message.A: 4, message.AAAA: 6}
        found = self.views.addresses(view, question.name)
        if found is not None:
            wanted = kinds.get(question.kind, 0)
            any_kind = question.kind == message.ANY
            return say(addresses=[one for one in found if any_kind or one.version == wanted])
        if question.kind == message.PTR:
            names = self.views.names(view, question.name)
            if names is not None:
                return say(names=names) if names else say(message.NXDOMAIN)
        return None if view.forwards else say(message.NXDOMAIN)

    async def _ask_others(
        self, network: str, source: Address, data: bytes, question: Question, *, by_tcp: bool
    ) -> bytes:
        view = self.views.view(network, source)
        own = {listening.address for listening in self._listening.values()}
        wanted = (view.servers if view else ()) or self._upstream.servers()
        servers = [server for server in wanted if server not in own]
        waiting = self._waiting.get(source, 0)
        failed = message.answer(question, message.SERVFAIL)
        if waiting >= MAX_FORWARDED_OF_ONE or sum(self._waiting.values()) >= MAX_FORWARDED:
            return failed
        self._waiting[source] = waiting + 1
        try:
            return await forward(data, question, servers, by_tcp=by_tcp) or failed
        finally:
            self._waiting[source] -= 1
            if not self._waiting[source]:
                del self._waiting[source]

    async def _serve_connection(
        self, network: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._connections += 1
        try:
            while self._connections <= MAX_TCP:
                async with asyncio.timeout(TCP_IDLE_S):
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    data = await reader.readexactly(size)
                question = message.parse_question(data)
                if question is None:
                    return
                source = ip_address(writer.get_extra_info("peername")[0])
                answer = self.answer(network, source, question, limit=0xFFFF)
                if answer is None:
                    answer = await self._ask_others(network, source, data, question, by_tcp=True)
                writer.write(len(answer).to_bytes(2, "big") + answer)
                async with asyncio.timeout(TCP_IDLE_S):
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return
        finally:
            self._connections -= 1
            writer.close()


def _close_server(made: asyncio.Task[asyncio.Server]) -> None:
    if not made.cancelled() and made.exception() is None:
        made.result().close()


def _send(udp: socket.socket, answer: bytes, peer: Any) -> None:
    with contextlib.suppress(OSError):  # the network has gone, or its queue is full: the client asks again
        udp.sendto(answer, peer)


def _endpoint(packet: Packet) -> EndpointEntry:
    return EndpointEntry(
        container=packet["container"],
        network=packet["network"],
        addresses=tuple(ip_address(text) for text in packet["addresses"]),
        names=tuple(packet["names"]),
        servers=tuple(packet["servers"]),
        links={alias.lower(): name.lower() for alias, name in packet["links"].items()},
    )


async def _serve(control: socket.socket, upstream: Path) -> None:
    resolver = Resolver(Upstream(upstream))
    loop = asyncio.get_running_loop()

    async def accept() -> None:
        while True:
            daemon, _address = await loop.sock_accept(control)
            daemon.setblocking(False)
            resolver.listen_to(daemon)

    accepting = loop.create_task(accept())
    await resolver.ended.wait()
    accepting.cancel()


def main() -> None:
    """Go to the background and serve until the daemon says so, or the program is killed."""
    directory, upstream, user = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.chdir(directory)  # an address takes 108 bytes, a path may be longer
    Path(CONTROL).unlink(missing_ok=True)
    os.umask(0o077)
    control.bind(CONTROL)
    control.listen(4)
    control.setblocking(False)
    child = os.fork()
    if child:
        Path(PID).write_text(f"{child}\n")
        os._exit(0)
    os.setsid()
    nothing, log = os.open(os.devnull, os.O_RDWR), os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for descriptor, opened in ((0, nothing), (1, nothing), (2, log)):
        os.dup2(opened, descriptor)
    os.chdir("/")
    if user != "root":
        account = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    asyncio.run(_serve(control, upstream))


if __name__ == "__main__":
    main()

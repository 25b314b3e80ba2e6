# SPDX-License-Identifier: Apache-2.0
"""A host of its own for tests of networks: namespaces entered by test threads, never by the daemon's code.

``private_host`` puts the calling thread into a fresh network namespace with a wide area network behind it, so
that bridges, routes and rules of a test never touch the machine's. ``inside`` runs a function in another
namespace, in a thread of its own; a socket made there stays there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import TypeVar

from proa.host.rtnetlink import (
    RouteSocket,
    VethPair,
    add_address,
    add_default_route,
    create_bridge,
    create_veth,
    set_link,
)

CLONE_NEWNET = 0x40000000
WAN_HOST = IPv4Interface("203.0.113.1/24")  # the private host's address on its wide area network
WAN_PEER = IPv4Interface("203.0.113.2/24")  # a machine out there
WAN_HOST6 = IPv6Interface("2001:db8::1/64")
WAN_PEER6 = IPv6Interface("2001:db8::2/64")
CONNECT_TIMEOUT_S = 10.0  # a connection that should come about does so on the busiest machine
REFUSED_TIMEOUT_S = 0.4  # what should not, is not waited for
_OWN = "/proc/thread-self/ns/net"

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def inside(namespace: int | Path, function: Callable[[], T]) -> T:
    """Run the function inside a namespace, given by descriptor or path, and return its result."""
    outcome: list[T | BaseException] = []

    def body() -> None:
        try:
            _enter(namespace)
            outcome.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            outcome.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    (result,) = outcome
    if isinstance(result, BaseException):
        raise result
    return result


@contextlib.contextmanager
def private_host() -> Iterator[int]:
    """Make the calling thread's network a fresh one; gives a descriptor of the wide area network's peer."""
    home = os.open(_OWN, os.O_RDONLY)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, home)
        outside = _fresh_namespace()
        undo.callback(os.close, outside)
        undo.callback(_enter, home)
        _unshare()
        _wide_area_network(outside)
        yield outside


def exchange(
    server: socket.socket, client: Callable[[], socket.socket], *, timeout_s: float = CONNECT_TIMEOUT_S
) -> str:
    """Connect a client to a listening server, pass a byte each way, and return whom the server saw."""
    server.settimeout(timeout_s)
    with client() as near:
        near.settimeout(timeout_s)
        far, peer = server.accept()
        with far:
            far.settimeout(timeout_s)
            near.sendall(b"q")
            assert far.recv(1) == b"q"
            far.sendall(b"a")
            assert near.recv(1) == b"a"
    return str(peer[0])


def listen(namespace: int | Path, port: int) -> socket.socket:
    """Open a listening TCP socket on all addresses of a namespace."""
    return inside(namespace, lambda: socket.create_server(("0.0.0.0", port)))


def listen6(namespace: int | Path, port: int) -> socket.socket:
    """As ``listen``, on all IPv6 addresses."""
    return inside(namespace, lambda: socket.create_server(("::", port), family=socket.AF_INET6))


def connect(
    namespace: int | Path, address: IPv4Address | IPv6Address | str, port: int
) -> Callable[[], socket.socket]:
    """Return a function that connects from a namespace."""
    return lambda: inside(
        namespace, lambda: socket.create_connection((str(address), port), timeout=CONNECT_TIMEOUT_S)
    )


def cannot_connect(namespace: int | Path, address: IPv4Address | IPv6Address | str, port: int) -> bool:
    """Tell whether a connection from a namespace is refused or goes unanswered."""
    try:
        inside(
            namespace, lambda: socket.create_connection((str(address), port), timeout=REFUSED_TIMEOUT_S)
        ).close()
    except OSError:
        return True
    return False


def this_namespace() -> Path:
    """Return a path of the calling thread's namespace."""
    return Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net")


def _fresh_namespace() -> int:
    opened: list[int] = []

    def body() -> None:
        _unshare()
        _loopback_up()
        opened.append(os.open(_OWN, os.O_RDONLY))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return opened[0]


def _wide_area_network(outside: int) -> None:
    _loopback_up()
    route = RouteSocket()
    route.transact(create_bridge("wan", mac="02:00:00:00:00:01", mtu=1500))
    wan = route.find_link("wan")
    assert wan is not None
    pair = VethPair(
        device="wanport",
        bridge=wan.index,
        peer="eth0",
        peer_mac="02:00:00:00:00:02",
        namespace=outside,
        mtu=1500,
    )
    route.transact(
        set_link(wan.index, up=True),
        add_address(wan.index, WAN_HOST),
        add_address(wan.index, WAN_HOST6),
        create_veth(pair),
    )
    route.transact(add_default_route(wan.index, WAN_PEER.ip))
    route.close()

    def far_side() -> None:
        far = RouteSocket()
        link = far.find_link("eth0")
        assert link is not None
        far.transact(
            set_link(link.index, up=True),
            add_address(link.index, WAN_PEER),
            add_address(link.index, WAN_PEER6),
        )
        # It knows a way to the containers' addresses, as a hostile neighbour would.
        far.transact(add_default_route(link.index, WAN_HOST.ip))
        far.close()

    inside(outside, far_side)


def _loopback_up() -> None:
    route = RouteSocket()
    route.transact(set_link(1, up=True))
    route.close()


def _unshare() -> None:
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def _enter(namespace: int | Path) -> None:
    descriptor = namespace if isinstance(namespace, int) else os.open(namespace, os.O_RDONLY)
    try:
        if _libc.setns(descriptor, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
    finally:
        if not isinstance(namespace, int):
            os.close(descriptor)

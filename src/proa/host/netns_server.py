# SPDX-License-Identifier: Apache-2.0
"""A child program that makes and enters network namespaces, so that the daemon never has to.

Runs by its path with ``python -I -S`` (14 ms, standard library only) and one argument, the number of a
SOCK_SEQPACKET socket. One request is one packet, so is one answer:

    new            a fresh namespace: loopback up, no IPv6 on later interfaces, Docker's two sysctls
    new-of PATH    the same, owned by the user namespace that is mounted at PATH
    enter PATH     the namespace that is mounted at PATH
    ipv6 PATH      the same, with IPv6 on interfaces that are made in it from now on

    ok             with two descriptors: the namespace, and an rtnetlink socket inside it
    error ERRNO TEXT

It is in its own namespace again before it answers, so it keeps none alive. It ends when the socket does,
that is with the daemon, however that ends.

Source: network_namespaces(7), setns(2), unshare(2); moby daemon/oci_linux.go (the sysctls' values).
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys

CLONE_NEWNET = 0x40000000
CLONE_NEWUSER = 0x10000000
NETLINK_ROUTE = 0
_PR_SET_PDEATHSIG = 1
SIOCSIFFLAGS = 0x8914
IFF_UP_RUNNING = 0x41
IPV6_SYSCTLS = (
    ("/proc/sys/net/ipv6/conf/default/disable_ipv6", b"0"),
    # The engine gives each address once, and tells of the gateway itself.
    ("/proc/sys/net/ipv6/conf/default/accept_dad", b"0"),
    ("/proc/sys/net/ipv6/conf/default/accept_ra", b"0"),
)
_NAMESPACE = "/proc/self/ns/net"
_REQUEST_BYTES = 8192

SYSCTLS = (
    # Networks are IPv4 here; an address of its own would cost each interface multicast and detection.
    ("/proc/sys/net/ipv6/conf/default/disable_ipv6", b"1"),
    # What Docker gives every container: ports below 1024 and ping without a capability.
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", b"0"),
    ("/proc/sys/net/ipv4/ping_group_range", b"0 2147483647"),
)

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Serve until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is meant for the daemon
    control = socket.socket(fileno=int(sys.argv[1]))
    home = os.open(_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    while request := control.recv(_REQUEST_BYTES):
        descriptors: list[int] = []
        try:
            try:
                _enter(request)
                descriptors = _descriptors()
            finally:
                _check(_libc.setns(home, CLONE_NEWNET), "return")
            answer = b"ok"
        except OSError as error:
            answer = f"error {error.errno or 0} {error}".encode()
        rights = array.array("i", descriptors)
        control.sendmsg([answer], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else [])
        for descriptor in descriptors:
            os.close(descriptor)


def _enter(request: bytes) -> None:
    verb, _, path = request.partition(b" ")
    if verb == b"new":
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        _prepare()
    elif verb == b"new-of":
        _enter_new_of(path)
        _prepare()
    elif verb in (b"enter", b"ipv6"):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(descriptor, CLONE_NEWNET), os.fsdecode(path))
        finally:
            os.close(descriptor)
        if verb == b"ipv6":
            _write(IPV6_SYSCTLS)
    else:
        raise OSError(22, f"unknown request {verb!r}")


def _enter_new_of(path: bytes) -> None:
    """Enter a fresh namespace that belongs to a user namespace: made by a child, which cannot leave that."""
    done, tell = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            user = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            _check(_libc.setns(user, CLONE_NEWUSER), os.fsdecode(path))
            _check(_libc.unshare(CLONE_NEWNET), "unshare")
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # not before: setns forgets it
            os.write(tell, b"x")
            signal.pause()
        except OSError as error:
            os.write(tell, f"!{error.errno or 0} {error}".encode())
        finally:
            os._exit(1)
    try:
        os.close(tell)
        answer = os.read(done, 4096)
        if answer != b"x":
            number, _, text = answer.decode(errors="replace").removeprefix("!").partition(" ")
            raise OSError(int(number or 0), text or "the child has died")
        namespace = os.open(f"/proc/{child}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(namespace, CLONE_NEWNET), "setns")
        finally:
            os.close(namespace)
    finally:
        os.close(done)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _prepare() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("=16sH22x", b"lo", IFF_UP_RUNNING))
    _write(SYSCTLS)


def _write(sysctls: tuple[tuple[str, bytes], ...]) -> None:
    for path, value in sysctls:
        try:
            descriptor = os.open(path, os.O_WRONLY)
        except FileNotFoundError:
            continue  # a kernel without IPv6
        try:
            os.write(descriptor, value)
        finally:
            os.close(descriptor)


def _descriptors() -> list[int]:
    namespace = os.open(_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
    except OSError:
        os.close(namespace)
        raise
    return [namespace, route.detach()]


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main()

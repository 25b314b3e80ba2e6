# SPDX-License-Identifier: Apache-2.0
"""The end of a tap that a program has open, plugged into another tap device later.

A tap's end is a descriptor of /dev/net/tun. Once its device is deleted the descriptor is free again, and can
be attached to another device while a program (QEMU, stopped) still holds it: so a machine that is made ahead
gets the very device that the network has prepared for it, by one ioctl.

A program that waits for frames would find the free descriptor in error without end. QEMU stops waiting when
its guest cannot take a frame that is there; so one is sent to it first, of a type that no guest knows. It
arrives with whatever the guest gets first.

Source: Linux drivers/net/tun.c (tun_detach_all, tun_attach); QEMU net/tap.c (tap_send).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import time
from pathlib import Path

from proa.host.rtnetlink import RouteSocket, delete_link, set_link
from proa.host.tap import IFF_NO_PI, IFF_TAP, IFF_TUN_EXCL, IFF_VNET_HDR, TUNSETIFF

TAKE_TIMEOUT_S = 2.0  # for QEMU's main loop to come round
_TUN = "/dev/net/tun"
_TUNGETIFF = 0x800454D2
_TUNGETVNETHDRSZ, _TUNSETVNETHDRSZ, _TUNSETOFFLOAD = 0x800454D7, 0x400454D8, 0x400454D0
_F_CSUM, _F_TSO4, _F_TSO6, _F_TSO_ECN, _F_UFO = 1, 2, 4, 8, 16
_SIOCETHTOOL, _GET_TX_CHECKSUM, _GET_TSO = 0x8946, 0x16, 0x1E
_IFREQ_FLAGS, _IFREQ_DATA = struct.Struct("=16sH22x"), struct.Struct("@16sP16x")
_LOCAL_EXPERIMENT = 0x88B5  # IEEE 802: for no one in particular
_FRAME = b"\xff" * 6 + b"\x02" + b"\0" * 5 + _LOCAL_EXPERIMENT.to_bytes(2, "big") + b"\0" * 46


class LooseTap:
    """Such an end. ``fd`` is to be inherited by the program; ``close`` lets go of ours.

    :raises OSError: a device of that name exists, or there is no /dev/net/tun.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._header_bytes = 0
        self._offloads = 0
        self.fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._set_device(name, IFF_TUN_EXCL)
        except BaseException:
            self.close()
            raise

    @classmethod
    def held(cls, fd: int) -> LooseTap:
        """One that a program holds as well, attached to a device or not."""
        tap = cls.__new__(cls)
        tap._name, tap._header_bytes, tap._offloads, tap.fd = "", 0, 0, fd
        request = bytearray(_IFREQ_FLAGS.size)
        with contextlib.suppress(OSError):  # on no device
            fcntl.ioctl(fd, _TUNGETIFF, request)
            tap._name = bytes(request[:16]).rstrip(b"\0").decode()
        return tap

    @property
    def device(self) -> str:
        """The device that it is attached to; "" for none."""
        return self._name

    def close(self) -> None:
        """Idempotent. The first device, if it is still there, goes with the last holder."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def loosen(self) -> None:
        """Take the descriptor off its device, which is deleted. The program must be unable to take frames.

        Blocks, for RCU and for the program: call it in a worker thread.

        :raises OSError: the program did not take the frame (ETIMEDOUT), or the kernel refuses.
        """
        with contextlib.closing(RouteSocket()) as route:
            index = socket.if_nametoindex(self._name)
            # The kernel would have its own say on a new interface, to a guest that is not its neighbour.
            with contextlib.suppress(OSError):
                Path(f"/proc/sys/net/ipv6/conf/{self._name}/disable_ipv6").write_text("1")
            route.transact(set_link(index, up=True))
            self._send_frame()
            self._remember()
            route.transact(delete_link(index))

    def attach(self, name: str) -> None:
        """Take the descriptor to an existing device, with what the program has set. Raises OSError."""
        self._set_device(name)
        fcntl.ioctl(self.fd, _TUNSETVNETHDRSZ, struct.pack("i", self._header_bytes))
        for offloads in (self._offloads | _F_UFO if self._offloads else 0, self._offloads):
            try:
                fcntl.ioctl(self.fd, _TUNSETOFFLOAD, offloads)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:  # kernels before 6.2 do not know all of UFO
                    raise

    def move(self, name: str) -> None:
        """Take it from its device, which is deleted, to another one. One that is not there is made, and goes
        with the descriptor. A program that waits for frames turns round and round meanwhile.

        Blocks, for RCU. Raises OSError.
        """
        with contextlib.suppress(OSError), contextlib.closing(RouteSocket()) as route:
            index = socket.if_nametoindex(self._name)  # it may be gone already
            self._remember()
            route.transact(delete_link(index))
        self.attach(name)
        self._name = name

    # --- machinery ---

    def _set_device(self, name: str, more: int = 0) -> None:
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | more
        try:
            fcntl.ioctl(self.fd, TUNSETIFF, _IFREQ_FLAGS.pack(name.encode(), flags))
        except OSError as error:
            raise OSError(error.errno, f"tap {name}: {error.strerror}") from error

    def _send_frame(self) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
            link.bind((self._name, 0))
            link.send(_FRAME)
        deadline = time.monotonic() + TAKE_TIMEOUT_S
        while self._count_taken() == 0:
            if time.monotonic() > deadline:
                raise OSError(errno.ETIMEDOUT, f"tap {self._name}: nobody takes its frames")
            time.sleep(0.005)

    def _count_taken(self) -> int:
        # Not sysfs, which shows the devices of the network namespace that it was mounted in.
        for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
            name, _, counts = line.strip().partition(":")
            if name == self._name:
                return int(counts.split()[9])
        return 0

    def _remember(self) -> None:
        """Note what the program has told the device: it belongs to the device, not to the descriptor."""
        size = bytearray(4)
        fcntl.ioctl(self.fd, _TUNGETVNETHDRSZ, size)
        (self._header_bytes,) = struct.unpack("i", size)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
            if self._has(any_socket, _GET_TX_CHECKSUM):
                self._offloads = _F_CSUM
                if self._has(any_socket, _GET_TSO):  # drivers negotiate all of them or none
                    self._offloads |= _F_TSO4 | _F_TSO6 | _F_TSO_ECN

    def _has(self, any_socket: socket.socket, command: int) -> bool:
        answer = (ctypes.c_uint32 * 2)(command, 0)
        request = _IFREQ_DATA.pack(self._name.encode(), ctypes.addressof(answer))
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
        return bool(answer[1])

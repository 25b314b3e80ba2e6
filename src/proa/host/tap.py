# SPDX-License-Identifier: Apache-2.0
"""Persistent tap devices: the host's end of a virtual machine's network card.

Made here, opened later by QEMU under the name (``-netdev tap,ifname=…,script=no,downscript=no``). Whether
frames carry a virtio header is decided by whoever opens it: the flags of the last open count.

Source: Linux Documentation/networking/tuntap.rst; include/uapi/linux/if_tun.h.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct

_TUN = "/dev/net/tun"
TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNSETOWNER = 0x400454CC
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000

_IFREQ = struct.Struct("=16sH22x")


def create_tap(name: str, *, owner: int | None = None, vnet_hdr: bool = True) -> None:
    """Make a tap device that stays when nobody has it open.

    :param owner: uid that may open it without CAP_NET_ADMIN; None lets any user that may open
        /dev/net/tun do so.
    :raises OSError: EBUSY when a device of that name exists; ENOENT without /dev/net/tun.
    """
    flags = IFF_TAP | IFF_NO_PI | IFF_TUN_EXCL | (IFF_VNET_HDR if vnet_hdr else 0)
    device = _open()
    try:
        try:
            fcntl.ioctl(device, TUNSETIFF, _IFREQ.pack(name.encode(), flags))
        except OSError as error:
            raise OSError(error.errno, f"create tap {name}: {error.strerror}") from error
        # Until TUNSETPERSIST the device goes away with this descriptor, so a failure leaves nothing.
        if owner is not None:
            fcntl.ioctl(device, TUNSETOWNER, owner)
        fcntl.ioctl(device, TUNSETPERSIST, 1)
    finally:
        os.close(device)


def open_tap(name: str) -> int:
    """Open the end of a tap that exists, for frames without a virtio header; return the descriptor.

    :raises OSError: there is no such device, or somebody has it open.
    """
    device = _open()
    try:
        socket.if_nametoindex(name)  # the kernel would make one that is not there
        fcntl.ioctl(device, TUNSETIFF, _IFREQ.pack(name.encode(), IFF_TAP | IFF_NO_PI))
    except OSError as error:
        os.close(device)
        raise OSError(error.errno, f"open tap {name}: {error.strerror}") from error
    return device


def _open() -> int:
    return os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)

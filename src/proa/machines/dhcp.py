# SPDX-License-Identifier: Apache-2.0
"""Tells guests the addresses that the networks have chosen for them: one dnsmasq for each bridge with guests.

A full guest configures itself, so its address must reach it in a way that every system knows: DHCP. dnsmasq
only ever answers the MAC addresses it is told; it has no pool, no lease file and no DNS (the networks'
resolver does that). It is started anew whenever the guests of its bridge change, in milliseconds, so that it
need not read a file after it has given up its rights. It outlives the daemon; a later one finds it by its
pid file.

    <exec root>/dhcp/<bridge>.pid

Decision 0040. Source: dnsmasq(8); RFC 2131; RFC 2132 options 3, 6, 12, 26.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import anyio

from proa.host import process, watch
from proa.model.errors import EngineError, Unavailable

LEASE_S = 3600
END_TIMEOUT_S = 5.0
_USER = "nobody"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What one card of a guest is told. ``router`` None: no default route by this card."""

    mac: str
    address: IPv4Interface
    hostname: str
    router: IPv4Address | None
    servers: Sequence[str] = ()
    mtu: int = 1500


def command(bridge: str, leases: Sequence[Lease], pid_file: Path) -> list[str]:
    """Return dnsmasq's command line. Pure."""
    network = leases[0].address.network
    words = ["dnsmasq", "--conf-file=/dev/null", f"--pid-file={pid_file}"]
    words += ["--port=0", "--no-resolv", "--no-hosts", "--no-ping", "--quiet-dhcp", "--leasefile-ro"]
    words += [f"--user={_USER}", "--group=nogroup", f"--interface={bridge}", "--bind-interfaces"]
    words += ["--except-interface=lo", "--dhcp-authoritative"]
    words += [f"--dhcp-range={network.network_address},static,{network.netmask},{LEASE_S}"]
    for number, lease in enumerate(leases):
        tag = f"m{number}"
        words.append(f"--dhcp-host={lease.mac},set:{tag},{lease.address.ip},{lease.hostname},{LEASE_S}")
        # Without a value an option is not sent: dnsmasq would else name itself.
        words.append(_option(tag, "router", *([str(lease.router)] if lease.router else [])))
        words.append(_option(tag, "dns-server", *lease.servers))
        words.append(_option(tag, "mtu", str(lease.mtu)))
    return words


class Dhcp:
    """All responders of one daemon. ``root`` holds their pid files."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._leases: dict[str, dict[str, tuple[Lease, ...]]] = {}  # by bridge, then by owner
        self._turn = anyio.Lock()

    async def add(self, owner: str, leases: Mapping[str, Sequence[Lease]]) -> None:
        """Answer for a machine's cards, by bridge. Raises Unavailable, ToolFailed; then none is known."""
        if shutil.which("dnsmasq", path=process.BASE_ENV["PATH"]) is None and leases:
            raise Unavailable("networks of machines need dnsmasq: apt install dnsmasq-base")
        async with self._turn:
            for bridge, given in leases.items():
                self._leases.setdefault(bridge, {})[owner] = tuple(given)
            try:
                for bridge in leases:
                    await self._renew(bridge)
            except EngineError:
                await self._forget(owner)
                raise

    async def remove(self, owner: str) -> None:
        """Answer for the machine no more. Idempotent."""
        async with self._turn:
            await self._forget(owner)

    async def end_strangers(self) -> None:
        """End the responders of bridges that no machine is on: of an earlier daemon."""
        async with self._turn:
            for path in self._root.glob("*.pid"):
                if path.stem not in self._leases:
                    await self._end(path.stem)

    # --- machinery ---

    async def _forget(self, owner: str) -> None:
        for bridge, owners in list(self._leases.items()):
            if owners.pop(owner, None) is None:
                continue
            if not owners:
                del self._leases[bridge]
            with contextlib.suppress(EngineError):
                await self._renew(bridge)

    async def _renew(self, bridge: str) -> None:
        await self._end(bridge)
        leases = [lease for given in self._leases.get(bridge, {}).values() for lease in given]
        if not leases:
            return
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        # In the background it comes back when it has its sockets: then the guest may ask.
        await process.run(command(bridge, leases, self._pid_file(bridge)), timeout_s=10)

    async def _end(self, bridge: str) -> None:
        path = self._pid_file(bridge)
        pid = _read_pid(path)
        handle = watch.open_process(pid) if pid else None
        if handle is not None:
            with contextlib.closing(handle):
                if str(path).encode() in _command_of(handle.pid):
                    handle.send_signal(signal.SIGTERM)
                    with anyio.move_on_after(END_TIMEOUT_S):
                        await handle.wait()
                    handle.send_signal(signal.SIGKILL)
        path.unlink(missing_ok=True)

    def _pid_file(self, bridge: str) -> Path:
        return self._root / f"{bridge}.pid"


def _option(tag: str, name: str, *values: str) -> str:
    return ",".join((f"--dhcp-option=tag:{tag}", f"option:{name}", *values))


def _read_pid(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""

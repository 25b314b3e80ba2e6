# SPDX-License-Identifier: Apache-2.0
"""Names of containers on their networks: one dnsmasq for each user-defined network.

It listens on the bridge's address only, knows the network's containers by name, alias and short id, and
forwards everything else to the host's nameservers (an internal network forwards nothing). A name is added by
writing a file: dnsmasq watches the directory. It is nobody's child and goes on without the daemon; a later
daemon finds it by its pid file, checked against its command line, and the daemon of the day starts it again
when it ends.

    EXEC_ROOT/dns/<network short id>/pid
    EXEC_ROOT/dns/<network short id>/hosts/<endpoint short id>    "172.18.0.2 web alias 0123456789ab"

Source: dnsmasq(8), --hostsdir (removal of files is noticed since 2.87).
"""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import pwd
import shutil
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import anyio
import anyio.abc

from proa.host.process import run
from proa.host.watch import Handle, open_process
from proa.model.errors import ToolFailed
from proa.model.ids import short
from proa.model.network import Endpoint, Network

DNSMASQ = "dnsmasq"
USERS = ("dnsmasq", "nobody")  # the first that exists; it needs no right but to read its directory
RESTART_DELAY_S = 1.0  # a resolver that cannot stay up must not busy the host
STOP_GRACE_S = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolverPlan:
    """What one resolver does. ``upstream`` None: answer for the network's own names only."""

    directory: Path
    address: IPv4Address
    subnet: IPv4Network
    upstream: Path | None

    @property
    def hosts(self) -> Path:
        return self.directory / "hosts"

    @property
    def pid_file(self) -> Path:
        return self.directory / "pid"


def command_line(plan: ResolverPlan, *, user: str, group: str) -> list[str]:
    """Build dnsmasq's arguments. Pure."""
    argv = [
        DNSMASQ,
        "--conf-file=/dev/null",
        "--no-hosts",
        f"--hostsdir={plan.hosts}",
        f"--pid-file={plan.pid_file}",
        f"--user={user}",
        f"--group={group}",
        "--bind-interfaces",
        # A peer's name asked for as IPv6 is answered here, with nothing, not somewhere else with an error.
        "--domain-needed",
        f"--listen-address={plan.address}",
        "--cache-size=1000",
        *(f"--local=/{zone}/" for zone in reverse_zones(plan.subnet)),
    ]
    if plan.upstream is None:
        return [*argv, "--no-resolv", "--local=/#/"]
    return [*argv, f"--resolv-file={plan.upstream}"]


def reverse_zones(subnet: IPv4Network) -> list[str]:
    """Return the reverse zones that hold the subnet's addresses and no others; none below a /24."""
    if subnet.prefixlen > 24:
        return []
    octets = max(1, -(-subnet.prefixlen // 8))
    zones = []
    for part in subnet.subnets(new_prefix=octets * 8):
        labels = str(part.network_address).split(".")[:octets]
        zones.append(".".join(reversed(labels)) + ".in-addr.arpa")
    return zones


class Resolvers:
    """The resolvers of all networks. ``tasks`` runs what keeps them up."""

    def __init__(self, root: Path, upstream: Path, tasks: anyio.abc.TaskGroup) -> None:
        self._root = root
        self._upstream = upstream
        self._tasks = tasks
        self._running: dict[str, _Watched] = {}
        self._failed: set[str] = set()
        self._closed = False

    async def ensure(self, network: Network) -> bool:
        """Start the network's resolver unless it runs already. The bridge must have its address.

        :return: whether it runs. A failure is logged: the network works, without names.
        """
        plan = self._plan(network)
        key = short(network.id)
        if key in self._running:
            return True
        plan.hosts.mkdir(parents=True, exist_ok=True)
        process = await self._found_or_started(network, plan)
        if process is None:
            self._failed.add(key)
            return False
        self._failed.discard(key)
        if self._closed:
            process.close()
            return True
        watched = _Watched(process=process, scope=anyio.CancelScope())
        self._running[key] = watched
        self._tasks.start_soon(self._keep_up, network, watched, name=f"resolver of {network.name}")
        return True

    def may_be_asked(self, network: Network) -> bool:
        """Whether the resolver runs or is about to; false when it could not be started."""
        return short(network.id) not in self._failed

    def add(self, network: Network, endpoint: Endpoint) -> None:
        """Make the endpoint's names known, in place of what it was known by. Idempotent.

        :raises OSError: the directory cannot be written.
        """
        plan = self._plan(network)
        plan.hosts.mkdir(parents=True, exist_ok=True)
        target = plan.hosts / short(endpoint.endpoint_id)
        # Renamed into place, so that dnsmasq never reads half a line.
        draft = plan.directory / f"draft-{target.name}"
        draft.write_text(f"{endpoint.address.ip} {' '.join(endpoint.dns_names)}\n")
        draft.rename(target)

    def remove(self, network: Network, endpoint: Endpoint) -> None:
        """Forget the endpoint's names. Idempotent."""
        (self._plan(network).hosts / short(endpoint.endpoint_id)).unlink(missing_ok=True)

    def keep_only(self, network: Network, endpoints: Iterable[Endpoint]) -> None:
        """Make known exactly these endpoints."""
        wanted = {short(endpoint.endpoint_id): endpoint for endpoint in endpoints}
        hosts = self._plan(network).hosts
        if hosts.is_dir():
            for path in hosts.iterdir():
                if path.name not in wanted:
                    path.unlink(missing_ok=True)
        for endpoint in wanted.values():
            self.add(network, endpoint)

    async def stop(self, network: Network) -> None:
        """End the network's resolver and remove its files. Idempotent."""
        plan = self._plan(network)
        self._failed.discard(short(network.id))
        watched = self._running.pop(short(network.id), None)
        if watched is not None:
            watched.scope.cancel()
        process = find_resolver(plan.directory)
        if process is not None:
            await _end(process)
        shutil.rmtree(plan.directory, ignore_errors=True)

    async def remove_strangers(self, networks: Iterable[Network]) -> None:
        """Stop the resolvers of networks that are not among those given."""
        known = {short(network.id) for network in networks}
        if not self._root.is_dir():
            return
        for directory in list(self._root.iterdir()):
            if directory.name in known or not directory.is_dir():
                continue
            process = find_resolver(directory)
            if process is not None:
                await _end(process)
            shutil.rmtree(directory, ignore_errors=True)

    def close(self) -> None:
        """Stop watching; the resolvers go on. Idempotent."""
        self._closed = True
        while self._running:
            self._running.popitem()[1].scope.cancel()

    def _plan(self, network: Network) -> ResolverPlan:
        assert network.gateway is not None and network.subnet is not None
        return ResolverPlan(
            directory=self._root / short(network.id),
            address=network.gateway,
            subnet=network.subnet,
            upstream=None if network.internal else self._upstream,
        )

    async def _found_or_started(self, network: Network, plan: ResolverPlan) -> Handle | None:
        process = find_resolver(plan.directory)
        if process is not None:
            return process
        try:
            await _start(plan)
        except ToolFailed as error:
            _log.warning("network %s: names will not resolve: %s", network.name, error)
            return None
        process = find_resolver(plan.directory)
        if process is None:
            _log.warning("network %s: names will not resolve: dnsmasq ended at once", network.name)
        return process

    async def _keep_up(self, network: Network, watched: _Watched) -> None:
        """Start the resolver again when it ends; ``stop`` and ``close`` cancel this."""
        with watched.scope, contextlib.closing(watched.process):
            await watched.process.wait()
            _log.warning("the resolver of network %s has ended; starting it again", network.name)
            await anyio.sleep(RESTART_DELAY_S)
            if self._running.pop(short(network.id), None) is watched:
                await self.ensure(network)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watched:
    process: Handle
    scope: anyio.CancelScope


def find_resolver(directory: Path) -> Handle | None:
    """Return the dnsmasq that serves this directory of ours, None when it does not run.

    A pid file may be older than the last boot: the command line must name the directory.
    """
    try:
        pid = int((directory / "pid").read_text())
    except (FileNotFoundError, ValueError):
        return None
    process = open_process(pid)
    if process is None:
        return None
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if os.fsencode(f"--hostsdir={directory / 'hosts'}") in words and not process.has_ended():
            return process
    process.close()
    return None


async def _start(plan: ResolverPlan) -> None:
    """Run dnsmasq, which puts itself in the background when it is ready to answer.

    :raises ToolFailed: it is not installed, or the address is taken.
    """
    user, group = _account(plan.hosts)
    plan.pid_file.unlink(missing_ok=True)
    await run(command_line(plan, user=user, group=group), timeout_s=10)


def _account(directory: Path) -> tuple[str, str]:
    """Choose whom dnsmasq becomes: root only where nobody else may enter its directory."""
    if all(path.stat().st_mode & 0o001 for path in (directory, *directory.parents)):
        for name in USERS:
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return name, grp.getgrgid(entry.pw_gid).gr_name
    return "root", "root"


async def _end(process: Handle) -> None:
    with contextlib.closing(process), anyio.CancelScope(shield=True):
        process.send_signal(signal.SIGTERM)
        with anyio.move_on_after(STOP_GRACE_S):
            await process.wait()
            return
        process.send_signal(signal.SIGKILL)

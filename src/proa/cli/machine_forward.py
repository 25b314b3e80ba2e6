# SPDX-License-Identifier: Apache-2.0
"""What stands between this host and a ``proa machine`` that runs: ``proa machine serve``, in the background.

One ssh connection carries the engine's socket; the TCP ports that containers in the machine publish are
listened for here as well and go through it. Events of the engine say when to look; it ends with the machine.

Source: ssh(1), -L, -M, -O; Engine API, SystemEvents, ContainerList.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from collections.abc import Iterable

from proa.cli.machine_disk import SOCKET
from proa.cli.machine_ssh import Place, ssh_words
from proa.client.client import Client, filters_query
from proa.client.errors import ApiError, ClientError
from proa.wire import routes, vm_routes
from proa.wire.containers import ContainerSummary
from proa.wire.system import Event
from proa.wire.vms import Vm

_ACTIONS = ("start", "die", "pause", "unpause", "rename", "destroy")
_UP_S = 60.0
_PAUSE_S = 1.0
_AWAY_MAX = 600  # looks for a daemon that is away: it is started anew, or has been removed
_UNKNOWN = "?"
Port = tuple[str, int]


class Forwarder:
    """One machine's connection."""

    def __init__(self, client: Client, place: Place) -> None:
        self._client = client
        self._place = place
        self._ports: set[Port] = set()

    def run(self) -> None:
        """Serve until the machine is off. Returns at once when another process serves it."""
        self._place.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._place.run / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            missed = 0
            while (address := self._address()) and missed < _AWAY_MAX:
                if address == _UNKNOWN:
                    missed += 1
                else:
                    missed = 0
                    self._serve(address)
                time.sleep(_PAUSE_S)
            self._place.socket.unlink(missing_ok=True)

    def _address(self) -> str:
        """Return where the machine is; empty when it is off or gone, _UNKNOWN while there is no daemon."""
        try:
            with self._client.sibling() as client:  # the daemon may have been started anew since
                found = client.call(vm_routes.VM_INSPECT, returns=Vm, id=self._place.name)
        except ApiError as error:
            print(error, file=sys.stderr)
            return ""
        except (ClientError, OSError):
            return _UNKNOWN
        if found.state not in ("running", "paused") or not found.networks:
            return ""
        return found.networks[0].address.partition("/")[0]

    def _serve(self, address: str) -> None:
        words = ["-N", "-M", "-S", str(self._place.control), "-o", "StreamLocalBindUnlink=yes"]
        words += ["-o", "ExitOnForwardFailure=yes", "-o", "ServerAliveInterval=15", "-o", "ControlPersist=no"]
        words += ["-L", f"{self._place.socket}:{SOCKET}", f"root@{address}"]
        self._place.control.unlink(missing_ok=True)
        with subprocess.Popen([*ssh_words(self._place), *words], stdin=subprocess.DEVNULL) as ssh:
            try:
                self._ports.clear()
                self._follow(ssh)
            except (ClientError, OSError) as error:
                print(f"{self._place.name}: {error}", file=sys.stderr)
            finally:
                ssh.terminate()

    def _follow(self, ssh: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _UP_S
        while not self._place.socket.exists() or not self._place.control.exists():
            if ssh.poll() is not None or time.monotonic() > deadline:
                return
            time.sleep(0.1)
        filters = filters_query({"type": ["container"], "event": list(_ACTIONS)})
        with Client(f"unix://{self._place.socket}") as engine:
            # From a moment before the first look: what begins in between is told.
            query = {"filters": filters, "since": str(int(time.time()) - 5)}
            self._publish(engine)
            for _ in engine.sibling().iter_json(routes.EVENTS, Event, query=query):
                self._publish(engine)

    def _publish(self, engine: Client) -> None:
        listed = engine.call(routes.CONTAINER_LIST, returns=list[ContainerSummary])
        wanted = published(listed)
        for port in self._ports - wanted:
            self._order("cancel", port)
        added = {port for port in wanted - self._ports if self._order("forward", port)}
        self._ports = (self._ports & wanted) | added

    def _order(self, what: str, port: Port) -> bool:
        address, number = port
        words = [
            "-S",
            str(self._place.control),
            "-O",
            what,
            "-L",
            f"[{address}]:{number}:127.0.0.1:{number}",
            "machine",
        ]
        done = subprocess.run(
            [*ssh_words(self._place), *words], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode != 0:
            print(f"port {address}:{number}: {done.stderr.strip()}", file=sys.stderr)
        return done.returncode == 0


def published(listed: Iterable[ContainerSummary]) -> set[Port]:
    """Return the addresses and ports that containers in a machine publish; UDP does not pass ssh."""
    return {
        (port.ip, port.public_port)
        for container in listed
        for port in container.ports
        if port.type == "tcp"
        and isinstance(port.public_port, int)
        and isinstance(port.ip, str)
        and ":" not in port.ip  # said once more for IPv6
    }

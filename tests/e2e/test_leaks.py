# SPDX-License-Identifier: Apache-2.0
"""Two hundred rounds of run and rm in each hull leave the host as it was."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from proa.client.client import Client
from proa.model.config import HostConfig
from proa.wire import routes
from proa.wire.containers import ContainerCreated, ContainerCreateRequest, ContainerWaited
from tests.support.daemon import Daemon
from tests.support.host_state import count_host_state

ROUNDS = 200
WARM_UP = 3  # layers are mounted, templates made and pools filled on first use, and stay
STEADY_WITHIN_S = 60.0
SETTLE_S = 20.0  # namespaces and interfaces are freed by the kernel in its own time


def test_rounds_leave_nothing(daemon: Daemon, hull: str) -> None:
    assert daemon.process is not None
    roots = (daemon.exec_root, daemon.data_root)
    with Client(daemon.host) as client:
        for _ in range(WARM_UP):
            one_round(client, hull)
        before = steady_state(daemon.process.pid, *roots)
        for _ in range(ROUNDS):
            one_round(client, hull)
    deadline = time.monotonic() + SETTLE_S
    after = count_host_state(daemon.process.pid, *roots)
    while any(after[key] > before[key] for key in before) and time.monotonic() < deadline:
        time.sleep(0.5)
        after = count_host_state(daemon.process.pid, *roots)
    more = {key: (before[key], after[key]) for key in before if after[key] > before[key]}
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True)
    assert not more, f"more than before: {more}\n{listed.stdout}"


def steady_state(pid: int, *roots: Path) -> Mapping[str, int]:
    """Count once what goes on behind the first rounds (an image's template is made) has come to its end."""
    deadline = time.monotonic() + STEADY_WITHIN_S
    seen = count_host_state(pid, *roots)
    while time.monotonic() < deadline:
        time.sleep(2)
        last, seen = seen, count_host_state(pid, *roots)
        if last == seen:
            return seen
    raise AssertionError(f"the host does not come to rest: {seen}")


def one_round(client: Client, hull: str) -> None:
    """Create, start, wait, remove: what docker run --rm does."""
    request = ContainerCreateRequest(image="busybox", cmd=["true"], host_config=HostConfig(isolation=hull))
    container = client.call(routes.CONTAINER_CREATE, body=request, returns=ContainerCreated)
    client.do(routes.CONTAINER_START, id=container.id)
    done = client.call(routes.CONTAINER_WAIT, returns=ContainerWaited, id=container.id)
    assert done.status_code == 0
    client.do(routes.CONTAINER_DELETE, id=container.id)

# SPDX-License-Identifier: Apache-2.0
"""Clients of the Engine API as their users run them, and the record of what works with each.

The record is what ``tests/conformance/table.py`` makes the README's compatibility table of. A test's
docstring begins with the words of its entry there; ``pytestmark = client(...)`` names the client.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import EXTRA_OPTIONS, TIME_FACTOR, Daemon

RECORD = Path(sys.prefix) / "lib" / "clients" / "results.json"
CLIENTS = Path(sys.prefix) / "lib" / "clients"

_results: list[dict[str, str]] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "client(name): the client that a test runs")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome: Any = yield  # Any: pluggy's result
    report = outcome.get_result()
    mark = item.get_closest_marker("client")
    if mark is None or (report.when != "call" and report.passed):
        return
    if report.skipped and not hasattr(report, "wasxfail"):
        return
    entry = str(getattr(item, "function").__doc__ or item.name).split("\n")[0].rstrip(".")  # noqa: B009
    result = "works" if report.passed else "fails"
    reason = getattr(report, "wasxfail", "") if result == "fails" else ""
    _results.append({"client": mark.args[0], "entry": entry, "result": result, "reason": reason})


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _results and RECORD.parent.is_dir() and not EXTRA_OPTIONS:  # the README speaks of the daemon as it is
        known = json.loads(RECORD.read_text()) if RECORD.exists() else []
        ran = {one["client"] for one in _results}
        kept = [one for one in known if one["client"] not in ran]
        RECORD.write_text(json.dumps(kept + _results, indent=1))


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    daemon.start()
    try:
        daemon.load_busybox()
        yield daemon
    finally:
        daemon.clean()


@pytest.fixture
def name(daemon: Daemon) -> Iterator[str]:
    """A container name that is taken away after the test."""
    name = f"c-{uuid.uuid4().hex[:12]}"
    yield name
    daemon.docker("rm", "-f", "-v", name, check=False)


@pytest.fixture
def docker_host(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> str:
    """The daemon's address, in the environment as clients look for it."""
    monkeypatch.setenv("DOCKER_HOST", daemon.host)
    monkeypatch.setenv("DOCKER_BUILDKIT", "0")
    monkeypatch.setenv("COMPOSE_DOCKER_CLI_BUILD", "0")
    return daemon.host


def run(
    *command: str, cwd: Path | None = None, check: bool = True, timeout_s: float = 60.0 * TIME_FACTOR
) -> str:
    """Run a client; return all it wrote. Raises AssertionError with it."""
    done = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )
    assert not check or done.returncode == 0, (
        f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}"
    )
    return done.stdout


def first_bytes(port: int) -> bytes:
    """Return what a server on a port of this host says first; it may still be starting."""
    deadline = time.monotonic() + 20 * TIME_FACTOR
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as connection:
                if said := connection.recv(100):
                    return said
        except ConnectionError:
            pass
        assert time.monotonic() < deadline, f"nothing is served on port {port}"
        time.sleep(0.05)

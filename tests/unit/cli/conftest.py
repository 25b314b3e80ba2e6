# SPDX-License-Identifier: Apache-2.0
"""The whole command line, in this process, against a daemon of canned answers."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proa.cli.main import main
from tests.support.canned_daemon import CannedDaemon, canned_daemon


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


Proa = Callable[..., Ended]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[CannedDaemon]:
    with canned_daemon(tmp_path / "s") as daemon:
        yield daemon


@pytest.fixture
def proa(
    daemon: CannedDaemon, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Proa]:
    """Run ``proa`` with these arguments."""
    monkeypatch.setenv("PROA_HOST", f"unix://{daemon.path}")
    before = signal.getsignal(signal.SIGPIPE)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr("sys.argv", ["proa", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Ended(status=int(ended.value.code or 0), out=out, err=err)

    yield run
    signal.signal(signal.SIGPIPE, before)


def sent(daemon: CannedDaemon, path: str) -> Any:  # Any: JSON
    """The body of the last request to a path, decoded."""
    bodies = [request.body for request in daemon.requests if path in request.target]
    return json.loads(bodies[-1])

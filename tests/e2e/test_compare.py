# SPDX-License-Identifier: Apache-2.0
"""``proa compare`` and the benchmark, on both hulls of a real daemon."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import Daemon

BENCH = Path(__file__).parents[2] / "bench/run.py"

# Cells that are empty for a reason in every comparison.
EMPTY = {("start-up", "cold boot", "container")}


def proa(daemon: Daemon, *arguments: str, check: bool = True) -> tuple[int, str, str]:
    result = daemon.proa("--host", daemon.host, *arguments, check=check, timeout_s=300)
    return result.status, result.out, result.err


@pytest.fixture(scope="module")
def report(daemon: Daemon) -> dict[str, object]:
    before = daemon.docker("ps", "-aq").out
    _, out, _ = proa(
        daemon, "compare", "-n", "1", "--seconds", "0.02", "--json", "busybox", "--", "/bin/echo", "x"
    )
    assert daemon.docker("ps", "-aq").out == before  # nothing of it is left
    answer = json.loads(out)
    assert isinstance(answer, dict)
    return answer


def rows(report: dict[str, object]) -> dict[tuple[str, str], dict[str, dict[str, object]]]:
    found = report["rows"]
    assert isinstance(found, list)
    return {(row["topic"], row["name"]): row for row in found}


def test_every_figure_is_there_with_unit_spread_and_method(report: dict[str, object]) -> None:
    for (topic, name), row in rows(report).items():
        for place in ("container", "vm"):
            cell = row[place]
            if (topic, name, place) in EMPTY:
                assert cell["missing"]
                continue
            assert "missing" not in cell, (topic, name, place, cell)
            assert cell["method"]
            if "median" in cell:
                assert cell["unit"] and cell["low"] <= cell["median"] <= cell["high"]  # type: ignore[operator]


def test_the_hulls_differ_where_they_should(report: dict[str, object]) -> None:
    table = rows(report)
    kernel = table["isolation", "kernel"]
    assert str(kernel["container"]["text"]).startswith("the host's")
    assert str(kernel["vm"]["text"]).startswith("its own")
    memory = table["memory per instance", "idle, on the host"]
    assert memory["container"]["median"] < memory["vm"]["median"]  # type: ignore[operator]
    start = table["start-up", "warm start"]
    assert start["vm"]["median"] < table["start-up", "cold boot"]["vm"]["median"]  # type: ignore[operator]


def test_it_ends_with_a_recommendation(report: dict[str, object]) -> None:
    advice = report["recommendation"]
    assert isinstance(advice, dict)
    assert advice["hull"] in ("container", "vm")
    assert advice["reasons"]


def test_people_get_a_table(daemon: Daemon) -> None:
    _, out, _ = proa(daemon, "compare", "-n", "1", "--seconds", "0.01", "busybox")
    for part in ("busybox in both hulls, 1 rounds", "warm start", "no command was given", "Recommendation: "):
        assert part in out


def test_an_unknown_image_is_refused_at_once(daemon: Daemon) -> None:
    status, out, err = proa(daemon, "compare", "nobody/has:this", check=False)
    assert (status, out) == (1, "")
    assert "No such image: nobody/has:this" in err


def test_the_benchmark_drives_both_hulls(daemon: Daemon) -> None:
    argv: list[str | Path] = [sys.executable, BENCH, "--peer", f"container={daemon.host}", "--rounds", "1"]
    argv += ["--peer", f"vm={daemon.host},isolation=vm"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "| create + start + wait |" in done.stdout
    assert "vm : container" in done.stdout

# SPDX-License-Identifier: Apache-2.0
"""The probe on this host, and behind a door or two closed."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from proa.client.client import Client
from proa.compare.instances import RunFailed
from proa.compare.performance import MEASURES
from proa.compare.probing import Look, Prober, parse_look, parse_results

SOURCES = Path(__file__).parents[3] / "probe"


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("probe")
    subprocess.run(["make", "-s", "-C", SOURCES, f"BUILD={build}"], check=True)
    return build / "probe"


@pytest.fixture
def prober(probe: Path) -> Prober:
    return Prober(Client("unix:///none"), "image", probe)


def test_it_needs_no_loader_and_no_library(probe: Path) -> None:
    program = probe.read_bytes()
    assert b"ld-linux" not in program and b"ld-musl" not in program


def test_every_measure_gives_a_figure(prober: Prober, tmp_path: Path) -> None:
    with prober.peer("127.0.0.1") as peer:
        output = prober.on_host(
            "all", "--seconds", "0.01", "--size", "2", "--dir", str(tmp_path), "--peer", peer
        )
    results = parse_results(output)
    assert set(results) == set(MEASURES)
    for result in results.values():
        assert result.value is not None and result.value > 0, result
        assert result.unit and result.method
    assert list(tmp_path.iterdir()) == []


def test_a_measure_that_fails_says_why_and_the_others_go_on(prober: Prober) -> None:
    results = parse_results(
        prober.on_host("all", "--seconds", "0.01", "--dir", "/proc", "--peer", "127.0.0.1:1")
    )
    assert results["disk_write"].value is None and results["disk_write"].error
    assert "refused" in results["net_round_trip"].error
    assert results["cpu"].value is not None


def test_it_sees_this_host(prober: Prober) -> None:
    look = parse_look(prober.on_host("look"))
    assert look.kernel_release == os.uname().release
    assert look.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert look.processes > 1 and look.mounts > 1
    assert {"null", "zero"} <= set(look.devices)
    assert look.syscalls is not None
    assert look.syscalls.passed > 250
    census = look.syscalls
    assert census.passed + census.denied + census.missing + census.killed == census.tried


def test_it_counts_what_a_filter_and_dropped_capabilities_refuse(probe: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")

    def look(*wrapper: str) -> Look:
        return parse_look(subprocess.check_output([*wrapper, probe, "look"]))

    free = look()
    bare = look("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
    assert int(bare.capabilities_effective, 16) == 0
    assert bare.no_new_privileges
    assert free.syscalls is not None and bare.syscalls is not None
    assert bare.syscalls.denied > free.syscalls.denied


def test_it_waits_and_ends_when_told(probe: Path) -> None:
    with subprocess.Popen([probe, "sleep"], stdout=subprocess.PIPE) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == b"ready\n"
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(5) == 0


def test_a_peer_on_a_strange_address_is_refused(prober: Prober) -> None:
    with pytest.raises(RunFailed, match=r"cannot listen on 203\.0\.113\.7"), prober.peer("203.0.113.7"):
        pass


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["cpu", "--seconds"], ["cpu", "--wrong", "1"]])
def test_a_wrong_command_line_gets_usage(probe: Path, arguments: list[str]) -> None:
    done = subprocess.run([probe, *arguments], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"usage: probe")

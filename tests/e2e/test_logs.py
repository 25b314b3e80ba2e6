# SPDX-License-Identifier: Apache-2.0
"""Logs are bounded, and nobody who reads them notices the files."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from tests.support.daemon import DOCKER, Daemon

PATIENCE_S = 60.0
# A line is 50 bytes in the file; 20 kB are 400 lines, written in 20 bursts that a daemon can follow.
COUNT = "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); [ $((i % 100)) = 0 ] && sleep 0.05; done"


def log_files(daemon: Daemon, name: str) -> list[Path]:
    path = Path(json.loads(daemon.docker("inspect", name).out)[0]["LogPath"])
    return sorted(path.parent.glob("log*"))


def test_bounded_and_followed(daemon: Daemon, name: str) -> None:
    daemon.docker("run", "-d", "--name", name, "--log-opt", "max-size=20k", "--log-opt", "max-file=3",
                  "--log-opt", "compress=true", "busybox",
                  "sh", "-c", f"until [ -e /go ]; do sleep 0.05; done; {COUNT}")  # fmt: skip
    follower = subprocess.Popen(
        [DOCKER, "--host", daemon.host, "logs", "-f", name], stdout=subprocess.PIPE, text=True
    )
    daemon.docker("exec", name, "touch", "/go")
    followed, _ = follower.communicate(timeout=PATIENCE_S)
    assert followed.split() == [str(number) for number in range(2000)]
    kept = daemon.docker("logs", name).out.split()
    assert kept == [str(number) for number in range(2000)][-len(kept) :]
    assert 800 <= len(kept) <= 1300
    assert daemon.docker("logs", "--tail", "700", name).out.split() == kept[-700:]
    assert sum(path.stat().st_size for path in log_files(daemon, name)) < 100_000
    assert [path.name for path in log_files(daemon, name) if path.suffix == ".gz"] != []


def test_the_writer_goes_on_without_a_daemon(daemon: Daemon, name: str) -> None:
    daemon.docker("run", "-d", "--name", name, "--log-opt", "max-size=20k", "busybox", "sh", "-c",
                  f"echo begin; {COUNT}; sleep 600")  # fmt: skip
    daemon.stop()
    time.sleep(2)  # what is written now nobody keeps; the bound holds nevertheless
    daemon.start()
    kept = daemon.docker("logs", name).out.split()
    assert kept[-1] == "1999"
    assert sum(path.stat().st_size for path in log_files(daemon, name)) < 100_000


def test_a_guest_is_bounded_and_loses_nothing(daemon: Daemon, name: str) -> None:
    daemon.docker("run", "-d", "--name", name, "--isolation", "vm", "--log-opt", "max-size=50k",
                  "--log-opt", "max-file=50", "busybox", "sh", "-c",
                  "until [ -e /go ]; do sleep 0.05; done; for k in 0 1 2; do "
                  "seq $((k*5000)) $((k*5000+4999)); sleep 1.2; done; echo end")  # fmt: skip
    follower = subprocess.Popen(
        [DOCKER, "--host", daemon.host, "logs", "-f", name], stdout=subprocess.PIPE, text=True
    )
    daemon.docker("exec", name, "touch", "/go")
    followed, _ = follower.communicate(timeout=PATIENCE_S)
    every = [*(str(number) for number in range(15_000)), "end"]
    assert followed.split() == every
    assert daemon.docker("logs", name).out.split() == every
    assert len(log_files(daemon, name)) > 2


def test_details_and_what_logs_take(daemon: Daemon, name: str) -> None:
    daemon.docker("run", "--name", name, "--log-opt", "labels=a,b", "--log-opt", "env-regex=^X",
                  "--log-opt", "tag={{.Name}}", "--label", "a=1", "-e", "XY=2", "busybox",
                  "echo", "said")  # fmt: skip
    assert daemon.docker("logs", "--details", name).out == f"XY=2,a=1,tag={name} said\n"
    assert daemon.docker("logs", name).out == "said\n"
    listed = daemon.docker("system", "df", "-v", "--format", "{{json .Containers}}").out
    sizes = {one["Names"]: one["Size"] for one in json.loads(listed)}
    assert sizes[name] not in ("0B", ""), "its log takes a block"


def test_refused_options(daemon: Daemon) -> None:
    for options, sentence in (
        (("--log-opt", "colour=red"), "unknown log opt 'colour' for json-file log driver"),
        (("--log-driver", "nonesuch"), "logger: no log driver named 'nonesuch' is registered"),
        (("--log-opt", "env-regex=["), "invalid value for env-regex"),
        (("--log-opt", "max-file=0"), "max-file cannot be less than 1"),
    ):
        assert sentence in daemon.docker("create", *options, "busybox", check=False).err

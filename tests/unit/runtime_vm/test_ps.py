# SPDX-License-Identifier: Apache-2.0
"""Process tables as ps prints them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proa.model.errors import InvalidParameter
from proa.runtime.vm import ps

NOW = 1_700_000_000_000_000_000
SHELL = ps.GuestProcess(
    pid=61,
    ppid=1,
    uid=0,
    tty=34816,
    state="S",
    user_ns=90_000_000_000,
    system_ns=10_000_000_000,
    started_at_ns=NOW - 1000 * 10**9,
    vsz=4_194_304,
    rss=1_048_576,
    comm="sh",
    cmdline="sh -c sleep 9",
    session=61,
    group=61,
    foreground_group=61,
)


def table(arguments: str, *processes: ps.GuestProcess) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    made = ps.render(arguments, processes or (SHELL,), memory_bytes=104_857_600, now_ns=NOW)
    return made.titles, list(made.rows)


@pytest.mark.parametrize("arguments", ["", "-ef", "-e -f", "-Af"])
def test_the_full_format(arguments: str) -> None:
    titles, rows = table(arguments)
    assert titles == ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD")
    assert rows[0][:4] == ("root", "61", "1", "10")
    assert rows[0][5:] == ("pts/0", "00:01:40", "sh -c sleep 9")


@pytest.mark.parametrize("arguments", ["aux", "auxw", "-aux"])
def test_the_user_format(arguments: str) -> None:
    titles, rows = table(arguments)
    assert titles == (
        "USER", "PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT", "START", "TIME", "COMMAND",
    )  # fmt: skip
    assert rows[0][:8] == ("root", "61", "10.0", "1.0", "4096", "1024", "pts/0", "Ss+")
    assert rows[0][9:] == ("1:40", "sh -c sleep 9")


@pytest.mark.parametrize(
    "arguments", ["-o pid,comm", "-opid,comm", "-eo pid,comm", "-o pid -o comm", "axo pid,comm"]
)
def test_columns_of_ones_own(arguments: str) -> None:
    assert table(arguments) == (("PID", "COMMAND"), [("61", "sh")])


def test_titles_of_ones_own() -> None:
    assert table("-o pid=NUMBER,args=")[0] == ("NUMBER", "")
    assert table("--format=pid,user:12")[0] == ("PID", "USER")


def test_odd_processes() -> None:
    zombie = replace(SHELL, state="Z", cmdline="", tty=0, uid=1000, session=1, foreground_group=-1)
    assert table("-o args,tty,user,stat", zombie)[1] == [("[sh] <defunct>", "?", "1000", "Z")]
    busy = replace(SHELL, nice=-5, threads=3, tty=1281, user_ns=2 * 86_400 * 10**9, system_ns=0)
    assert table("-o stat,tty,time,etime,etimes", busy)[1] == [
        ("S<sl+", "console", "2-00:00:00", "16:40", "1000")
    ]
    unborn = replace(SHELL, started_at_ns=NOW + 10**9)
    assert table("-o pcpu,etime", unborn)[1] == [("0.0", "00:00")]


@pytest.mark.parametrize("arguments", ["-o nothing", "-o", "-o ,", "-Z9", "'", "--forest", "1234"])
def test_what_is_not_understood(arguments: str) -> None:
    with pytest.raises(InvalidParameter):
        ps.parse_arguments(arguments)

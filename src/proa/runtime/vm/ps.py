# SPDX-License-Identifier: Apache-2.0
"""Prints the guest's processes as ``ps`` would, for the arguments that ``docker top`` is given in practice.

There is no ps of the host that could look into a guest, and an image need not have one; the agent sends the
raw figures and the table is made here: ``-ef`` (the default), ``aux``, ``-ely``-like full forms, and
``-o``/``-eo`` lists of columns. Anything else is refused by name.

Source: ps(1), STANDARD FORMAT SPECIFIERS; Engine API, ContainerTop.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from proa.model.errors import InvalidParameter
from proa.model.task import ProcessTable

TICK_NS = 10_000_000  # the agent's ticks
DAY_S = 86_400
_TTY_PTS_MAJOR = 136
_TTY_CONSOLE = 1281  # /dev/console, 5:1


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestProcess:
    """One process as the agent reports it. ``tty`` is the device number, 0 for none; sizes in bytes."""

    pid: int
    ppid: int
    uid: int
    tty: int
    state: str
    user_ns: int
    system_ns: int
    started_at_ns: int
    vsz: int
    rss: int
    comm: str
    cmdline: str
    nice: int = 0
    threads: int = 1
    session: int = 0
    group: int = 0
    foreground_group: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What a row needs beside the process: the present time and the guest's memory."""

    now_ns: int
    memory_bytes: int


Column = tuple[str, Callable[[GuestProcess, Host], str]]


def render(
    arguments: str, processes: Sequence[GuestProcess], *, memory_bytes: int, now_ns: int
) -> ProcessTable:
    """Return what ``ps arguments`` would print. The selection is always all of the container's processes.

    :raises InvalidParameter: an argument that is not understood here.
    """
    columns = parse_arguments(arguments)
    host = Host(now_ns=now_ns, memory_bytes=memory_bytes)
    return ProcessTable(
        titles=tuple(title for title, _ in columns),
        rows=tuple(tuple(value(process, host) for _, value in columns) for process in processes),
    )


def parse_arguments(arguments: str) -> tuple[Column, ...]:
    """Return the columns that ps would show. Raises InvalidParameter."""
    try:
        words = shlex.split(arguments) or ["-ef"]
    except ValueError as error:
        raise InvalidParameter(f"ps arguments: {error}") from error
    chosen: list[Column] = []
    letters = ""
    words.reverse()
    while words:
        word = words.pop()
        if word.startswith("--"):
            name, has_value, value = word[2:].partition("=")
            if name != "format":
                raise _not_understood(word)
            chosen += _columns(value if has_value else _next(words, word))
            continue
        body = word.removeprefix("-")
        is_bsd = not word.startswith("-")
        head, option, tail = body.partition("o")
        letters += ("b" if is_bsd else "") + head
        if option:
            chosen += _columns(tail or _next(words, word))
        _check_letters(head, word, is_bsd=is_bsd)
    if chosen:
        return tuple(chosen)
    return _standard(letters)


def _next(words: list[str], option: str) -> str:
    if not words:
        raise InvalidParameter(f"ps: option {option} needs a list of columns")
    return words.pop()


def _check_letters(letters: str, word: str, *, is_bsd: bool) -> None:
    known = "auxwef" if is_bsd else "AaefFlywHxud"
    if any(letter not in known for letter in letters):
        raise _not_understood(word)


def _not_understood(word: str) -> InvalidParameter:
    return InvalidParameter(
        f"ps argument {word!r} is not understood in a virtual machine: use -ef, aux, or -o with columns"
    )


def _standard(letters: str) -> tuple[Column, ...]:
    if "u" in letters:
        return _columns("user,pid,pcpu,pmem,vsz,rss,tty,stat,start,bsdtime,args")
    if "b" in letters and "f" not in letters and "e" not in letters:
        return _columns("pid,tty,stat,bsdtime,args")
    if "F" in letters:
        return _columns("uid_name,pid,ppid,c,sz,rss,stime,tty,time,cmd")
    if "l" in letters:
        return _columns("s,uid,pid,ppid,c,ni,rss,sz,tty,time,comm:CMD")
    if "f" in letters:
        return _columns("uid_name,pid,ppid,c,stime,tty,time,cmd")
    return _columns("pid,tty,time,comm:CMD")


def _columns(listed: str) -> tuple[Column, ...]:
    """Look up ``pid,comm=NAME user:12``."""
    found: list[Column] = []
    for word in listed.replace(",", " ").split():
        name, own, title = word.partition("=")
        name, given, heading = name.partition(":")
        if name not in _COLUMNS:
            raise InvalidParameter(f'error: unknown user-defined format specifier "{name}"')
        standard, value = _COLUMNS[name]
        if given and not heading.isdecimal():  # ":N" is a width, which a table does not need; else a title
            standard = heading
        found.append((title if own else standard, value))
    if not found:
        raise InvalidParameter("ps: an empty list of columns")
    return tuple(found)


# --- values ---


def _tty(process: GuestProcess, _host: Host) -> str:
    if process.tty == 0:
        return "?"
    if process.tty == _TTY_CONSOLE:
        return "console"
    major, minor = (process.tty >> 8) & 0xFFF, (process.tty & 0xFF) | ((process.tty >> 12) & 0xFFF00)
    if _TTY_PTS_MAJOR <= major < _TTY_PTS_MAJOR + 8:
        return f"pts/{(major - _TTY_PTS_MAJOR) * 256 + minor}"
    return f"{major}:{minor}"


def _stat(process: GuestProcess, _host: Host) -> str:
    return (
        process.state
        + ("<" if process.nice < 0 else "N" if process.nice > 0 else "")
        + ("s" if process.session == process.pid else "")
        + ("l" if process.threads > 1 else "")
        + ("+" if process.foreground_group > 0 and process.foreground_group == process.group else "")
    )


def _used_s(process: GuestProcess) -> float:
    return (process.user_ns + process.system_ns) / 1e9


def _age_s(process: GuestProcess, host: Host) -> float:
    return max(0.0, (host.now_ns - process.started_at_ns) / 1e9)


def _pcpu(process: GuestProcess, host: Host) -> float:
    age = _age_s(process, host)
    return 100 * _used_s(process) / age if age > 0 else 0.0


def _pmem(process: GuestProcess, host: Host) -> float:
    return 100 * process.rss / host.memory_bytes if host.memory_bytes > 0 else 0.0


def _time(process: GuestProcess, _host: Host) -> str:
    return _clock(int(_used_s(process)))


def _clock(seconds: int) -> str:
    days, rest = divmod(seconds, DAY_S)
    text = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{text}" if days else text


def _etime(process: GuestProcess, host: Host) -> str:
    seconds = int(_age_s(process, host))
    return _clock(seconds) if seconds >= 3600 else f"{seconds // 60:02}:{seconds % 60:02}"


def _bsd_time(process: GuestProcess, _host: Host) -> str:
    seconds = int(_used_s(process))
    return f"{seconds // 60}:{seconds % 60:02}"


def _start(process: GuestProcess, host: Host) -> str:
    """Hour and minute within a day, then the date, then the year, as ps does."""
    begun = time.localtime(process.started_at_ns / 1e9)
    if _age_s(process, host) < DAY_S:
        return time.strftime("%H:%M", begun)
    if begun.tm_year == time.localtime(host.now_ns / 1e9).tm_year:
        return time.strftime("%b%d", begun)
    return time.strftime("%Y", begun)


def _lstart(process: GuestProcess, _host: Host) -> str:
    return time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(process.started_at_ns / 1e9))


def _args(process: GuestProcess, _host: Host) -> str:
    if process.cmdline:
        return process.cmdline
    return f"[{process.comm}] <defunct>" if process.state == "Z" else f"[{process.comm}]"


def _user(process: GuestProcess, _host: Host) -> str:
    # ps on the host prints the host's name of the number; of those only root's is sure to be the guest's too.
    return "root" if process.uid == 0 else str(process.uid)


_COLUMNS: dict[str, Column] = {
    "pid": ("PID", lambda p, _: str(p.pid)),
    "ppid": ("PPID", lambda p, _: str(p.ppid)),
    "pgid": ("PGID", lambda p, _: str(p.group)),
    "sid": ("SID", lambda p, _: str(p.session)),
    "sess": ("SESS", lambda p, _: str(p.session)),
    "tpgid": ("TPGID", lambda p, _: str(p.foreground_group)),
    "user": ("USER", _user),
    "euser": ("EUSER", _user),
    "ruser": ("RUSER", _user),
    "uname": ("USER", _user),
    "uid_name": ("UID", _user),
    "uid": ("UID", lambda p, _: str(p.uid)),
    "euid": ("EUID", lambda p, _: str(p.uid)),
    "tty": ("TTY", _tty),
    "tt": ("TT", _tty),
    "tname": ("TTY", _tty),
    "s": ("S", lambda p, _: p.state),
    "state": ("S", lambda p, _: p.state),
    "stat": ("STAT", _stat),
    "ni": ("NI", lambda p, _: str(p.nice)),
    "nice": ("NI", lambda p, _: str(p.nice)),
    "nlwp": ("NLWP", lambda p, _: str(p.threads)),
    "thcount": ("THCNT", lambda p, _: str(p.threads)),
    "vsz": ("VSZ", lambda p, _: str(p.vsz // 1024)),
    "vsize": ("VSZ", lambda p, _: str(p.vsz // 1024)),
    "sz": ("SZ", lambda p, _: str(p.vsz // 4096)),
    "rss": ("RSS", lambda p, _: str(p.rss // 1024)),
    "rssize": ("RSS", lambda p, _: str(p.rss // 1024)),
    "rsz": ("RSZ", lambda p, _: str(p.rss // 1024)),
    "c": ("C", lambda p, h: str(min(99, int(_pcpu(p, h))))),
    "pcpu": ("%CPU", lambda p, h: f"{_pcpu(p, h):.1f}"),
    "%cpu": ("%CPU", lambda p, h: f"{_pcpu(p, h):.1f}"),
    "pmem": ("%MEM", lambda p, h: f"{_pmem(p, h):.1f}"),
    "%mem": ("%MEM", lambda p, h: f"{_pmem(p, h):.1f}"),
    "time": ("TIME", _time),
    "cputime": ("TIME", _time),
    "bsdtime": ("TIME", _bsd_time),
    "etime": ("ELAPSED", _etime),
    "etimes": ("ELAPSED", lambda p, h: str(int(_age_s(p, h)))),
    "start": ("START", _start),
    "stime": ("STIME", _start),
    "start_time": ("START", _start),
    "bsdstart": ("START", _start),
    "lstart": ("STARTED", _lstart),
    "comm": ("COMMAND", lambda p, _: p.comm),
    "ucmd": ("CMD", lambda p, _: p.comm),
    "ucomm": ("COMMAND", lambda p, _: p.comm),
    "cmd": ("CMD", _args),
    "args": ("COMMAND", _args),
    "command": ("COMMAND", _args),
}

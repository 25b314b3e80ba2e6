# SPDX-License-Identifier: Apache-2.0
"""Connects this process's terminal or pipes with a container's streams.

Source: termios(3), tty_ioctl(4); Engine API, "Hijacking".
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import termios
import threading
import tty
from collections.abc import Callable, Iterator

from proa.client.client import Hijacked
from proa.wire.detach import DetachScanner

_READ = 64 * 1024


def is_terminal(fd: int) -> bool:
    return os.isatty(fd)


def window_size() -> tuple[int, int] | None:
    """Return rows and columns of this process's terminal, None when it has none."""
    for fd in (1, 0, 2):
        with contextlib.suppress(OSError):
            rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
            if rows and columns:
                return rows, columns
    return None


@contextlib.contextmanager
def raw_terminal(*, wanted: bool) -> Iterator[None]:
    """Hand every key to the container for the span of the block."""
    if not wanted or not is_terminal(0):
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextlib.contextmanager
def following_size(resize: Callable[[int, int], None], *, now: bool = False) -> Iterator[None]:
    """Tell the container every change of the window's size for the span of the block.

    :param now: tell the present size first.
    """

    def changed(*_: object) -> None:
        size = window_size()
        if size is not None:
            with contextlib.suppress(Exception):  # best effort: a wrong size is no reason to end a session
                resize(*size)

    before = signal.signal(signal.SIGWINCH, changed)
    if now:
        changed()
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def pump(hijacked: Hijacked, *, stdin: bool, detach_keys: bytes = b"") -> bool:
    """Copy until the container's output ends, or the keys are typed: its output to ours, our input to it.

    Returns whether the user has detached.
    """
    scanner = DetachScanner(detach_keys)
    if stdin:
        threading.Thread(target=_feed, args=(hijacked, scanner), daemon=True).start()
    write_output(hijacked.iter_output())
    return scanner.detached


def write_output(pieces: Iterator[tuple[int, bytes]]) -> None:
    """Write output to stdout and stderr as it comes."""
    for stream, data in pieces:
        _write(2 if stream == 2 else 1, data)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _feed(hijacked: Hijacked, scanner: DetachScanner) -> None:
    with contextlib.suppress(OSError):  # the container's end, or no standard input: nothing to send
        while data := os.read(0, _READ):
            hijacked.send(scanner.feed(data))
            if scanner.detached:
                hijacked.shut()
                return
        hijacked.send_eof()

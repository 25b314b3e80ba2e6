# SPDX-License-Identifier: Apache-2.0
"""One daemon for each root: an exclusive lock that ends with the process, however it ends.

Source: flock(2).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proa.model.errors import Unavailable


@contextmanager
def exclusive_root(root: Path) -> Iterator[None]:
    """Hold the root for the span of the block. Raises Unavailable when another daemon has it."""
    root.mkdir(mode=0o711, parents=True, exist_ok=True)
    path = root / "lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            raise Unavailable(
                f"another proa daemon (pid {holder or 'unknown'}) is using {root}: "
                "stop it, or choose another directory"
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)

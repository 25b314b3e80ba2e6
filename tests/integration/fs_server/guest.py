# SPDX-License-Identifier: Apache-2.0
"""One running fs-server with a FUSE mount on it."""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path


class Guest:
    """Exports mounted at ``root``, as children named 0, 1, … in the order given."""

    def __init__(
        self, binaries: Path, directory: Path, *, rw: list[Path], ro: list[Path], files_limit: int = 0
    ) -> None:
        directory.mkdir()
        self.root = directory / "m"
        self.root.mkdir()
        socket = directory / "s"
        argv: list[str | Path] = [binaries / "fs-server", "--listen", socket]
        argv += [part for path in rw for part in ("--export-rw", path)]
        argv += [part for path in ro for part in ("--export-ro", path)]
        ready, told = os.pipe()
        self.server = subprocess.Popen(
            [*argv, "--ready-fd", str(told)],
            pass_fds=[told],
            preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files_limit,) * 2))
            if files_limit
            else None,
        )
        os.close(told)
        assert os.read(ready, 1) == b"\n"
        os.close(ready)
        self.relay = subprocess.Popen([binaries / "relay", socket, self.root], stdout=subprocess.PIPE)
        assert self.relay.stdout is not None
        assert self.relay.stdout.readline() == b"mounted\n"
        self.relay.stdout.close()

    def close(self) -> None:
        """Unmount; both processes end by themselves, and the server says that all was well."""
        subprocess.run(["umount", "-l", self.root], check=True)
        self.relay.wait(10)
        assert self.server.wait(10) == 0

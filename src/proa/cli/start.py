# SPDX-License-Identifier: Apache-2.0
"""How the installed command begins and ends (setup/venv.sh writes the script that calls it).

``proa run`` is started anew for every container, so its own start and end are part of the container's. Taking
the interpreter down module by module costs as much as any other step, and frees what the kernel frees anyway.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from typing import NoReturn

from proa.cli.main import main

SELDOM = 100_000  # allocations between two collections: none in a command that ends soon


def start() -> NoReturn:
    """Run the command line and end this process with its exit status. No thread may be left that matters."""
    # The script turned it off for its imports, and a command imports more. What is there now stays.
    gc.freeze()
    gc.set_threshold(SELDOM)
    gc.enable()
    status = 1
    try:
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0
        sys.stdout.flush()
    except OSError as error:  # the output's disk is full, and the like
        status = 1
        os.write(2, f"proa: {error.strerror or error}\n".encode())
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(status)

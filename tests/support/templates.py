# SPDX-License-Identifier: Apache-2.0
"""One directory of memory templates for a whole run of the tests: making one takes seconds."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

SHM = Path("/dev/shm")
ENV_TEMPLATES = "PROA_TEST_TEMPLATES"


@functools.cache
def shared_templates() -> Path:
    """Return the directory, which goes with the process; a child that is told of it uses the same."""
    told = os.environ.get(ENV_TEMPLATES)
    if told:
        return Path(told)
    # In memory: each is a hundred megabytes that a disk need not see.
    path = Path(tempfile.mkdtemp(prefix="proa-templates-", dir=SHM if SHM.is_dir() else None))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path

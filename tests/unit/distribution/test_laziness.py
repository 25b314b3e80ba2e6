# SPDX-License-Identifier: Apache-2.0
"""The HTTP client costs a sixth of a second and 20 MB: only those who pull pay for it. (Decision 0020)"""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["proa.daemon.main", "proa.cli.main", "proa.cli.run"])
def test_the_http_client_is_imported_by_its_first_use(module: str) -> None:
    code = f"import sys, {module}; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

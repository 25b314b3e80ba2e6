# SPDX-License-Identifier: Apache-2.0
"""``python -m proa.daemon``: what ``proa daemon`` becomes."""

from __future__ import annotations

import sys

from proa.daemon.main import main

sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: Apache-2.0
"""The parity table: what counts as a refusal, and how results become rows."""

from __future__ import annotations

from tests.parity.plugin import find_refusal
from tests.parity.table import render

ENTRY = {"module": "tests/parity/test_life", "entry": "rename", "result": "passes", "reason": ""}


def test_a_refusal_is_found_in_what_a_client_prints() -> None:
    said = (
        "ended with 125\nE   docker: Error response from daemon: HostConfig.PidMode is not supported with "
        "runtime vm: a kernel of its own\nE   \nE   Run 'docker run --help'"
    )
    assert find_refusal(said) == "HostConfig.PidMode: a kernel of its own"
    assert find_refusal("E   Error: something else is not supported") == ""


def test_each_hull_has_a_column_and_a_failure_is_bold() -> None:
    refused = {**ENTRY, "result": "refused", "reason": "X: because a|b"}
    failed = {**ENTRY, "entry": "pause", "result": "fails", "reason": "no"}
    page = render({"container": [ENTRY], "vm": [refused, failed]})
    assert "| rename | passes | refused: X: because a\\|b |\n" in page
    assert "| pause | – | **fails**: no |\n" in page
    assert "| vm | 2 | 0 | 1 | 0 | 1 | 0 |" in page

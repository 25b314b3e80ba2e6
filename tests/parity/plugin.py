# SPDX-License-Identifier: Apache-2.0
"""Runs any of the Engine API's tests in one hull, and records how each ended: ``-p tests.parity.plugin``.

The hull is the default of every daemon (``PROA_PARITY_HULL``); tests that name a hull themselves run only
when it is that one. A test that ends at an option which the hull refuses is recorded with the reason.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HULL = os.environ.get("PROA_PARITY_HULL", "")
RECORDS = Path(sys.prefix) / "lib" / "parity"

# What a hull does in another way, and where that is written: a test that fails by it does not fail the run.
_LOGS = "tests/e2e/test_logs.py::"
DIFFERENCES = {
    ("vm", f"{_LOGS}test_bounded_and_followed"): (
        "the log's size is looked at once in a second; what is written meanwhile comes on top (decision 0031)"
    ),
    ("vm", f"{_LOGS}test_the_writer_goes_on_without_a_daemon"): (
        "the log has no bound while no daemon runs (decision 0031)"
    ),
    ("vm", "tests/parity/test_privileges.py::test_seccomp_default"): (
        "no filter by default: a kernel of its own keeps the workload from the host (options.md)"
    ),
}

_REFUSAL = re.compile(r"([\w. /=:-]+?) is not supported with runtime \w+: (.+)")
_UNNAMED = re.compile(r"[a-z_]+[0-9]+")  # what pytest calls a value without a name
_results: dict[str, dict[str, str]] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    other = [item for item in items if _hull_of(item) not in ("", HULL)]
    config.hook.pytest_deselected(items=other)
    items[:] = [item for item in items if item not in other]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome: Any = yield  # Any: pluggy's result
    report = outcome.get_result()
    if report.when != "call" and report.passed:
        return
    known = _results.get(item.nodeid)
    verdict = _judge(report, DIFFERENCES.get((HULL, item.nodeid), ""))
    if verdict["result"] in ("refused", "differs"):  # as documented: no failure of the run
        report.outcome, report.wasxfail = "skipped", f"{verdict['result']}: {verdict['reason']}"
    if known is None or known["result"] == "passes":
        _results[item.nodeid] = {"module": _module_of(item), "entry": _entry_of(item), **verdict}


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep what other runs have found of tests that were not in this one."""
    record = record_of(HULL)
    known = json.loads(record.read_text()) if record.exists() else []
    ran = {(one["module"], one["entry"]) for one in _results.values()}
    kept = [one for one in known if (one["module"], one["entry"]) not in ran]
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(kept + list(_results.values()), indent=1))


def record_of(hull: str) -> Path:
    """Return the file with the results of a hull: a list of module, entry, result and reason."""
    return RECORDS / f"{hull}.json"


def find_refusal(text: str) -> str:
    """Return what a hull says of an option that it cannot honour, "" when ``text`` has no such sentence."""
    found = _REFUSAL.search(text)
    return f"{found[1].rpartition(': ')[2].strip()}: {found[2].strip().rstrip('.')}" if found else ""


def _judge(report: pytest.TestReport, difference: str) -> dict[str, str]:
    if report.passed:
        return {"result": "passes", "reason": ""}
    if report.skipped:
        said = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        return {"result": "skipped", "reason": str(said).removeprefix("Skipped: ")}
    refusal = find_refusal(report.longreprtext)
    if refusal:
        return {"result": "refused", "reason": refusal.split('"')[0].split("\\n")[0].rstrip("')")}
    if difference:
        return {"result": "differs", "reason": difference}
    crash = getattr(getattr(report.longrepr, "reprcrash", None), "message", "")
    return {"result": "fails", "reason": " ".join(str(crash).split())[:160]}


def _hull_of(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    return str(callspec.params.get("hull", "")) if callspec else ""


def _module_of(item: pytest.Item) -> str:
    return item.path.relative_to(item.config.rootpath).with_suffix("").as_posix()


def _entry_of(item: pytest.Item) -> str:
    """Return a test's name in plain English: its docstring, or else its name; with its other parameters."""
    function: Any = getattr(item, "function")  # noqa: B009
    words = (function.__doc__ or function.__name__.removeprefix("test_").replace("_", " ")).split("\n")[0]
    callspec = getattr(item, "callspec", None)
    more = [
        part
        for part in (callspec.id.split("-") if callspec else [])
        if part != HULL and not _UNNAMED.fullmatch(part)
    ]
    return f"{words.rstrip('.')} ({'-'.join(more)})" if more else words.rstrip(".")

# SPDX-License-Identifier: Apache-2.0
"""Makes docs/reference/parity.md of what the tests found in each hull: ``python -m tests.parity.table``.

The tests leave their results in a file for each hull (plugin.py). A row is a test, or one case of it; areas
are the modules, with the first sentence of their docstrings.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.parity.plugin import record_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "parity.md"
HULLS = ("container", "vm")

_TEMPORARY = re.compile(r"(unix://)?/tmp/[^\s:]+")  # differs from run to run

Results = Sequence[Mapping[str, str]]

HEAD = """\
# What works in which hull

Made by `make parity`: the tests of the Engine API, with every container a container (`proa daemon`), and
again with every container a virtual machine (`proa daemon --default-isolation vm`). A refusal comes with
status 400 and the reason, before anything is made; [options.md](options.md) has every option. What differs
says where that is written. What is bold fails although it should not.

"""


def render(found: Mapping[str, Results]) -> str:
    """Return the page. ``found``: the results of each hull."""
    parts = [HEAD + _summary(found)]
    for module in sorted({one["module"] for results in found.values() for one in results}, key=_rank):
        parts.append(f"## {title_of(ROOT / f'{module}.py')}\n\n`{module}.py`\n")
        parts.append("| | container | VM |\n|---|---|---|\n" + "".join(_rows(module, found)))
    return "\n".join(parts)


def title_of(file: Path) -> str:
    """Return the first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(file.read_text())) or file.stem
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def _rank(module: str) -> tuple[int, str]:
    places = ("tests/parity/", "tests/e2e/", "tests/conformance/")
    return next((rank for rank, place in enumerate(places) if module.startswith(place)), 9), module


def _rows(module: str, found: Mapping[str, Results]) -> Iterator[str]:
    cells: dict[str, dict[str, str]] = {}
    for hull, results in found.items():
        for one in results:
            if one["module"] == module:
                cells.setdefault(one["entry"], {})[hull] = _cell(one)
    for entry, row in cells.items():
        yield f"| {_plain(entry)} | {' | '.join(row.get(hull, '–') for hull in HULLS)} |\n"


def _cell(one: Mapping[str, str]) -> str:
    reason = _plain(one["reason"])
    match one["result"]:
        case "passes":
            return "passes"
        case "refused" | "differs" as word:
            return f"{word}: {reason}"
        case "skipped":
            return f"– ({reason})"
        case _:
            return f"**fails**: {reason}"


def _plain(text: str) -> str:
    return _TEMPORARY.sub("FILE", text).replace("|", "\\|").replace("<", "&lt;")


def _summary(found: Mapping[str, Results]) -> str:
    lines = [
        "| hull | tests | pass | refused | differ | fail | not applicable |",
        "|---|---|---|---|---|---|---|",
    ]
    for hull in HULLS:
        ended = [one["result"] for one in found.get(hull, ())]
        counts = (ended.count(word) for word in ("passes", "refused", "differs", "fails", "skipped"))
        lines.append(f"| {hull} | {len(ended)} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    missing = [hull for hull in HULLS if not record_of(hull).exists()]
    if missing:
        sys.exit(f"there are no results of {', '.join(missing)}: run make parity")
    PAGE.write_text(render({hull: json.loads(record_of(hull).read_text()) for hull in HULLS}))

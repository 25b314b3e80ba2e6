# SPDX-License-Identifier: Apache-2.0
"""The numbers and rules of the style guide that a machine can check. See CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "proa"
FILES = sorted(SRC.rglob("*.py"))
MAX_FILE_LINES = 700
MAX_FUNCTION_LINES = 80
SPDX = "# SPDX-License-Identifier: Apache-2.0"
VAGUE = re.compile(r"(^|_)(utils?|helpers?|common|misc)(_|$)")

# Where one hull may be told from another by its name: the hulls themselves, those who make them, the one
# module that chooses, and the comparison, which is about the two.
KNOWS_HULLS = ("runtime/vm/", "runtime/oci/", "daemon/", "compare/", "engine/isolation.py")
HULL_NAMES = frozenset({"vm", "crun", "runc", "container"})
HULL_FIELDS = frozenset({"runtime", "isolation", "default_runtime", "hull"})


def name(path: Path) -> str:
    return str(path.relative_to(SRC))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 100


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file(path: Path) -> None:
    text = path.read_text()
    lines = text.splitlines()
    assert len(lines) <= MAX_FILE_LINES, f"{len(lines)} lines, at most {MAX_FILE_LINES}"
    assert lines[0] == SPDX
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "the module says what it owns"
    long = {
        function.name: length
        for function in functions(tree)
        if (length := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert long == {}, f"functions longer than {MAX_FUNCTION_LINES} lines"


def test_the_usual_file_is_short() -> None:
    sizes = sorted(len(path.read_text().splitlines()) for path in FILES)
    assert sizes[len(sizes) // 2] <= 200
    assert sizes[len(sizes) * 9 // 10] <= 450


def test_names_say_something() -> None:
    assert [name(path) for path in (*FILES, *SRC.rglob("*/")) if VAGUE.search(path.stem)] == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nobody_asks_which_hull_it_has(path: Path) -> None:
    """What differs between hulls is data in their feature records. (STYLE.md, section 3)"""
    if name(path).startswith(KNOWS_HULLS):
        return
    asking = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare) and _compares_hulls(node)
    ]
    assert asking == []


def _compares_hulls(node: ast.Compare) -> bool:
    sides = (node.left, *node.comparators)
    constants = {one.value for side in sides for one in ast.walk(side) if isinstance(one, ast.Constant)}
    fields = {
        one.attr if isinstance(one, ast.Attribute) else one.id
        for side in sides
        for one in ast.walk(side)
        if isinstance(one, (ast.Attribute, ast.Name))
    }
    unmistakable = {"crun", "runc"} & constants or {"ISOLATION_VM", "ISOLATION_CONTAINER"} & fields
    return bool(unmistakable) or bool(HULL_NAMES & constants and HULL_FIELDS & fields)

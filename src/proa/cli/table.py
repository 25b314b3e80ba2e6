# SPDX-License-Identifier: Apache-2.0
"""Output of lists: docker's tables, ``--format json``, ``--format '{{.Field}}'`` and ``--quiet``.

Of Go's templates the part that people use is understood: fields with dots, ``json``, ``index`` of labels,
plain text between, and ``table`` in front.

Source: docker "Format command and log output".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

import click

_ACTION = re.compile(r"\{\{\s*(.*?)\s*\}\}")

Row = Mapping[str, str]


def print_rows(rows: Sequence[Row], columns: Sequence[tuple[str, str]], template: str | None) -> None:
    """Print rows as a table of (title, field), or by the user's template.

    Raises click.BadParameter for a template that is not understood.
    """
    if not template or template == "table":
        _print_table([title for title, _ in columns], [[row[field] for _, field in columns] for row in rows])
        return
    if template == "json":
        for row in rows:
            click.echo(json.dumps(row))
        return
    as_table = template.startswith("table ")
    text = template.removeprefix("table ").replace("\\t", "\t").replace("\\n", "\n")
    if as_table:
        titles = {field: title for title, field in columns}
        head = [titles.get(field.lstrip("."), field.lstrip(".").upper()) for field in _ACTION.findall(text)]
        _print_table(head, [render(text, row).split("\t") for row in rows])
        return
    for row in rows:
        click.echo(render(text, row))


def render(template: str, value: object) -> str:
    """Return the template filled in with the value's fields. Raises click.BadParameter."""
    return _ACTION.sub(lambda match: _as_text(evaluate(match[1], value)), template)


def evaluate(expression: str, value: object) -> object:
    """Return what one action of a template stands for."""
    words = expression.split()
    functions: dict[str, Callable[[object], object]] = {
        "json": json.dumps,
        "len": lambda found: len(found) if isinstance(found, (str, list, dict)) else 0,
        "upper": lambda found: _as_text(found).upper(),
        "lower": lambda found: _as_text(found).lower(),
        "println": lambda found: f"{_as_text(found)}\n",
    }
    if len(words) == 2 and words[0] in functions:
        return functions[words[0]](_field(words[1], value))
    if len(words) == 3 and words[0] == "index":
        found = _field(words[1], value)
        key = words[2].strip('"')
        if isinstance(found, dict):
            return found.get(key, "")
        if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            return found[int(key)]
        return ""
    if len(words) == 1:
        return _field(words[0], value)
    raise click.BadParameter(f"template parsing error: {{{{{expression}}}}} is not understood by proa")


def _field(path: str, value: object) -> object:
    if path == ".":
        return value
    if not path.startswith("."):
        raise click.BadParameter(f'template parsing error: function "{path}" not defined')
    for name in path[1:].split("."):
        if not isinstance(value, Mapping):
            raise click.BadParameter(f"template parsing error: can't evaluate field {name}")
        if name not in value:
            raise click.BadParameter(f'template parsing error: map has no entry for key "{name}"')
        value = value[name]
    return value


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "<no value>"
    if isinstance(value, dict):
        return f"map[{' '.join(f'{key}:{_as_text(item)}' for key, item in sorted(value.items()))}]"
    if isinstance(value, list):
        return f"[{' '.join(_as_text(item) for item in value)}]"
    return str(value)


def _print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[index]) for row in (titles, *rows)) for index in range(len(titles))]
    for row in (titles, *rows):
        line = "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        click.echo(line.rstrip())

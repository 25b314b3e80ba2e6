# SPDX-License-Identifier: Apache-2.0
"""Tables, templates, times and sizes as docker prints them."""

from __future__ import annotations

import click
import pytest

from proa.cli.table import print_rows, render
from proa.cli.times import format_ago, format_duration, format_size, parse_moment

ROWS = [{"ID": "1", "Name": "a"}, {"ID": "22", "Name": "longer"}]
COLUMNS = (("NAME", "Name"), ("ID NO", "ID"))
VALUE = {
    "Name": "web",
    "State": {"Running": True, "Pid": 5, "Error": None},
    "Labels": {"b": "2", "a": "1"},
    "Args": ["x", "y"],
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (None, "NAME     ID NO\na        1\nlonger   22\n"),
        ("table", "NAME     ID NO\na        1\nlonger   22\n"),
        ("json", '{"ID": "1", "Name": "a"}\n{"ID": "22", "Name": "longer"}\n'),
        ("{{.ID}}={{ .Name }}", "1=a\n22=longer\n"),
        (r"table {{.ID}}\t{{.Name}}", "ID NO   NAME\n1       a\n22      longer\n"),
        (r"{{.ID}}\t{{.Name}}", "1\ta\n22\tlonger\n"),
    ],
)
def test_lists(template: str | None, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS, COLUMNS, template)
    assert capsys.readouterr().out == text


def test_an_empty_table_has_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([], COLUMNS, None)
    assert capsys.readouterr().out == "NAME   ID NO\n"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{.Name}}", "web"),
        ("{{.State.Running}} {{.State.Pid}}", "true 5"),
        ("{{.State.Error}}", "<no value>"),
        ("{{.Labels}}", "map[a:1 b:2]"),
        ("{{.Args}}", "[x y]"),
        ("{{json .Args}}", '["x", "y"]'),
        ("{{len .Args}}", "2"),
        ("{{upper .Name}}", "WEB"),
        ('{{index .Labels "a"}}', "1"),
        ("{{index .Args 1}}{{index .Args 9}}", "y"),
        ("no action", "no action"),
    ],
)
def test_templates(template: str, text: str) -> None:
    assert render(template, VALUE) == text


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{.Nope}}", 'map has no entry for key "Nope"'),
        ("{{.Name.X}}", "can't evaluate field X"),
        ("{{nope}}", 'function "nope" not defined'),
        ("{{range .Args}}{{end}}", "template parsing error"),
    ],
)
def test_templates_that_are_not_understood(template: str, sentence: str) -> None:
    with pytest.raises(click.BadParameter, match=sentence):
        render(template, VALUE)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (120, "2 minutes"),
        (3599, "59 minutes"),
        (3600, "About an hour"),
        (5400, "2 hours"),
        (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (14 * 86400, "2 weeks"),
        (60 * 86400, "2 months"),
        (700 * 86400, "23 months"),
        (800 * 86400, "2 years"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
    assert format_ago(0, seconds) == f"{text} ago"


@pytest.mark.parametrize(
    ("size", "base", "text"),
    [
        (0, 1000, "0B"),
        (999, 1000, "999B"),
        (4_261_502, 1000, "4.26MB"),
        (1_500_000_000, 1000, "1.5GB"),
        (1536, 1024, "1.5KiB"),
        (1010 * 1024, 1024, "1010KiB"),
    ],
)
def test_sizes(size: int, base: int, text: str) -> None:
    assert format_size(size, base=base) == text


def test_moments() -> None:
    assert parse_moment("", 100.0) == ""
    assert parse_moment("10s", 100.0) == "90.000000000"
    assert parse_moment("1h1m", 10_000.0) == "6340.000000000"
    assert parse_moment("1970-01-01T00:01:00Z", 0) == "60.000000000"
    with pytest.raises(click.BadParameter):
        parse_moment("soon", 0)

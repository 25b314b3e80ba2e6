# SPDX-License-Identifier: Apache-2.0
"""Subordinate ids as /etc/subuid and /etc/subgid have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from proa.host import subids
from proa.host.subids import IdRange, NoSubordinateIds, find_range, parse_ranges, ranges_of

TEXT = """\
someone:100000:65536
1000:300000:10

broken:x:5
broken:5
empty:1:0
beyond:4294967296:1
someone:200000:70000
"""


def test_lines_that_make_no_sense_are_left_out() -> None:
    assert list(parse_ranges(TEXT)) == [
        ("someone", IdRange(100_000, 65_536)),
        ("1000", IdRange(300_000, 10)),
        ("someone", IdRange(200_000, 70_000)),
    ]


def test_the_largest_by_name_or_number(tmp_path: Path) -> None:
    path = tmp_path / "subuid"
    assert find_range(path, "someone", None) is None
    path.write_text(TEXT)
    assert find_range(path, "someone", None) == IdRange(200_000, 70_000)
    assert find_range(path, "other", 1000) == IdRange(300_000, 10)
    assert find_range(path, "other", None) is None


def test_user_and_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("subuid", "root:100000:10\n"), ("subgid", "root:200000:20\ndaemon:300000:30\n")):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(subids, name.upper(), tmp_path / name)
    assert ranges_of("root") == (IdRange(100_000, 10), IdRange(200_000, 20))
    assert ranges_of("0:daemon") == (IdRange(100_000, 10), IdRange(300_000, 30))
    for text, sentence in (
        ("daemon", 'no subuid ranges found for user "daemon"'),
        ("root:nogroup", 'no subgid ranges found for group "nogroup"'),
        ("no-such-user", 'there is no user "no-such-user"'),
        ("root:no-such-group", 'there is no group "no-such-group"'),
        ("", 'there is no user ""'),
    ):
        with pytest.raises(NoSubordinateIds, match=sentence):
            ranges_of(text)

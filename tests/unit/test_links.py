# SPDX-License-Identifier: Apache-2.0
"""Every relative link of the documents leads to a file, and a link to a heading to that heading."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "bench").glob("*.md")),
)
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:")


def relative_links(text: str) -> Iterator[str]:
    for target in _LINK.findall(_CODE.sub("``", _FENCE.sub("", text))):
        if _SCHEME.match(target) is None:
            yield target


def anchors(text: str) -> set[str]:
    """As GitHub makes them: lower case, without punctuation, blanks as hyphens."""
    titles = re.findall(r"^#+ +(.+?) *$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(document: Path) -> None:
    broken = []
    for link in relative_links(document.read_text()):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert broken == []


def test_what_is_a_link() -> None:
    text = "[a](b.md#c) `[no](code.md)` [web](https://x.org)\n```\n[no](fence.md)\n```\n![p](d.png)\n"
    assert list(relative_links(text)) == ["b.md#c", "d.png"]
    assert anchors("## What is there, and `what` is_not\n") == {"what-is-there-and-what-is_not"}

# SPDX-License-Identifier: Apache-2.0
"""Patterns of .dockerignore, as Docker's documentation explains them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proa.build.ignore import IgnoreRules, read_ignore_file
from proa.model.errors import InvalidParameter


@pytest.mark.parametrize(
    ("patterns", "path", "ignored"),
    [
        (["*/temp*"], "somedir/temporary.txt", True),
        (["*/temp*"], "a/b/temporary.txt", False),
        (["*/*/temp*"], "somedir/subdir/temporary.txt", True),
        (["temp?"], "tempa", True),
        (["temp?"], "temp", False),
        (["**/*.go"], "main.go", True),
        (["**/*.go"], "a/b/main.go", True),
        (["*.md", "!README.md"], "README.md", False),
        (["*.md", "!README*.md", "README-secret.md"], "README-secret.md", True),
        (["*.md", "README-secret.md", "!README*.md"], "README-secret.md", False),
        (["node_modules"], "node_modules/x/y.js", True),
        (["node_modules", "!node_modules/x"], "node_modules/x/y.js", False),
        (["/foo/bar"], "foo/bar", True),
        (["foo/"], "foo/a", True),
        (["**"], "a/b", True),
        (["a/**/b"], "a/b", True),
        (["a/**/b"], "a/x/y/b", True),
        (["[a-c].txt"], "b.txt", True),
        (["[^a-c].txt"], "b.txt", False),
        (["a\\*b"], "a*b", True),
        (["."], "a", False),
        ([], "a", False),
    ],
)
def test_ignores(patterns: list[str], path: str, ignored: bool) -> None:
    assert IgnoreRules(patterns).ignores(path) is ignored


@pytest.mark.parametrize("pattern", ["[", "[a", "a\\", "!"])
def test_malformed(pattern: str) -> None:
    with pytest.raises(InvalidParameter):
        IgnoreRules([pattern])


def test_files_have_comments() -> None:
    assert read_ignore_file("\ufeff# no\n\n  a \n!b\n") == ["a", "!b"]


@settings(max_examples=100, deadline=None)
@given(st.text("ab*?[]^-!\\/.", max_size=12), st.text("ab/.", max_size=12))
def test_nothing_else_is_raised(pattern: str, path: str) -> None:
    try:
        IgnoreRules([pattern]).ignores(path)
    except InvalidParameter as error:
        assert error.message

# SPDX-License-Identifier: Apache-2.0
"""Words of Dockerfiles: splitting, quotes, variables with every modifier of the reference."""

from __future__ import annotations

import pytest

from proa.image.shellwords import expand, expand_text, split_words
from proa.model.errors import InvalidParameter

ENV = {"A": "value", "EMPTY": "", "PATH": "/usr/lib/foo.tar.gz", "STR": "foobarbaz"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("$A", "value"),
        ("${A}x", "valuex"),
        ("$UNSET|", "|"),
        ("'$A'", "$A"),
        ('"$A b"', "value b"),
        ("\\$A", "$A"),
        ('"\\$A \\x"', "$A \\x"),
        ("$", "$"),
        ("a$/b", "a$/b"),
        # unset or empty
        ("${UNSET:-word}", "word"),
        ("${EMPTY:-word}", "word"),
        ("${EMPTY-word}", ""),
        ("${UNSET-word}", "word"),
        ("${A:+word}", "word"),
        ("${EMPTY:+word}", ""),
        ("${EMPTY+word}", "word"),
        ("${UNSET+word}", ""),
        ("${A:?no}", "value"),
        ("${EMPTY?no}", ""),
        ("${UNSET:-${EMPTY:-$A}}", "value"),
        # beginnings and ends
        ("${STR#f*b}", "arbaz"),
        ("${STR##f*b}", "az"),
        ("${STR%b*}", "foobar"),
        ("${STR%%b*}", "foo"),
        ("${PATH##*/}", "foo.tar.gz"),
        ("${PATH%.*}", "/usr/lib/foo.tar"),
        ("${PATH%%.*}", "/usr/lib/foo"),
        ("${PATH#/usr}", "/lib/foo.tar.gz"),
        ("${STR#x}", "foobarbaz"),
        ("${STR#???}", "barbaz"),
        ("${UNSET#x}", ""),
        # replacing
        ("${STR/b/X}", "fooXarbaz"),
        ("${STR//b/X}", "fooXarXaz"),
        ("${STR//a?/-}", "foob-b-"),
        ("${STR/o*/}", "f"),
        ("${STR//o}", "fbarbaz"),
        ("${PATH//\\//_}", "_usr_lib_foo.tar.gz"),
        ("${A/value/${STR%baz}}", "foobar"),
    ],
)
def test_expand(word: str, expected: str) -> None:
    assert expand(word, ENV) == expected


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("${UNSET:?need it}", "UNSET: need it"),
        ("${UNSET?}", "UNSET: not allowed to be unset or empty"),
        ("${A", "missing '}'"),
        ("${A:x}", r"unsupported modifier \(:x\)"),
        ("${}", "bad substitution"),
        ("'a", "single-quote"),
        ('"a', "double-quote"),
        ("${A/" + "x" * 5000 + "/}", "4096 characters"),
        ("${A:-" * 20 + "}" * 20, "nested too deep"),
    ],
)
def test_expand_refuses(word: str, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        expand(word, {"A": "" if "nested" in message else "value"})


def test_another_escape_character() -> None:
    assert expand("`$A \\n", ENV, escape="`") == "$A \\n"
    assert split_words("a` b c", "`") == ["a` b", "c"]


def test_patterns_take_linear_time() -> None:
    value = "a" * 4000
    assert expand("${V//" + "*a" * 20 + "b/x}", {"V": value}) == value


def test_doubling_ends() -> None:
    env = {"A": "xx"}
    with pytest.raises(InvalidParameter, match="more than 1048576 characters"):
        for _ in range(100):
            env["A"] = expand("$A$A", env)


def test_text_keeps_its_quotes() -> None:
    assert expand_text('it\'s "$A" \\$A\n', ENV) == 'it\'s "value" $A\n'


def test_split() -> None:
    assert split_words("a  'b c' \"d e\" f\\ g") == ["a", "'b c'", '"d e"', "f\\ g"]

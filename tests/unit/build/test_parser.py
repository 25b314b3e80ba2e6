# SPDX-License-Identifier: Apache-2.0
"""Dockerfiles to instructions, and the words for those that make no sense."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proa.build.errors import DockerfileError
from proa.build.parser import parse_dockerfile


def parse_one(text: str):  # type: ignore[no-untyped-def]  # the tests read any field
    return parse_dockerfile(f"FROM x\n{text}").stages[0].instructions[0]


def test_stages_and_global_arguments() -> None:
    dockerfile = parse_dockerfile(
        "# a comment\nARG V=1\nFROM --platform=linux/amd64 base:$V AS Build\nRUN a\n"
        "from scratch\ncopy --from=build /a /b\n"
    )
    assert [instruction.rest for instruction in dockerfile.arguments] == ["V=1"]
    first, second = dockerfile.stages
    assert (first.name, first.base, first.platform) == ("build", "base:$V", "linux/amd64")
    assert [instruction.name for instruction in second.instructions] == ["COPY"]
    assert second.instructions[0].flag("from") == "build"


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("RUN a \\\n  b", "a   b"),
        ("RUN a \\\n# comment\n\n && b", "a  && b"),
        ("RUN a \\  \nb", "a b"),
        ("RUN a \\\\\n", "a \\\\"),
        ("RUN a \\", "a"),
        ("  RUN\ta\r\n", "a"),
    ],
)
def test_continued_lines(text: str, rest: str) -> None:
    assert parse_one(text).rest == rest


def test_directives() -> None:
    dockerfile = parse_dockerfile("# syntax=docker/dockerfile:1\n# escape=`\nFROM x\nRUN a `\n b\\\n")
    assert dockerfile.escape == "`"
    assert dockerfile.stages[0].instructions[0].rest == "a  b\\"
    assert parse_dockerfile("# a\n# escape=`\nFROM x\n").escape == "\\", "not after a comment"


def test_heredocs() -> None:
    run = parse_one("RUN <<EOF cat\na\n# not a comment\nEOF\nUSER x")
    assert (run.heredocs[0].content, run.heredocs[0].expands) == ("a\n# not a comment\n", True)
    copy = parse_one('COPY <<-"A" <<B /x/\n\ta\n\tA\nb\nB\n')
    assert [doc.content for doc in copy.heredocs] == ["a\n", "b\n"]
    assert [doc.expands for doc in copy.heredocs] == [False, True]
    assert parse_one("RUN cat <<<EOF").heredocs == ()
    assert parse_one("RUN echo $((1<<3))").heredocs == ()


def test_flags_and_json() -> None:
    run = parse_one('RUN --mount=type=cache,target=/c --mount=type=tmpfs,target=/t --network=none ["a", "b"]')
    assert run.all_flags("mount") == ["type=cache,target=/c", "type=tmpfs,target=/t"]
    assert (run.flag("network"), run.words) == ("none", ("a", "b"))
    assert parse_one('CMD ["a", b]').words is None
    assert parse_one("COPY --link a b").switch("link")
    assert not parse_one("COPY --link=false a b").switch("link")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the Dockerfile (Dockerfile) cannot be empty"),
        ("# escape=x\nFROM a", "line 1: invalid ESCAPE 'x'. Must be ` or \\"),
        ("# escape=`\n# escape=`\nFROM a", "line 2: only one escape parser directive can be used"),
        ("FROM a\nFOO bar", "line 2: unknown instruction: FOO"),
        ("RUN a", "line 1: no build stage in current context"),
        ("ARG A", "line 1: no build stage in current context"),
        ("FROM", "line 1: FROM requires either one or three arguments"),
        ("FROM a b", "line 1: FROM requires either one or three arguments"),
        ("FROM a AS 1x", 'line 1: invalid name for build stage: "1x"'),
        ("FROM a\n\nCOPY x", "line 3: COPY requires at least two arguments, but only one was provided."),
        ("FROM a\nCOPY --foo=1 x y", "line 2: unknown flag: --foo"),
        ("FROM a\nCOPY --from x y", "line 2: missing a value on flag: from"),
        ("FROM a\nCOPY --link=x x y", "line 2: expecting boolean value for flag link, not: x"),
        ("FROM a\nCOPY --from=x --from=y x y", "line 2: duplicate flag specified: from"),
        ("FROM a\nRUN <<EOF\nx", "line 2: unterminated heredoc"),
        ("FROM a\nSHELL sh", "line 2: SHELL requires the arguments to be in JSON form"),
        ("FROM a\nUSER", "line 2: USER requires exactly one argument"),
        ("FROM a\nENV", "line 2: ENV requires at least one argument"),
        ("FROM a\nONBUILD ONBUILD RUN x", "line 2: Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("FROM a\nONBUILD FROM x", "line 2: FROM isn't allowed as an ONBUILD trigger"),
        ("FROM a\nONBUILD FOO x", "line 2: unknown instruction: FOO"),
        ("FROM a\nRUN \0", "line 2: RUN contains a NUL byte"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(DockerfileError) as raised:
        parse_dockerfile(text)
    assert message in raised.value.message


def test_many_continued_lines_take_linear_time() -> None:
    parse_dockerfile("FROM a\nRUN x" + " \\\n a" * 100_000)


PIECES = st.sampled_from(
    [
        "FROM a\n",
        "RUN ",
        "COPY ",
        "--mount=",
        "<<EOF",
        "<<-'E'",
        "\n",
        "\\\n",
        "\\",
        "EOF\n",
        "[",
        '"',
        "'",
        "]",
        "ONBUILD ",
        "# escape=`\n",
        "#",
        "`",
        "${",
        "}",
        "$",
        "--",
        "=",
        "\t",
        "\r\n",
        "ENV ",
        "é",
        "\x00",
        "a",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.lists(PIECES, max_size=30).map("".join), st.text(max_size=100)))
def test_nothing_else_is_raised(text: str) -> None:
    for whole in (text, "FROM a\n" + text):
        try:
            parse_dockerfile(whole)
        except DockerfileError as error:
            assert error.message

# SPDX-License-Identifier: Apache-2.0
"""Which value an argument has where, and which stages a build needs."""

from __future__ import annotations

import pytest

from proa.build.errors import DockerfileError
from proa.build.graph import expand_bases, find_stage, find_target, needed_stages
from proa.build.parser import Instruction, parse_dockerfile
from proa.build.scope import GlobalScope, StageScope
from proa.model.errors import InvalidParameter


def arg(text: str) -> Instruction:
    return Instruction(name="ARG", line=1, text=f"ARG {text}", rest=text)


def test_arguments_of_a_stage() -> None:
    whole = GlobalScope({"GIVEN": "mine", "UNUSED": "x", "HTTP_PROXY": "p"}, {"TARGETARCH": "amd64"})
    whole.declare(arg("TOP=top"), "\\")
    stage = StageScope(whole)
    assert stage.variables(None) == {}, "a stage sees nothing that it has not asked for"
    for text in ("TOP", "GIVEN=default", "OWN=$TOP/x", "NONE", "TARGETARCH"):
        stage.declare(arg(text), [], "\\")
    assert stage.variables(["OWN=env"]) == {
        "TOP": "top",
        "GIVEN": "mine",
        "OWN": "env",
        "TARGETARCH": "amd64",
    }
    assert stage.arguments(["OWN=env"]) == {"TOP": "top", "GIVEN": "mine", "TARGETARCH": "amd64"}
    assert stage.hidden_arguments([]) == {"HTTP_PROXY": "p"}
    assert whole.unused() == ["UNUSED"]


def test_an_argument_given_without_value_keeps_its_default() -> None:
    whole = GlobalScope({"A": None}, {})
    stage = StageScope(whole)
    stage.declare(arg("A=1"), [], "\\")
    assert stage.variables(None) == {"A": "1"}


def test_needed_stages() -> None:
    dockerfile = parse_dockerfile(
        "ARG B=two\nFROM x AS one\nFROM y AS two\nFROM z AS three\n"
        "FROM $B\nCOPY --from=0 /a /b\nRUN --mount=type=bind,from=three,target=/x true\nFROM unused\n"
    )
    scope = GlobalScope({}, {})
    scope.declare(dockerfile.arguments[0], "\\")
    bases = expand_bases(dockerfile, scope)
    needed = needed_stages(dockerfile, find_target(dockerfile, "3"), bases)
    assert [stage.index for stage in needed] == [0, 1, 2, 3]
    assert [stage.index for stage in needed_stages(dockerfile, find_target(dockerfile, "two"), bases)] == [1]
    assert find_target(dockerfile, "").index == 4
    assert find_stage(dockerfile, "one", 0, numbers=True) is None, "only what comes before"
    with pytest.raises(InvalidParameter, match="failed to reach build target nosuch"):
        find_target(dockerfile, "nosuch")
    with pytest.raises(DockerfileError, match=r"base name \(\$B\) should not be blank"):
        expand_bases(dockerfile, GlobalScope({}, {}))

# SPDX-License-Identifier: Apache-2.0
"""Dockerfile instructions as configuration changes, and the words they are made of."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.image.changes import apply_changes
from proa.image.shellwords import expand, split_words
from proa.model.config import ContainerConfig, Empty, HealthConfig
from proa.model.errors import InvalidParameter


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        (['CMD ["sh", "-c", "a b"]'], "cmd", ["sh", "-c", "a b"]),
        (["cmd echo $HOME"], "cmd", ["/bin/sh", "-c", "echo $HOME"]),
        (["CMD [not json"], "cmd", ["/bin/sh", "-c", "[not json"]),
        (['ENTRYPOINT ["/init"]'], "entrypoint", ["/init"]),
        (["ENTRYPOINT run it"], "entrypoint", ["/bin/sh", "-c", "run it"]),
        (['ENV A=1 B="two words" C=x\\ y'], "env", ["PATH=/bin", "A=1", "B=two words", "C=x y"]),
        (["ENV A all the rest"], "env", ["PATH=/bin", "A=all the rest"]),
        (["ENV PATH=/opt:$PATH", "ENV X=${Y:-def}"], "env", ["PATH=/opt:/bin", "X=def"]),
        (["EXPOSE 80 53/udp 8000-8001"], "exposed_ports", ["80/tcp", "53/udp", "8000/tcp", "8001/tcp"]),
        (["LABEL a=b 'c d'=\"e f\""], "labels", {"a": "b", "c d": "e f"}),
        (["USER 1000:1000"], "user", "1000:1000"),
        (["WORKDIR /a", "WORKDIR b/../c"], "working_dir", "/a/c"),
        (['VOLUME ["/x", "/y z"]'], "volumes", ["/x", "/y z"]),
        (["VOLUME /x /y"], "volumes", ["/x", "/y"]),
        (["STOPSIGNAL SIGQUIT"], "stop_signal", "SIGQUIT"),
        (["STOPSIGNAL 9"], "stop_signal", "9"),
        (["ONBUILD RUN make"], "on_build", ["RUN make"]),
        (["HEALTHCHECK NONE"], "healthcheck", HealthConfig(test=["NONE"])),
        (
            ["HEALTHCHECK --interval=1m30s --retries=3 CMD curl x"],
            "healthcheck",
            HealthConfig(test=["CMD-SHELL", "curl x"], interval=90_000_000_000, retries=3),
        ),
        (['HEALTHCHECK CMD ["a", "b"]'], "healthcheck", HealthConfig(test=["CMD", "a", "b"])),
        (["# comment\n\nUSER a\\\nb"], "user", "ab"),
    ],
)
def test_instructions(changes: list[str], field: str, value: object) -> None:
    config = getattr(apply_changes(ContainerConfig(env=["PATH=/bin"]), changes), field)
    if field in ("exposed_ports", "volumes"):
        value = dict.fromkeys(value, Empty())  # type: ignore[call-overload]
    assert config == value


def test_an_entrypoint_clears_an_inherited_command_only() -> None:
    old = ContainerConfig(cmd=["old"])
    assert apply_changes(old, ["ENTRYPOINT x"]).cmd is None
    assert apply_changes(old, ['CMD ["new"]', "ENTRYPOINT x"]).cmd == ["new"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("FROM x", "FROM is not a valid change command"),
        ("RUN x", "RUN is not a valid change command"),
        ("FOO x", "dockerfile parse error on line 1: unknown instruction: FOO"),
        ("CMD", "CMD requires at least one argument"),
        ("ENV A", "ENV must have two arguments"),
        ("ENV A=1 B", 'can\'t find = in "B"'),
        ("ENV =1", "ENV names can not be blank"),
        ("EXPOSE x", "invalid containerPort: x"),
        ("EXPOSE 70000", "invalid containerPort: 70000"),
        ('VOLUME [""]', "VOLUME specified can not be an empty string"),
        ("STOPSIGNAL NOPE", "Invalid signal: NOPE"),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD"),
        ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        ("HEALTHCHECK FOO x", 'Unknown type "FOO" in HEALTHCHECK'),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK --interval=x CMD y", 'invalid duration "x"'),
        ("HEALTHCHECK --interval=1us CMD y", "cannot be less than 1ms"),
        ("USER 'a", "looking for matching single-quote"),
        ("USER ${a", "missing '}'"),
        ("USER ${a:?gone}", "a: gone"),
    ],
)
def test_refusals(change: str, message: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        apply_changes(ContainerConfig(), [change])
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("$a-${b}", "1-2"),
        ("${c:-x$a}", "x1"),
        ("${e:-x}${e-y}", "x"),
        ("${a:+yes}${c:+no}", "yes"),
        ("${c:-${a:-z}}", "1"),
        ("'$a'\"$a\"", "$a1"),
        (r"\$a \"", '$a "'),
        (r'"\x\$"', r"\x$"),
        ("$", "$"),
        ("$.", "$."),
    ],
)
def test_expansion(word: str, value: str) -> None:
    assert expand(word, {"a": "1", "b": "2", "e": ""}) == value


def test_splitting_keeps_quoted_blanks() -> None:
    assert split_words("a 'b c'\t\"d e\" f\\ g") == ["a", "'b c'", '"d e"', "f\\ g"]


@given(st.text("a$ {}:-+?'\"\\=[],0/", max_size=40))
def test_any_text_is_taken_or_refused(text: str) -> None:
    for name in ("ENV", "LABEL", "EXPOSE", "VOLUME", "HEALTHCHECK", "USER", "WORKDIR", "CMD", "STOPSIGNAL"):
        with contextlib.suppress(InvalidParameter):
            apply_changes(ContainerConfig(), [f"{name} {text}"])

# SPDX-License-Identifier: Apache-2.0
"""Logical lines to instructions: names, flags, forms, and what can be checked without running. Pure.

An instruction keeps its arguments unexpanded; variables are put in when its step is reached, because their
values come from the steps before it.

Source: Dockerfile reference, Overview and each instruction; Docker Engine, the words of the errors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from proa.build.errors import DockerfileError
from proa.build.lexer import Heredoc, Line, Source, read_source
from proa.image.shellwords import split_words

# Flags of each instruction; True for those that may stand without a value.
_COPY_FLAGS = {"chown": False, "chmod": False, "link": True, "exclude": False}
_HEALTH_FLAGS = ("interval", "timeout", "start-period", "start-interval", "retries")
_FLAGS: dict[str, dict[str, bool]] = {
    "ADD": {**_COPY_FLAGS, "keep-git-dir": True, "checksum": False, "unpack": True},
    "COPY": {**_COPY_FLAGS, "from": False, "parents": True},
    "FROM": {"platform": False},
    "HEALTHCHECK": dict.fromkeys(_HEALTH_FLAGS, False),
    "RUN": {"mount": False, "network": False, "security": False, "device": False},
}
_REPEATED = frozenset({"mount", "exclude", "device"})
INSTRUCTIONS = frozenset(
    "ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL MAINTAINER ONBUILD RUN SHELL STOPSIGNAL "
    "USER VOLUME WORKDIR".split()
)
_MAY_BE_EMPTY = frozenset({"CMD", "ENTRYPOINT", "RUN"})  # Docker accepts "CMD" and "CMD []"
_EXACTLY_ONE = frozenset({"MAINTAINER", "STOPSIGNAL", "USER", "WORKDIR"})
_STAGE_NAME = re.compile(r"[a-z][a-z0-9-_.]*")
_TRUTH = {"": True, "true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction.

    :ivar name: in capitals.
    :ivar text: the whole logical line as it was written, for messages.
    :ivar flags: name and value of each ``--flag``, in order.
    :ivar rest: what follows the flags.
    :ivar words: the strings of the JSON form; None in the other form.
    """

    name: str
    line: int
    text: str
    rest: str
    flags: tuple[tuple[str, str], ...] = ()
    words: tuple[str, ...] | None = None
    heredocs: tuple[Heredoc, ...] = ()

    def flag(self, name: str) -> str:
        """Return a flag's value, "" when it is not there."""
        return next((value for key, value in self.flags if key == name), "")

    def all_flags(self, name: str) -> list[str]:
        return [value for key, value in self.flags if key == name]

    def switch(self, name: str) -> bool:
        """Return whether a flag such as ``--link`` is on."""
        values = self.all_flags(name)
        return bool(values) and _TRUTH[values[-1].lower()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One FROM and what follows. ``name`` is in small letters, "" without AS."""

    index: int
    name: str
    origin: Instruction
    base: str  # as written, variables not put in
    platform: str
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dockerfile:
    """``arguments`` are the ARG instructions before the first FROM."""

    stages: tuple[Stage, ...]
    arguments: tuple[Instruction, ...] = ()
    escape: str = "\\"


def parse_dockerfile(text: str, *, name: str = "Dockerfile") -> Dockerfile:
    """Read a Dockerfile.

    :raises DockerfileError: a line makes no sense; whatever the text is, nothing else is raised.
    """
    source = read_source(text)
    if not source.lines:
        raise DockerfileError(0, f"the Dockerfile ({name}) cannot be empty")
    arguments: list[Instruction] = []
    stages: list[tuple[Instruction, list[Instruction]]] = []
    for line in source.lines:
        instruction = parse_line(line, source)
        if instruction.name == "FROM":
            stages.append((instruction, []))
        elif stages:
            stages[-1][1].append(instruction)
        elif instruction.name == "ARG":
            arguments.append(instruction)
        else:
            raise DockerfileError(line.number, "no build stage in current context")
    if not stages:
        raise DockerfileError(source.lines[-1].number, "no build stage in current context")
    return Dockerfile(
        stages=tuple(_stage(index, *stage) for index, stage in enumerate(stages)),
        arguments=tuple(arguments),
        escape=source.escape,
    )


def parse_trigger(text: str, line: int = 1) -> Instruction:
    """Read an ONBUILD trigger as an image keeps it. Raises DockerfileError."""
    source = read_source(text)
    if len(source.lines) != 1:
        raise DockerfileError(line, f"an ONBUILD trigger must be one instruction: {text!r}")
    return parse_line(source.lines[0], source)


def parse_line(line: Line, source: Source) -> Instruction:
    """Read one instruction. Raises DockerfileError."""
    word, rest = _first_word(line.text)
    name = word.upper()
    if name not in INSTRUCTIONS:
        raise DockerfileError(line.number, f"unknown instruction: {word}")
    flags, rest = _take_flags(name, rest, line.number, source.escape)
    words = _json_words(rest)
    instruction = Instruction(
        name=name,
        line=line.number,
        text=line.text,
        rest=rest,
        flags=flags,
        words=words,
        heredocs=line.heredocs,
    )
    _check(instruction, source.escape)
    return instruction


def _stage(index: int, origin: Instruction, instructions: Sequence[Instruction]) -> Stage:
    words = origin.rest.split()
    name = ""
    if len(words) == 3 and words[1].upper() == "AS":
        name = words[2].lower()
        if _STAGE_NAME.fullmatch(name) is None:
            raise DockerfileError(
                origin.line,
                f'invalid name for build stage: "{words[2]}", '
                "name can't start with a number or contain symbols",
            )
    elif len(words) != 1:
        raise DockerfileError(origin.line, "FROM requires either one or three arguments")
    return Stage(
        index=index,
        name=name,
        origin=origin,
        base=words[0],
        platform=origin.flag("platform"),
        instructions=tuple(instructions),
    )


def _first_word(text: str) -> tuple[str, str]:
    match = re.match(r"\S+", text)
    assert match is not None  # lines are not empty
    return match[0], text[match.end() :].strip()


def _take_flags(name: str, rest: str, line: int, escape: str) -> tuple[tuple[tuple[str, str], ...], str]:
    flags: list[tuple[str, str]] = []
    known = _FLAGS.get(name)
    while known is not None and rest.startswith("--"):
        word = _raw_word(rest, escape)
        rest = rest[len(word) :].lstrip()
        if word == "--":
            break
        key, equals, value = word[2:].partition("=")
        if key not in known:
            raise DockerfileError(line, f"unknown flag: --{key}")
        if not equals and not known[key]:
            raise DockerfileError(line, f"missing a value on flag: {key}")
        if known[key] and value.lower() not in _TRUTH:
            raise DockerfileError(line, f"expecting boolean value for flag {key}, not: {value}")
        if key not in _REPEATED and any(key == other for other, _ in flags):
            raise DockerfileError(line, f"duplicate flag specified: {key}")
        flags.append((key, _unquote(value)))
    return tuple(flags), rest


def _raw_word(text: str, escape: str) -> str:
    """Return the first word as it is written, quotes and all."""
    quote = ""
    at = 0
    while at < len(text):
        char = text[at]
        if char == escape and quote != "'" and at + 1 < len(text):
            at += 1
        elif char in "'\"" and quote in ("", char):
            quote = "" if quote else char
        elif char.isspace() and not quote:
            break
        at += 1
    return text[:at]


def _unquote(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value


def _json_words(rest: str) -> tuple[str, ...] | None:
    if not rest.startswith("["):
        return None
    try:
        return tuple(msgspec.json.decode(rest, type=list[str]))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None  # Docker too takes malformed JSON for a shell's text


def _check(instruction: Instruction, escape: str) -> None:
    name, line = instruction.name, instruction.line
    rest, words = instruction.rest, instruction.words
    if "\0" in instruction.text:
        raise DockerfileError(line, f"{name} contains a NUL byte")
    if not rest and name not in _MAY_BE_EMPTY:
        if name == "FROM":
            raise DockerfileError(line, "FROM requires either one or three arguments")
        if name in _EXACTLY_ONE:
            raise DockerfileError(line, f"{name} requires exactly one argument")
        raise DockerfileError(line, f"{name} requires at least one argument")
    if name in ("COPY", "ADD"):
        count = len(words) if words is not None else len(split_words(rest, escape))
        if count < 2:
            only = "no arguments were provided" if count == 0 else "only one was provided"
            raise DockerfileError(
                line,
                f"{name} requires at least two arguments, but {only}. Destination could not be determined",
            )
    elif name == "SHELL":
        if words is None:
            raise DockerfileError(line, "SHELL requires the arguments to be in JSON form")
        if not words:
            raise DockerfileError(line, "SHELL requires at least one argument")
    elif name == "RUN" and words == ():
        raise DockerfileError(line, "RUN requires at least one argument")
    elif name == "ONBUILD":
        _check_trigger(instruction, escape)


def _check_trigger(instruction: Instruction, escape: str) -> None:
    trigger = instruction.rest.split(maxsplit=1)[0].upper()
    if trigger == "ONBUILD":
        raise DockerfileError(instruction.line, "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("FROM", "MAINTAINER"):
        raise DockerfileError(instruction.line, f"{trigger} isn't allowed as an ONBUILD trigger")
    line = Line(
        number=instruction.line,
        end=instruction.line,
        text=instruction.rest,
        heredocs=instruction.heredocs,
    )
    parse_line(line, Source(lines=(line,), escape=escape))

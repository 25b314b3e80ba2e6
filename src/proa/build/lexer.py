# SPDX-License-Identifier: Apache-2.0
"""Cuts a Dockerfile into logical lines: directives, comments, continued lines, here-documents. Pure.

Source: Dockerfile reference, Parser directives, Format, Here-documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from proa.build.errors import DockerfileError
from proa.image.shellwords import split_words

MAX_BYTES = 4 << 20  # of a Dockerfile; the largest ones in use have some hundred kilobytes

_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.*?)\s*")
_DIRECTIVES = frozenset({"syntax", "escape", "check"})
_HEREDOC = re.compile(r"\d*<<(-?)(['\"]?)([^\s<'\"]+)\2")
_WITH_HEREDOCS = frozenset({"RUN", "COPY", "ADD"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Heredoc:
    """A here-document. ``chomps`` when its lines lose their leading tabs (``<<-``); ``expands`` when
    variables are put in, that is, when its name was not quoted. ``text`` is as it stands in the file."""

    name: str
    text: str
    chomps: bool
    expands: bool

    @property
    def content(self) -> str:
        """The document without the tabs that ``<<-`` takes away."""
        return re.sub(r"(?m)^\t+", "", self.text) if self.chomps else self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A logical line: its first and last number in the file, counted from 1, and its text, joined."""

    number: int
    end: int
    text: str
    heredocs: tuple[Heredoc, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A Dockerfile as lines. ``directives`` are by lower-case name; ``escape`` is the escape character."""

    lines: tuple[Line, ...]
    escape: str = "\\"
    directives: dict[str, str] = field(default_factory=dict)


def read_source(text: str) -> Source:
    """Cut a Dockerfile. Raises DockerfileError."""
    physical = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    directives, start = _read_directives(physical)
    escape = directives.get("escape", "\\")
    return Source(
        lines=tuple(_join(physical, start, escape)),
        escape=escape,
        directives=directives,
    )


def find_heredocs(text: str, escape: str) -> list[tuple[str, bool, bool]]:
    """Return name, chomps and expands of the here-documents that a logical line begins, in order."""
    name, _, rest = text.partition(" ")
    if name.upper() == "ONBUILD":
        name, _, rest = rest.lstrip().partition(" ")
    if name.upper() not in _WITH_HEREDOCS or "<<" not in rest:
        return []
    found = []
    for word in split_words(rest, escape):
        match = _HEREDOC.fullmatch(word)
        if match is not None:
            found.append((match[3], bool(match[1]), not match[2]))
    return found


def _read_directives(lines: list[str]) -> tuple[dict[str, str], int]:
    """Return the directives and how many lines they take."""
    directives: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        match = _DIRECTIVE.fullmatch(line.strip())
        if match is None or match[1].lower() not in _DIRECTIVES:
            return directives, number - 1
        name = match[1].lower()
        if name in directives:
            raise DockerfileError(number, f"only one {name} parser directive can be used")
        if name == "escape" and match[2] not in ("\\", "`"):
            raise DockerfileError(number, f"invalid ESCAPE '{match[2]}'. Must be ` or \\")
        directives[name] = match[2]
    return directives, len(lines)


def _join(lines: list[str], index: int, escape: str) -> Iterator[Line]:
    # An escape at the end continues the line, unless it is itself escaped.
    token = re.escape(escape)
    continued = re.compile(rf"(^|[^{token}]){token}[ \t]*$")
    while index < len(lines):
        piece = lines[index].lstrip()
        start = index + 1
        index += 1
        if not piece.strip() or piece.startswith("#"):
            continue
        pieces: list[str] = []
        while (match := continued.search(piece)) is not None:
            pieces.append(piece[: match.end(1)])
            piece = ""
            while index < len(lines) and (not lines[index].strip() or lines[index].lstrip().startswith("#")):
                index += 1  # comments and empty lines in between do not end it
            if index == len(lines):
                break
            piece = lines[index]
            index += 1
        text = "".join([*pieces, piece]).rstrip()
        if not text:
            continue
        heredocs: list[Heredoc] = []
        for name, chomps, expands in find_heredocs(text, escape):
            body: list[str] = []
            while True:
                if index == len(lines):
                    raise DockerfileError(start, "unterminated heredoc")
                line = lines[index]
                index += 1
                if (line.lstrip("\t") if chomps else line) == name:
                    break
                body.append(line + "\n")
            heredocs.append(Heredoc(name=name, text="".join(body), chomps=chomps, expands=expands))
        yield Line(number=start, end=index, text=text, heredocs=tuple(heredocs))

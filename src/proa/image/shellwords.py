# SPDX-License-Identifier: Apache-2.0
"""Words of Dockerfile instructions: split at blanks, unquoted, variables put in. Pure.

This is the Dockerfile's own small language, not a shell's: ``$VAR``, ``${VAR}``, quotes of both kinds, the
escape character, and variables with a modifier

    ${VAR:-word} ${VAR:+word} ${VAR:?word}      when it is unset or empty; without the colon: when unset
    ${VAR#pattern} ${VAR##pattern}              without the shortest, the longest beginning that fits
    ${VAR%pattern} ${VAR%%pattern}              without the shortest, the longest end that fits
    ${VAR/pattern/word} ${VAR//pattern/word}    with the first, with each match replaced

Source: Dockerfile reference, Environment replacement; ENV.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from proa.model.errors import InvalidParameter

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]|[@*#]")
MAX_DEPTH = 16  # of ${A:-${B:-…}}
EXPANDED_MAX = 1 << 20  # characters that variables may put in: ENV A=$A$A doubles each time
_PATTERN_MAX = 4096  # characters of a pattern and its value: the time is the product of their lengths


def split_words(text: str, escape: str = "\\") -> list[str]:
    """Split at blanks outside quotes. Quotes and escapes stay in the words, for ``expand``."""
    words: list[str] = []
    word = ""
    quote = ""
    position = 0
    while position < len(text):
        char = text[position]
        if char == escape and quote != "'" and position + 1 < len(text):
            word += text[position : position + 2]
            position += 2
            continue
        if char.isspace() and not quote:
            if word:
                words.append(word)
            word = ""
        else:
            if char in "'\"" and quote in ("", char):
                quote = "" if quote else char
            word += char
        position += 1
    return [*words, word] if word else words


def expand(word: str, env: Mapping[str, str], depth: int = 0, *, escape: str = "\\") -> str:
    """Unquote a word and put in the variables; one that is not set is empty.

    Raises InvalidParameter when a quote or a brace is not closed, or ``${VAR:?message}`` fails.
    """
    if depth > MAX_DEPTH:
        raise InvalidParameter("failed to process: variables are nested too deep")
    out: list[str] = []
    size = position = 0
    is_quoted = False
    while position < len(word):
        char = word[position]
        if char == "'" and not is_quoted:
            end = word.find("'", position + 1)
            if end < 0:
                raise InvalidParameter(
                    f'failed to process "{word}": unexpected end of statement while '
                    "looking for matching single-quote"
                )
            out.append(word[position + 1 : end])
            position = end + 1
        elif char == '"':
            is_quoted = not is_quoted
            position += 1
        elif char == escape and position + 1 < len(word):
            following = word[position + 1]
            # Between double quotes the escape is special before these only.
            kept = is_quoted and following not in ('"', "$", escape)
            out.append(char + following if kept else following)
            position += 2
        elif char == "$":
            value, position = _variable(word, position + 1, env, depth, escape)
            out.append(value)
            size += len(value)
            if size > EXPANDED_MAX:
                raise InvalidParameter(f"a value of more than {EXPANDED_MAX} characters")
        else:
            out.append(char)
            position += 1
    if is_quoted:
        raise InvalidParameter(
            f'failed to process "{word}": unexpected end of statement while looking for matching double-quote'
        )
    return "".join(out)


def expand_text(text: str, env: Mapping[str, str], *, escape: str = "\\") -> str:
    """Put variables into a text in which quotes mean nothing: a here-document. Raises InvalidParameter."""
    out: list[str] = []
    size = position = 0
    while position < len(text):
        char = text[position]
        if char == escape and text[position + 1 : position + 2] in ("$", escape):
            out.append(text[position + 1])
            position += 2
        elif char == "$":
            value, position = _variable(text, position + 1, env, 0, escape)
            out.append(value)
            size += len(value)
            if size > EXPANDED_MAX:
                raise InvalidParameter(f"a text of more than {EXPANDED_MAX} characters")
        else:
            out.append(char)
            position += 1
    return "".join(out)


def _variable(word: str, position: int, env: Mapping[str, str], depth: int, escape: str) -> tuple[str, int]:
    """Read what follows a ``$``; return its value and the position after it."""
    if word[position : position + 1] != "{":
        match = _NAME.match(word, position)
        return (env.get(match[0], ""), match.end()) if match else ("$", position)
    end = _closing_brace(word, position + 1, escape)
    inside = word[position + 1 : end]
    match = _NAME.match(inside)
    if match is None:
        raise InvalidParameter(f'failed to process "{word}": bad substitution')
    name, rest = match[0], inside[match.end() :]
    value = env.get(name)
    if not rest:
        return value or "", end + 1
    if rest[0] in "#%":
        return _trim(value or "", rest, lambda text: expand(text, env, depth + 1, escape=escape)), end + 1
    if rest[0] == "/":
        return _replace(value or "", rest, env, depth, escape), end + 1
    with_colon = rest.startswith(":")
    operator, argument = rest[with_colon : with_colon + 1], rest[with_colon + 1 :]
    is_set = value is not None and not (with_colon and not value)
    if operator == "-":
        if is_set and value is not None:
            return value, end + 1
        return expand(argument, env, depth + 1, escape=escape), end + 1
    if operator == "+":
        return expand(argument, env, depth + 1, escape=escape) if is_set else "", end + 1
    if operator == "?":
        if is_set and value is not None:
            return value, end + 1
        message = expand(argument, env, depth + 1, escape=escape) or "not allowed to be unset or empty"
        raise InvalidParameter(f'failed to process "{word}": {name}: {message}')
    raise InvalidParameter(f'failed to process "{word}": unsupported modifier ({rest[:2]}) in substitution')


def _trim(value: str, rest: str, expanded: Callable[[str], str]) -> str:
    """Take a beginning (``#``) or an end (``%``) away; doubled, the longest that fits."""
    operator = rest[0]
    longest = rest.startswith(operator * 2)
    pattern = _glob(expanded(rest[1 + longest :]), value)
    cuts = range(len(value) + 1)
    if operator == "#":
        for cut in reversed(cuts) if longest else cuts:
            if pattern.fullmatch(value, 0, cut):
                return value[cut:]
        return value
    for cut in cuts if longest else reversed(cuts):
        if pattern.fullmatch(value, cut):
            return value[:cut]
    return value


def _replace(value: str, rest: str, env: Mapping[str, str], depth: int, escape: str) -> str:
    every = rest.startswith("//")
    text = rest[1 + every :]
    cut = 0
    while cut < len(text) and text[cut] != "/":
        cut += 2 if text[cut] == escape else 1
    if cut >= len(text):
        pattern_text, word = text, ""
    else:
        pattern_text, word = text[:cut], text[cut + 1 :]
    pattern = _glob(expand(pattern_text.replace(escape + "/", "/"), env, depth + 1, escape=escape), value)
    replacement = expand(word, env, depth + 1, escape=escape)
    return _substitute(pattern, replacement, value, every=every)


def _substitute(pattern: re.Pattern[str], replacement: str, value: str, *, every: bool) -> str:
    """The longest match at the leftmost place, as a shell takes it; an empty one is none."""
    out: list[str] = []
    at = 0
    while at < len(value):
        match = pattern.match(value, at)
        if match is None or match.end() == at:
            out.append(value[at])
            at += 1
            continue
        out.append(replacement)
        at = match.end()
        if not every:
            break
    return "".join(out) + value[at:]


def _glob(pattern: str, value: str) -> re.Pattern[str]:
    """A shell's pattern: ``*`` and ``?``, everything else is itself. It matches in linear time: what lies
    between two stars is taken where it comes first and never tried again, only the last star gives back."""
    if len(pattern) > _PATTERN_MAX or len(value) > _PATTERN_MAX:
        raise InvalidParameter(
            f"a pattern in a substitution, and its value, may have {_PATTERN_MAX} characters at most"
        )
    first, *others = ["".join("." if c == "?" else re.escape(c) for c in part) for part in pattern.split("*")]
    text = first + "".join(f"(?>.*?{part})" for part in others[:-1])
    if others:
        text += f".*{others[-1]}"
    return re.compile(text, re.DOTALL)


def _closing_brace(word: str, position: int, escape: str) -> int:
    depth = 1
    while position < len(word):
        if word[position] == escape:
            position += 1
        elif word.startswith("${", position):
            depth += 1
        elif word[position] == "}":
            depth -= 1
            if not depth:
                return position
        position += 1
    raise InvalidParameter(f"failed to process \"{word}\": syntax error: missing '}}'")

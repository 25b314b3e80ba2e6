# SPDX-License-Identifier: Apache-2.0
"""Words of Dockerfile instructions: split at blanks, unquoted, variables put in. Pure.

This is the Dockerfile's own small language, not a shell's: ``$VAR``, ``${VAR}``, ``${VAR:-word}``,
``${VAR:+word}`` and their forms without the colon, single and double quotes, and the backslash.

Source: Dockerfile reference, Environment replacement; ENV.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from proa.model.errors import InvalidParameter

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]|[@*#]")
MAX_DEPTH = 16  # of ${A:-${B:-…}}


def split_words(text: str) -> list[str]:
    """Split at blanks outside quotes. Quotes and backslashes stay in the words, for ``expand``."""
    words: list[str] = []
    word = ""
    quote = ""
    position = 0
    while position < len(text):
        char = text[position]
        if char == "\\" and quote != "'" and position + 1 < len(text):
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


def expand(word: str, env: Mapping[str, str], depth: int = 0) -> str:
    """Unquote a word and put in the variables; one that is not set is empty.

    Raises InvalidParameter when a quote or a brace is not closed, or ``${VAR:?message}`` fails.
    """
    if depth > MAX_DEPTH:
        raise InvalidParameter("failed to process: variables are nested too deep")
    out: list[str] = []
    position = 0
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
        elif char == "\\" and position + 1 < len(word):
            following = word[position + 1]
            # Between double quotes the backslash is special before these only.
            out.append(char + following if is_quoted and following not in '"$\\' else following)
            position += 2
        elif char == "$":
            value, position = _variable(word, position + 1, env, depth)
            out.append(value)
        else:
            out.append(char)
            position += 1
    if is_quoted:
        raise InvalidParameter(
            f'failed to process "{word}": unexpected end of statement while looking for matching double-quote'
        )
    return "".join(out)


def _variable(word: str, position: int, env: Mapping[str, str], depth: int) -> tuple[str, int]:
    """Read what follows a ``$``; return its value and the position after it."""
    if word[position : position + 1] != "{":
        match = _NAME.match(word, position)
        return (env.get(match[0], ""), match.end()) if match else ("$", position)
    end = _closing_brace(word, position + 1)
    inside = word[position + 1 : end]
    match = _NAME.match(inside)
    if match is None:
        raise InvalidParameter(f'failed to process "{word}": bad substitution')
    name, rest = match[0], inside[match.end() :]
    if not rest:
        return env.get(name, ""), end + 1
    with_colon = rest.startswith(":")
    operator, argument = rest[with_colon : with_colon + 1], rest[with_colon + 1 :]
    value = env.get(name)
    is_set = value is not None and not (with_colon and not value)
    if operator == "-":
        return value if is_set and value is not None else expand(argument, env, depth + 1), end + 1
    if operator == "+":
        return expand(argument, env, depth + 1) if is_set else "", end + 1
    if operator == "?":
        if is_set and value is not None:
            return value, end + 1
        message = expand(argument, env, depth + 1) or "not set"
        raise InvalidParameter(f'failed to process "{word}": {name}: {message}')
    raise InvalidParameter(f'failed to process "{word}": unsupported modifier ({rest[:2]}) in substitution')


def _closing_brace(word: str, position: int) -> int:
    depth = 1
    while position < len(word):
        if word[position] == "\\":
            position += 1
        elif word.startswith("${", position):
            depth += 1
        elif word[position] == "}":
            depth -= 1
            if not depth:
                return position
        position += 1
    raise InvalidParameter(f"failed to process \"{word}\": syntax error: missing '}}'")

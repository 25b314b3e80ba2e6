# SPDX-License-Identifier: Apache-2.0
"""Build arguments and environment: which variables an instruction sees. Pure.

Source: Dockerfile reference, ARG: Scope, Using ARG variables, Predefined ARGs, Automatic platform ARGs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proa.build.errors import DockerfileError
from proa.build.parser import Instruction
from proa.image.shellwords import expand, split_words
from proa.model.errors import InvalidParameter

PREDEFINED = frozenset(
    name
    for upper in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (upper, upper.lower())
)
"""Arguments that need no ARG: seen by RUN, never part of the cache's key or of the history."""


class GlobalScope:
    """What is seen before the first FROM: the platform's arguments, and the ARGs there.

    :param given: the build arguments of the request; None takes a name from the environment of nobody.
    """

    def __init__(self, given: Mapping[str, str | None], platform: Mapping[str, str]) -> None:
        self.given = dict(given)
        self._platform = dict(platform)
        self._values: dict[str, str] = {}
        self._declared: set[str] = set()
        self.used: set[str] = set()

    @property
    def variables(self) -> dict[str, str]:
        return {**self._platform, **self._values}

    def declare(self, instruction: Instruction, escape: str) -> None:
        """Take an ARG before the first FROM. Raises DockerfileError."""
        for name, default in read_arguments(instruction, self.variables, escape):
            self._declared.add(name)
            value = self.value_of(name, default)
            if value is not None:
                self._values[name] = value

    def value_of(self, name: str, default: str | None) -> str | None:
        """Return what an ARG gets: the request's value, its default, None when it stays unset."""
        if name in self.given:
            self.used.add(name)
            return self.given[name] if self.given[name] is not None else default
        return default

    def inherited(self, name: str) -> str | None:
        """Return the value a stage's ``ARG name`` takes over from here."""
        return self.variables.get(name)

    def unused(self) -> list[str]:
        """Names of the request that no ARG asked for."""
        return sorted(name for name in self.given if name not in self.used and name not in PREDEFINED)


class StageScope:
    """The arguments of one stage, in the order of their ARGs."""

    def __init__(self, scope: GlobalScope) -> None:
        self._global = scope
        self._values: dict[str, str] = {}

    def copy(self) -> StageScope:
        """Return what a stage that is built on this one begins with."""
        other = StageScope(self._global)
        other._values = dict(self._values)
        return other

    def declare(self, instruction: Instruction, env: Sequence[str] | None, escape: str) -> None:
        """Take an ARG. Raises DockerfileError."""
        for name, default in read_arguments(instruction, self.variables(env), escape):
            if default is None:
                default = self._global.inherited(name)
            value = self._global.value_of(name, default)
            if value is not None:
                self._values[name] = value
            else:
                self._values.pop(name, None)

    def variables(self, env: Sequence[str] | None) -> dict[str, str]:
        """Return what is put in for ``$NAME``: ENV before ARG."""
        return {**self._values, **_pairs(env)}

    def arguments(self, env: Sequence[str] | None) -> dict[str, str]:
        """Return the arguments a RUN gets beside ENV, and that its key depends on."""
        known = _pairs(env)
        return {
            name: value
            for name, value in self._values.items()
            if name not in known and name not in PREDEFINED
        }

    def hidden_arguments(self, env: Sequence[str] | None) -> dict[str, str]:
        """Return the predefined arguments that the request gives: a RUN gets them, unseen by the key."""
        known = _pairs(env)
        given = {name: value for name, value in self._global.given.items() if value is not None}
        return {name: given[name] for name in sorted(PREDEFINED & given.keys()) if name not in known}


def read_arguments(
    instruction: Instruction, variables: Mapping[str, str], escape: str
) -> list[tuple[str, str | None]]:
    """Return name and default (None: it has none) of each argument. Raises DockerfileError."""
    found: list[tuple[str, str | None]] = []
    seen = dict(variables)
    try:
        for word in split_words(instruction.rest, escape):
            key, equals, value = word.partition("=")
            key = expand(key, seen, escape=escape)
            if not key:
                raise DockerfileError(instruction.line, "ARG names can not be blank")
            default = expand(value, seen, escape=escape) if equals else None
            found.append((key, default))
            if default is not None:
                seen[key] = default
    except DockerfileError:
        raise
    except InvalidParameter as error:
        raise DockerfileError(instruction.line, error.message) from error
    return found


def _pairs(env: Sequence[str] | None) -> dict[str, str]:
    pairs = (entry.partition("=") for entry in env or ())
    return {key: value for key, _, value in pairs}

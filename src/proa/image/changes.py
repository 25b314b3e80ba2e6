# SPDX-License-Identifier: Apache-2.0
"""Dockerfile instructions that change an image's configuration: ``import --change``, ``commit --change``.

Each takes a configuration and gives a new one. What runs something or moves files is not here.

Source: Dockerfile reference; Engine API, ImageCreate, parameter changes.
"""

from __future__ import annotations

import posixpath
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from proa.image.shellwords import expand, split_words
from proa.model.config import ContainerConfig, Empty, HealthConfig
from proa.model.errors import InvalidParameter

DEFAULT_SHELL = ("/bin/sh", "-c")

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNIT_NS = {"ns": 1, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "h": 3600e9}
_MIN_DURATION_NS = 1_000_000  # Docker refuses health check times below a millisecond
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?")
_OTHER_INSTRUCTIONS = frozenset("ADD ARG COPY FROM MAINTAINER RUN SHELL".split())


@dataclass(slots=True)
class _Draft:
    """The configuration while a list of instructions is applied."""

    config: ContainerConfig
    cmd_is_set: bool = False
    arguments: Mapping[str, str] = field(default_factory=dict)  # seen where no ENV is
    escape: str = "\\"

    @property
    def env(self) -> dict[str, str]:
        pairs = (entry.partition("=") for entry in self.config.env or [])
        return {**self.arguments, **{key: value for key, _, value in pairs}}

    def set(self, **fields: object) -> None:
        self.config = msgspec.structs.replace(self.config, **fields)

    def expand(self, word: str) -> str:
        return expand(word, self.env, escape=self.escape)

    def split(self, text: str) -> list[str]:
        return split_words(text, self.escape)


def apply_changes(config: ContainerConfig, changes: Sequence[str]) -> ContainerConfig:
    """Return the configuration after these instructions, each a text such as ``CMD ["sh"]``.

    A text may have several lines, comments and continued lines.

    :raises InvalidParameter: an instruction is unknown, not one that changes a configuration, or malformed.
    """
    draft = _Draft(config)
    lines = re.sub(r"\\[ \t]*\n", "", "\n".join(changes)).splitlines()
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        word, _, rest = line.replace("\t", " ", 1).partition(" ")
        name = word.upper()
        if name in _OTHER_INSTRUCTIONS:
            raise InvalidParameter(f"{name} is not a valid change command")
        if name not in _INSTRUCTIONS:
            raise InvalidParameter(f"dockerfile parse error on line {number}: unknown instruction: {word}")
        rest = rest.strip()
        if not rest:
            raise InvalidParameter(f"{name} requires at least one argument")
        _INSTRUCTIONS[name](draft, rest)
    return draft.config


def apply_instruction(
    config: ContainerConfig,
    name: str,
    rest: str,
    *,
    cmd_is_set: bool,
    arguments: Mapping[str, str],
    escape: str = "\\",
) -> ContainerConfig:
    """Return the configuration after one instruction of a Dockerfile that changes nothing else.

    :param name: in capitals, one of ``CONFIG_INSTRUCTIONS``; ``rest`` is what follows it, flags included.
    :param cmd_is_set: a CMD came before in the same stage: ENTRYPOINT leaves it alone.
    :param arguments: build arguments, seen where no ENV is.
    :raises InvalidParameter: it is malformed.
    """
    draft = _Draft(config, cmd_is_set=cmd_is_set, arguments=arguments, escape=escape)
    _INSTRUCTIONS[name](draft, rest)
    return draft.config


def _shell(draft: _Draft, rest: str) -> None:
    draft.set(shell=_json_strings(rest))


def _cmd(draft: _Draft, rest: str) -> None:
    draft.set(cmd=_command(draft, rest))
    draft.cmd_is_set = True


def _entrypoint(draft: _Draft, rest: str) -> None:
    draft.set(entrypoint=_command(draft, rest))
    if not draft.cmd_is_set:  # an inherited command was meant for the inherited entrypoint
        draft.set(cmd=None)


def _env(draft: _Draft, rest: str) -> None:
    env = list(draft.config.env or [])
    for key, value in _pairs(draft, "ENV", rest):
        env = [entry for entry in env if entry.partition("=")[0] != key]
        env.append(f"{key}={value}")
    draft.set(env=env)


def _label(draft: _Draft, rest: str) -> None:
    draft.set(labels={**(draft.config.labels or {}), **dict(_pairs(draft, "LABEL", rest))})


def _expose(draft: _Draft, rest: str) -> None:
    ports = dict(draft.config.exposed_ports or {})
    for word in draft.split(rest):
        for text in draft.expand(word).split():
            match = _PORT.fullmatch(text.rpartition(":")[2].lower())
            if match is None:
                raise InvalidParameter(f"invalid containerPort: {text}")
            first, last = int(match[1]), int(match[2] or match[1])
            if not 0 < first <= last <= 65_535:
                raise InvalidParameter(f"invalid containerPort: {text}")
            ports |= {f"{port}/{match[3] or 'tcp'}": Empty() for port in range(first, last + 1)}
    draft.set(exposed_ports=ports)


def _user(draft: _Draft, rest: str) -> None:
    draft.set(user=draft.expand(rest))


def _workdir(draft: _Draft, rest: str) -> None:
    path = posixpath.normpath(posixpath.join("/", draft.config.working_dir, draft.expand(rest)))
    draft.set(working_dir=path.replace("//", "/"))


def _volume(draft: _Draft, rest: str) -> None:
    words = _json_strings(rest)
    paths = [draft.expand(word) for word in (draft.split(rest) if words is None else words)]
    if not paths or not all(path.strip() for path in paths):
        raise InvalidParameter("VOLUME specified can not be an empty string")
    draft.set(volumes={**(draft.config.volumes or {}), **dict.fromkeys(paths, Empty())})


def _stopsignal(draft: _Draft, rest: str) -> None:
    text = draft.expand(rest)
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    is_number = text.isascii() and text.isdecimal() and 0 < int(text) <= signal.NSIG - 1
    is_realtime = re.fullmatch(r"SIGRTM(IN(\+\d{1,2})?|AX(-\d{1,2})?)", name) is not None
    if not (is_number or is_realtime or name in signal.Signals.__members__):
        raise InvalidParameter(f"Invalid signal: {text}")
    draft.set(stop_signal=text)


def _onbuild(draft: _Draft, rest: str) -> None:
    trigger = rest.partition(" ")[0].upper()
    if trigger == "ONBUILD":
        raise InvalidParameter("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("FROM", "MAINTAINER"):
        raise InvalidParameter(f"{trigger} isn't allowed as an ONBUILD trigger")
    draft.set(on_build=[*(draft.config.on_build or []), rest])


def _healthcheck(draft: _Draft, rest: str) -> None:
    numbers: dict[str, int] = {}
    while rest.startswith("--"):
        flag, _, rest = rest.partition(" ")
        rest = rest.lstrip()
        name, _, value = flag[2:].partition("=")
        field = name.replace("-", "_")
        if field not in ("interval", "timeout", "start_period", "start_interval", "retries"):
            raise InvalidParameter(f"unknown flag: {name}")
        numbers[field] = _count(value) if field == "retries" else _duration_ns(name, value)
    kind, _, command = rest.partition(" ")
    if kind.upper() == "NONE":
        if command.strip():
            raise InvalidParameter("HEALTHCHECK NONE takes no arguments")
        test = ["NONE"]
    elif kind.upper() == "CMD":
        if not command.strip():
            raise InvalidParameter("Missing command after HEALTHCHECK CMD")
        words = _json_strings(command.strip())
        test = ["CMD-SHELL", command.strip()] if words is None else ["CMD", *words]
    else:
        raise InvalidParameter(f'Unknown type "{kind.upper()}" in HEALTHCHECK (try CMD)')
    draft.set(healthcheck=HealthConfig(test=test, **numbers))


_INSTRUCTIONS: dict[str, Callable[[_Draft, str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "SHELL": _shell,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}

CONFIG_INSTRUCTIONS = frozenset(_INSTRUCTIONS)
"""Instructions that change nothing but the configuration."""


def _command(draft: _Draft, rest: str) -> list[str]:
    """JSON form as it is, anything else as a text for the shell."""
    words = _json_strings(rest)
    return [*(draft.config.shell or DEFAULT_SHELL), rest] if words is None else words


def _json_strings(text: str) -> list[str] | None:
    if not text.startswith("["):
        return None
    try:
        return msgspec.json.decode(text, type=list[str])
    except (msgspec.DecodeError, RecursionError):
        return None  # Docker too takes malformed JSON for a shell's text


def _pairs(draft: _Draft, name: str, rest: str) -> list[tuple[str, str]]:
    """Read ``KEY=VALUE …``, or the old form ``KEY all the rest``."""
    words = draft.split(rest)
    if "=" not in words[0]:
        key, _, value = rest.partition(" ")
        if not value.strip():
            raise InvalidParameter(f"{name} must have two arguments")
        return [(draft.expand(key), draft.expand(value.strip()))]
    pairs: list[tuple[str, str]] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise InvalidParameter(
                f'Syntax error - can\'t find = in "{word}". Must be of the form: name=value'
            )
        key = draft.expand(key)
        if not key:
            raise InvalidParameter(f"{name} names can not be blank")
        pairs.append((key, draft.expand(value)))
    return pairs


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InvalidParameter(f'invalid number of retries: "{text}"')
    return int(text)


def _duration_ns(name: str, text: str) -> int:
    pieces = _DURATION.findall(text)
    if text == "0":
        return 0
    if not pieces or "".join(number + unit for number, unit in pieces) != text:
        raise InvalidParameter(f'time: invalid duration "{text}"')
    total = int(sum(float(number) * _UNIT_NS[unit] for number, unit in pieces))
    if 0 < total < _MIN_DURATION_NS:
        raise InvalidParameter(f'Interval "{name}" cannot be less than 1ms')
    return total

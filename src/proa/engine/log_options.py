# SPDX-License-Identifier: Apache-2.0
"""What --log-driver and --log-opt ask for. Pure; sentences are the Docker Engine's.

Logs are bounded unless a user says otherwise (max-size=-1): an unbounded log has filled many a disk.

Source: Docker documentation, "JSON File logging driver", "Local file logging driver".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from proa.engine.container import Container
from proa.model.config import LogConfig
from proa.model.errors import InvalidParameter
from proa.shipping import drivers, syslog
from proa.shipping.lines import Source

MIB = 1 << 20
_FIELD = re.compile(r"\{\{\s*\.(\w+)\s*\}\}")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_NETWORK_DRIVERS = ("awslogs", "etwlogs", "fluentd", "gcplogs", "gelf", "splunk")
_ROTATION = ("max-size", "max-file", "compress")
_ATTRIBUTES = ("labels", "labels-regex", "env", "env-regex", "tag")
# Of shipped logs the file is what Docker calls a cache: what docker logs reads.
_CACHE = {"max-size": "cache-max-size", "max-file": "cache-max-file", "compress": "cache-compress"}
_OPTIONS = {
    "json-file": frozenset({*_ROTATION, *_ATTRIBUTES}),
    "journald": frozenset({*_ATTRIBUTES, *_CACHE.values(), "cache-disabled"}),
    "syslog": frozenset({*_ATTRIBUTES, *_CACHE.values(), "cache-disabled", *syslog.OPTIONS}),
    "local": frozenset(_ROTATION),
    "none": frozenset[str](),
}
_COMMON = frozenset({"mode", "max-buffer-size"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPolicy:
    """How much of a log is kept. ``max_bytes`` of one file; 0: one file without a bound."""

    max_bytes: int
    max_files: int
    compress: bool


_DEFAULTS = {
    "json-file": LogPolicy(max_bytes=10 * MIB, max_files=3, compress=False),
    **dict.fromkeys(("local", *drivers.NAMES), LogPolicy(max_bytes=20 * MIB, max_files=5, compress=True)),
    "none": LogPolicy(max_bytes=0, max_files=1, compress=False),
}


def parse_log_config(config: LogConfig) -> LogPolicy:
    """Return the bound of a log. Raises InvalidParameter for drivers and options that there are not."""
    driver = config.type or "json-file"
    if driver not in _OPTIONS:
        hint = ": proa sends logs to no network" if driver in _NETWORK_DRIVERS else ""
        raise InvalidParameter(f"logger: no log driver named '{driver}' is registered{hint}")
    options = config.config or {}
    for name in options:
        if name not in _OPTIONS[driver] and name not in _COMMON:
            raise InvalidParameter(f"unknown log opt '{name}' for {driver} log driver")
    _check_mode(driver, options)
    _check_patterns(options)
    if driver in drivers.NAMES:
        options = {name: options[cache] for name, cache in _CACHE.items() if cache in options}
    default = _DEFAULTS[driver]
    max_bytes = _parse_size(options["max-size"]) if "max-size" in options else default.max_bytes
    max_files = _parse_count(options["max-file"]) if "max-file" in options else default.max_files
    compress = _parse_bool(options["compress"]) if "compress" in options else default.compress
    if "compress" in options and compress and (max_files < 2 or not max_bytes):
        raise InvalidParameter("compress cannot be true when max-file is less than 2 or max-size is not set")
    return LogPolicy(max_bytes=max_bytes, max_files=max_files, compress=compress and max_files > 1)


def merge_log_config(asked: LogConfig, default: LogConfig) -> LogConfig:
    """Return the driver and options of a container: the daemon's, as far as it names no others."""
    if asked.type not in ("", default.type):
        return asked
    return LogConfig(type=default.type, config={**(default.config or {}), **(asked.config or {})} or None)


def check_log_config(config: LogConfig) -> None:
    """Raise InvalidParameter for what a container cannot be made with."""
    parse_log_config(config)
    if config.type in drivers.NAMES:
        drivers.check(config.type, config.config or {})


def ships(container: Container) -> bool:
    """Tell whether the container's log is sent elsewhere."""
    return container.host_config.log_config.type in drivers.NAMES


def log_source(container: Container) -> Source:
    """Return how the container is called where its log is sent."""
    extra = log_attributes(container)
    return Source(
        container_id=container.id,
        container_name=container.name,
        image_name=container.image_ref,
        tag=extra.pop("tag", "") or container.id[:12],
        extra=extra,
    )


def log_attributes(container: Container) -> dict[str, str]:
    """Return what docker logs --details shows of each line: the labels, variables and tag asked for."""
    options = container.host_config.log_config.config or {}
    env = dict(entry.partition("=")[::2] for entry in container.config.env or ())
    found = {
        **_chosen(container.config.labels or {}, options, "labels"),
        **_chosen(env, options, "env"),
    }
    if "tag" in options:
        values = {
            "ID": container.id[:12],
            "FullID": container.id,
            "Name": container.name,
            "ImageName": container.image_ref,
            "ImageID": container.image_id.removeprefix("sha256:")[:12],
            "ImageFullID": container.image_id,
            "DaemonName": "proa",
        }
        found["tag"] = _FIELD.sub(lambda match: values.get(match[1], match[0]), options["tag"])
    return found


def _chosen(given: Mapping[str, str], options: Mapping[str, str], kind: str) -> dict[str, str]:
    names = options.get(kind, "").split(",")
    pattern = options.get(f"{kind}-regex")
    return {
        key: value
        for key, value in given.items()
        if key in names or (pattern is not None and re.search(pattern, key))
    }


def _check_patterns(options: Mapping[str, str]) -> None:
    for name in ("labels-regex", "env-regex"):
        try:
            re.compile(options.get(name, ""))
        except re.error as error:
            raise InvalidParameter(f"invalid value for {name}: {error}") from error


def _check_mode(driver: str, options: Mapping[str, str]) -> None:
    mode = options.get("mode", "blocking")
    if mode not in ("blocking", "non-blocking"):
        raise InvalidParameter(f"logger: logging mode not supported: {mode}")
    if _parse_bool(options.get("cache-disabled") or "false"):
        raise InvalidParameter(
            "logger: cache-disabled is not supported: what is shipped is read from the file"
        )
    if driver in drivers.NAMES:
        return  # the file is the buffer, and never blocks
    if mode == "non-blocking":
        raise InvalidParameter("logger: mode non-blocking is not supported: files are always written in time")
    if "max-buffer-size" in options:
        raise InvalidParameter("logger: max-buffer-size option is only supported with 'mode=non-blocking'")


def _parse_size(text: str) -> int:
    """Return bytes; 0 is no bound, written -1."""
    if text == "-1":
        return 0
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidParameter(f"invalid size: '{text}'")
    size = int(float(match[1]) * _UNITS[match[2].lower()])
    if size <= 0:
        raise InvalidParameter("max-size must be a positive number")
    return size


def _parse_count(text: str) -> int:
    if re.fullmatch(r"[+-]?\d{1,6}", text, re.ASCII) is None:
        raise InvalidParameter(f"invalid value for max-file: {text!r}")
    if int(text) < 1:
        raise InvalidParameter("max-file cannot be less than 1")
    return int(text)


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("1", "t", "true", "0", "f", "false"):
        raise InvalidParameter(f"invalid value for compress: {text!r}")
    return text.lower() in ("1", "t", "true")

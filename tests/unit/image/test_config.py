# SPDX-License-Identifier: Apache-2.0
"""Image configurations and platforms."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.image.config import chain_ids, created_ns, encode_config, parse_config
from proa.image.platform import Platform, host_platform, parse_platform
from proa.model.config import Empty, HealthConfig
from proa.model.errors import InvalidParameter
from proa.model.ids import Digest
from tests.support.images import Json, make_config, make_layer, sha256

FULL: Json = {
    "Cmd": ["a"],
    "Entrypoint": None,
    "Hostname": None,
    "Env": ["A=1"],
    "ExposedPorts": {"80/tcp": {}, "81/tcp": None},
    "Volumes": {"/v": {}},
    "Labels": {"k": "v"},
    "Healthcheck": {"Test": ["CMD", "x"], "Interval": 5},
    "User": "me",
    "WorkingDir": "/w",
    "StopSignal": "SIGQUIT",
    "OnBuild": ["RUN x"],
    "Unknown": {"key": 1},
}


def test_a_configuration_reads_back_as_written() -> None:
    config = parse_config(make_config([make_layer("x")], FULL, author="me", comment="c", variant="v2"))
    assert config.config.exposed_ports == {"80/tcp": Empty(), "81/tcp": Empty()}
    assert config.config.healthcheck == HealthConfig(test=["CMD", "x"], interval=5)
    assert config.diff_ids == (sha256(make_layer("x")),)
    assert parse_config(encode_config(config)) == config
    assert encode_config(config) == encode_config(config)


def test_null_is_absent() -> None:
    document = {**json.loads(make_config([])), "config": None, "history": None, "author": None}
    config = parse_config(json.dumps(document).encode())
    assert (config.author, config.history) == ("", ())


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_any_value_for_any_key_is_taken_or_refused(value: object) -> None:
    document = json.loads(make_config([]))
    for key in document:
        with contextlib.suppress(InvalidParameter):
            parse_config(json.dumps({**document, key: value}).encode())


def test_chain_ids() -> None:
    a, b = Digest("sha256:" + "a" * 64), Digest("sha256:" + "b" * 64)
    assert chain_ids([]) == []
    assert chain_ids([a, b]) == [a, sha256(f"{a} {b}".encode())]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0),
        ("rubbish", 0),
        ("0001-01-01T00:00:00Z", -62_135_596_800_000_000_000),
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("1970-01-01T01:00:01.5+01:00", 1_500_000_000),
        ("1970-01-01T00:00:01.123456789Z", 1_123_456_000),
    ],
)
def test_creation_times(text: str, value: int) -> None:
    assert created_ns(text) == value


def test_platforms() -> None:
    assert parse_platform("linux/arm64/v8") == Platform(architecture="arm64", variant="v8")
    assert parse_platform("linux/x86_64").architecture == "amd64"
    assert parse_platform("arm64").architecture == "arm64"
    assert parse_platform("") == parse_platform("linux") == host_platform()
    for bad in ("a/b/c/d", "linux/", "lin ux/x"):
        with pytest.raises(InvalidParameter):
            parse_platform(bad)
    arm = Platform(architecture="arm", variant="v7")
    assert arm.rank(Platform(architecture="arm")) == 2
    assert arm.rank(Platform(architecture="arm", variant="v6")) == 1
    assert arm.rank(Platform(architecture="arm", variant="v8")) == 0
    assert arm.rank(Platform(architecture="arm64")) == 0

# SPDX-License-Identifier: Apache-2.0
"""Times, filters, frames and JSON as the Engine API writes them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.model.config import ContainerConfig, HostConfig, NetworkingConfig
from proa.wire import codec
from proa.wire.containers import ContainerCreateRequest, ContainerInspect
from proa.wire.filters import format_filters, parse_filters
from proa.wire.routes import CONTAINER_START, IMAGE_INSPECT
from proa.wire.stdio import FrameReader, frame
from proa.wire.times import ZERO_TIME, format_time, format_time_fixed, parse_time

# --- times ---


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, ZERO_TIME),
        (1_700_000_000_000_000_000, "2023-11-14T22:13:20Z"),
        (1_700_000_000_120_000_000, "2023-11-14T22:13:20.12Z"),
        (1_700_000_000_000_000_001, "2023-11-14T22:13:20.000000001Z"),
    ],
)
def test_times(time_ns: int, text: str) -> None:
    assert format_time(time_ns) == text
    assert parse_time(text) == time_ns


def test_fixed_times_align() -> None:
    assert format_time_fixed(1_700_000_000_120_000_000) == "2023-11-14T22:13:20.120000000Z"


@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        ("", 0),
        ("5", 5_000_000_000),
        ("1136073600.000000001", 1136073600_000000001),
        ("-1.5", -1_500_000_000),
        ("2023-11-14T22:13:20+01:00", 1_699_996_400_000_000_000),
        ("2023-11-14T22:13:20.5", 1_700_000_000_500_000_000),
        ("2023-11-14", 1_699_920_000_000_000_000),
        ("2023-11-14T22:13Z", 1_699_999_980_000_000_000),
    ],
)
def test_times_of_queries(text: str, time_ns: int) -> None:
    assert parse_time(text) == time_ns


@pytest.mark.parametrize("text", ["yesterday", "2023-13-01T00:00:00Z", "1.2.3", "99999999999999"])
def test_bad_times(text: str) -> None:
    with pytest.raises(ValueError, match="invalid time"):
        parse_time(text)


@given(st.integers(1, 4_000_000_000_000_000_000))
def test_times_survive(time_ns: int) -> None:
    assert parse_time(format_time(time_ns)) == time_ns
    assert parse_time(format_time_fixed(time_ns)) == time_ns


@given(st.text())
def test_any_text_is_a_time_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_time(text)


# --- filters ---


def test_filters() -> None:
    assert parse_filters("") == {}
    assert parse_filters('{"label":["a=b","c"],"status":[]}') == {"label": ("a=b", "c")}
    assert parse_filters('{"label":{"a=b":true,"c":false}}') == {"label": ("a=b",)}
    assert parse_filters(format_filters({"name": ["x"]})) == {"name": ("x",)}
    assert format_filters({"name": []}) == ""
    for bad in ("[]", "{", '{"a": 1}', '{"a": [1]}'):
        with pytest.raises(ValueError, match="invalid filter"):
            parse_filters(bad)


# --- frames ---


@given(st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=50)), max_size=10), st.integers(1, 30))
def test_frames_survive_any_cut(frames: list[tuple[int, bytes]], size: int) -> None:
    data = b"".join(frame(stream, payload) for stream, payload in frames)
    reader = FrameReader()
    found = [one for start in range(0, len(data), size) for one in reader.feed(data[start : start + size])]
    assert found == frames
    assert not reader.pending


@pytest.mark.parametrize(
    "data", [b"total 12\r\n", b"\x01\x00\x00\x01\x00\x00\x00\x01x", b"\x01\0\0\0\xff\xff\xff\xff"]
)
def test_what_is_not_frames(data: bytes) -> None:
    with pytest.raises(ValueError, match="multiplexed"):
        list(FrameReader().feed(data))


# --- JSON ---


def test_null_is_absent_and_case_is_ignored() -> None:
    body = b"""{
        "image": "a", "Hostname": null, "Cmd": "sh", "Volumes": {"/x": null}, "Unknown": [1],
        "hostconfig": {"Memory": 5, "RestartPolicy": {"name": "always"}, "LogConfig": null,
                       "PortBindings": {"1/tcp": null},
                       "Ulimits": [{"Name": "nofile", "soft": 1, "HARD": 2}]},
        "NetworkingConfig": {"EndpointsConfig": {"a": null}}}"""
    request = codec.decode(body, ContainerCreateRequest)
    assert (request.image, request.hostname, request.cmd) == ("a", "", "sh")
    assert list(request.volumes or ()) == ["/x"]
    assert request.host_config is not None
    assert (request.host_config.memory, request.host_config.restart_policy.name) == (5, "always")
    assert request.host_config.port_bindings == {"1/tcp": None}
    assert request.host_config.ulimits is not None
    assert request.host_config.ulimits[0].hard == 2
    assert request.networking_config == NetworkingConfig(endpoints_config={"a": None})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "truncated"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "Expected object, got array"),
        (b'{"Env": "A=1"}', "Expected array \\| null, got str - at Env"),
        (b'{"HostConfig": {"Ulimits": [{"Name": 5}]}}', "at HostConfig.Ulimits"),
        (b'{"Labels": {"a": 1}}', "at Labels"),
        (b'{"Tty": 1}', "Expected bool, got int - at Tty"),
        (b'{"Image": "\xff"}', "utf-8"),
    ],
)
def test_bad_json(body: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codec.decode(body, ContainerCreateRequest)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["HostConfig", "Env", "Labels", "Volumes", "Cmd", "Memory", "x"]), inner
            )
        ),
    )
)
def test_any_json_is_a_request_or_a_value_error(value: object) -> None:
    with contextlib.suppress(ValueError):
        codec.decode(codec.encode(value), ContainerCreateRequest)


def test_create_request_comes_apart_again() -> None:
    config, host = ContainerConfig(image="a", env=["B=1"]), HostConfig(memory=5)
    request = ContainerCreateRequest.of(config, host, NetworkingConfig())
    again = codec.decode(codec.encode(request), ContainerCreateRequest)
    assert again.config() == config
    assert again.host_config == host


def test_messages_survive() -> None:
    shown = ContainerInspect(id="x", name="/y")
    assert codec.decode(codec.encode(shown), ContainerInspect) == shown


# --- routes ---


def test_urls_are_quoted() -> None:
    assert CONTAINER_START.url(id="a/b c") == "/containers/a%2Fb%20c/start"
    assert IMAGE_INSPECT.url(name="h:5000/a/b:1") == "/images/h:5000/a/b:1/json"

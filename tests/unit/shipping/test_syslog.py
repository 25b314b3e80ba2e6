# SPDX-License-Identifier: Apache-2.0
"""Syslog's options and messages."""

from __future__ import annotations

import os
import re
import time

import pytest

from proa.model.errors import InvalidParameter
from proa.shipping.lines import Line, Source
from proa.shipping.syslog import Settings, parse_settings, render

SOURCE = Source(container_id="f" * 64, container_name="web", image_name="busybox", tag="web/1")
AT_NS = 1_795_000_000_123_456_789


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", Settings()),
        ("udp://192.0.2.1", Settings(scheme="udp", host="192.0.2.1", port=514)),
        ("tcp://log.example:1514", Settings(scheme="tcp", host="log.example", port=1514)),
        ("tcp+tls://[2001:db8::1]:6514", Settings(scheme="tcp+tls", host="2001:db8::1", port=6514)),
        ("unix:///dev/log", Settings(scheme="unix", path="/dev/log")),
        ("unixgram:///dev/log", Settings(scheme="unixgram", path="/dev/log")),
    ],
)
def test_addresses(address: str, expected: Settings) -> None:
    assert parse_settings({"syslog-address": address}) == expected


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"syslog-address": "corge://h"}, "unsupported scheme: 'corge'"),
        ({"syslog-address": "tcp://"}, "it has no host"),
        ({"syslog-address": "tcp://h:99999"}, "invalid syslog-address"),
        ({"syslog-address": "unix:"}, "it has no path"),
        ({"syslog-facility": "royal"}, "invalid syslog facility: royal"),
        ({"syslog-facility": "24"}, "invalid syslog facility: 24"),
        ({"syslog-format": "json"}, "Invalid syslog format: json"),
        ({"syslog-tls-cert": "/c"}, "must be given together"),
    ],
)
def test_what_makes_no_sense(options: dict[str, str], sentence: str) -> None:
    with pytest.raises(InvalidParameter, match=re.escape(sentence)):
        parse_settings(options)


@pytest.mark.parametrize(
    ("format", "facility", "is_error", "expected"),
    [
        ("", "", False, "<30>Nov 18 11:06:40 web/1[7]: hi"),
        ("", "local7", True, "<187>Nov 18 11:06:40 web/1[7]: hi"),
        ("rfc3164", "0", False, "<6>Nov 18 11:06:40 host web/1[7]: hi"),
        ("rfc5424", "user", False, "<14>1 2026-11-18T11:06:40Z host web/1 7 web/1 - hi"),
        ("rfc5424micro", "", True, "<27>1 2026-11-18T11:06:40.123456Z host web/1 7 web/1 - hi"),
    ],
)
def test_messages(format: str, facility: str, is_error: bool, expected: str) -> None:
    settings = parse_settings({"syslog-format": format, "syslog-facility": facility})
    line = Line(at_ns=AT_NS, text=b"hi", is_error=is_error)
    assert render(line, SOURCE, settings, hostname="host", pid=7).decode() == expected


def test_the_zone_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-5:30")
    time.tzset()
    settings = parse_settings({"syslog-format": "rfc5424"})
    message = render(Line(at_ns=AT_NS, text=b""), SOURCE, settings, hostname="host", pid=os.getpid())
    assert b" 2026-11-18T16:36:40+05:30 " in message

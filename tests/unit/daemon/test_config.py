# SPDX-License-Identifier: Apache-2.0
"""The daemon's command line: registries, logs."""

from __future__ import annotations

import pytest

from proa.daemon.config import parse_config


def test_registries() -> None:
    config = parse_config(
        [
            *("--registry-mirror", "https://mirror.example/path"),
            *("--insecure-registry", "Lab.example:5000"),
            *("--insecure-registry", "10.0.0.0/8"),
            *("--insecure-registry", "http://old.example/"),
        ]
    )
    assert config.registries.mirrors == ("https://mirror.example/path/",)
    assert config.registries.insecure == ("lab.example:5000", "10.0.0.0/8", "old.example")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--registry-mirror", "mirror.example"),
        ("--registry-mirror", "ftp://mirror.example"),
        ("--registry-mirror", "https://user@mirror.example"),
        ("--registry-mirror", "https://mirror.example/?a=b"),
        ("--insecure-registry", ""),
        ("--insecure-registry", "host/path"),
        ("--insecure-registry", "10.0.0.0/99"),
        ("--insecure-registry", "host:99999"),
        ("--userns-pool", "0:65536"),
        ("--userns-pool", "100000:5"),
        ("--userns-pool", "4294960000:65536"),
    ],
)
def test_what_makes_no_sense(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config([option, value])
    assert "invalid" in capsys.readouterr().err


def test_logs() -> None:
    assert parse_config([]).default_log.type == "json-file"
    config = parse_config(
        ["--log-driver", "syslog", "--log-opt", "syslog-address=udp://h", "--log-opt", "tag=x"]
    )
    assert config.default_log.type == "syslog"
    assert config.default_log.config == {"syslog-address": "udp://h", "tag": "x"}


def test_logs_that_make_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(["--log-driver", "syslog", "--log-opt", "syslog-address=ftp://h"])
    assert "unsupported scheme: 'ftp'" in capsys.readouterr().err

# SPDX-License-Identifier: Apache-2.0
"""How ``proa vm`` reads its flags, and that its routes are those of the description."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from proa.cli.vm_flags import parse_disk
from proa.model.machine import MachineDisk
from proa.wire import vm_routes

DESCRIPTION = Path(__file__).parents[3] / "docs" / "reference" / "vms.yaml"


@pytest.mark.parametrize(
    ("text", "disk"),
    [
        ("10m", MachineDisk(size=10 << 20)),
        ("data=1g", MachineDisk(name="data", size=1 << 30)),
        ("/a/b.qcow2", MachineDisk(source="/a/b.qcow2")),
        ("/a/b.qcow2:1g", MachineDisk(source="/a/b.qcow2", size=1 << 30)),
        ("https://h:81/a.img", MachineDisk(source="https://h:81/a.img")),
        ("https://h/a.img:1g", MachineDisk(source="https://h/a.img", size=1 << 30)),
        ("r=https://h/a?b=c#sha256:01", MachineDisk(name="r", source="https://h/a?b=c#sha256:01")),
        ("https://h/a#sha256:01:1g", MachineDisk(source="https://h/a#sha256:01", size=1 << 30)),
        ("root=/a/b=c.img:1g", MachineDisk(name="root", source="/a/b=c.img", size=1 << 30)),
    ],
)
def test_disks(text: str, disk: MachineDisk) -> None:
    assert parse_disk(text) == disk


def test_every_route_is_described() -> None:
    described = {
        (method.upper(), path)
        for path, methods in yaml.safe_load(DESCRIPTION.read_text())["paths"].items()
        for method in methods
        if method != "parameters"
    }
    assert described == {(route.method, route.path) for route in vm_routes.ROUTES.values()}

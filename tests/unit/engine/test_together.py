# SPDX-License-Identifier: Apache-2.0
"""Names of virtual machines that containers share."""

from __future__ import annotations

import pytest

from proa.engine.together import machine_of
from proa.model.config import HostConfig
from proa.model.errors import InvalidParameter


@pytest.mark.parametrize(
    ("isolation", "name"),
    [
        ("", ""),
        ("vm", ""),
        ("container", ""),
        ("vm:a", "a"),
        ("VM:Web.1_x-y", "Web.1_x-y"),
        (f"vm:{'x' * 32}", "x" * 32),
    ],
)
def test_a_name(isolation: str, name: str) -> None:
    assert machine_of(HostConfig(isolation=isolation)) == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "a/b", "a b", "a\n", "ä", "x" * 33, "a:b"])
def test_no_name(name: str) -> None:
    with pytest.raises(InvalidParameter, match="the name of a virtual machine"):
        machine_of(HostConfig(isolation=f"vm:{name}"))

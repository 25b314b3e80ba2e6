# SPDX-License-Identifier: Apache-2.0
"""``proa network``: which subnet an option belongs to."""

from __future__ import annotations

import click
import pytest

from proa.cli.networks import _owner
from proa.wire.networks import IpamConfig

POOLS = {subnet: IpamConfig(subnet=subnet) for subnet in ("10.9.0.0/24", "fd00:9::/64")}


def test_an_address_belongs_to_the_subnet_that_holds_it() -> None:
    assert _owner("10.9.0.7", POOLS, "gateway") == "10.9.0.0/24"
    assert _owner("fd00:9::7", POOLS, "gateway") == "fd00:9::/64"


@pytest.mark.parametrize("text", ["10.8.0.1", "x", ""])
def test_an_address_of_no_subnet_is_refused(text: str) -> None:
    with pytest.raises(click.UsageError):
        _owner(text, POOLS, "gateway")

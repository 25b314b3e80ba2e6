# SPDX-License-Identifier: Apache-2.0
"""Limits of single block devices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proa.engine.limits import parse_resources
from proa.model.config import HostConfig, ThrottleDevice, WeightDevice
from proa.model.errors import InvalidParameter
from proa.model.task import DeviceLimit, DeviceLimitKind
from proa.runtime.oci.block_io import FoundLimit, block_io, find_limits
from proa.runtime.oci.features import judge
from proa.runtime.seam import Asked
from tests.unit.runtime_oci.values import FACTS, task_spec


def test_the_runtimes_words() -> None:
    kinds = list(DeviceLimitKind)
    found = [FoundLimit(kind=kind, major=8, minor=0, value=100 + at) for at, kind in enumerate(kinds)]
    assert block_io(found) == {
        "weightDevice": [{"major": 8, "minor": 0, "weight": 100}],
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 101}],
        "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 102}],
        "throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 103}],
        "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 104}],
    }


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/nowhere", "stat /nowhere: no such file or directory"),
        ("/dev/null", "/dev/null: not a block device"),
    ],
)
def test_what_is_no_block_device_is_refused(path: str, sentence: str) -> None:
    limit = DeviceLimit(kind=DeviceLimitKind.READ_BPS, path=Path(path), value=1)
    with pytest.raises(InvalidParameter, match=sentence):
        find_limits([limit], throttles_io=True)


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        ({"blkio_weight_device": [WeightDevice(path="/dev/sda", weight=5)]}, "Range of blkio weight"),
        ({"blkio_device_read_bps": [ThrottleDevice(path="sda", rate=5)]}, "bad format for device path: sda"),
        ({"blkio_device_read_bps": [ThrottleDevice(path="/dev/sda", rate=-5)]}, "invalid rate for device"),
        ({"cpu_realtime_period": 5, "cpu_realtime_runtime": 6}, "cannot be higher than"),
    ],
)
def test_values_that_make_no_sense(host: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidParameter, match=sentence):
        parse_resources(HostConfig(**host))


def test_what_the_kernel_lacks() -> None:
    host = HostConfig(blkio_device_write_i_ops=[ThrottleDevice(path="/dev/sda", rate=5)])
    asked = Asked(host=host, security=task_spec().security, mounts=())
    assert judge(FACTS, asked) == ()
    (warning,) = judge(replace(FACTS, throttles_io=False), asked)
    assert "IOPS Block write limit" in warning and "Block I/O IOPS write limit discarded" in warning
    real_time = replace(asked, host=HostConfig(cpu_realtime_period=1000))
    with pytest.raises(InvalidParameter, match="does not support CPU real-time scheduler"):
        judge(replace(FACTS, has_realtime=False), real_time)

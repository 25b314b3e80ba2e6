# SPDX-License-Identifier: Apache-2.0
"""A host and a task for tests that need no real ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from proa.model.ids import ContainerId
from proa.model.task import DirectoryRootfs, ProcessSpec, TaskSpec
from proa.runtime.oci.capabilities import NAMES
from proa.runtime.oci.facts import HostFacts

FACTS = HostFacts(
    capabilities=frozenset(NAMES),
    hard_limits={},
    nr_open=1_048_576,
    oom_score_adj=0,
    lowest_oom_score_adj=-1000,
    kernel=(6, 1),
    architecture="amd64",
    cgroup_is_v2=True,
    limits_swap=True,
    throttles_io=True,
    has_realtime=True,
)


def task_spec(**changes: object) -> TaskSpec:
    spec = TaskSpec(
        id=ContainerId("ab" * 32),
        hostname="box",
        process=ProcessSpec(args=("sh", "-c", "true"), env=("WORD=one",)),
        rootfs=DirectoryRootfs(path=Path("/var/lib/proa/containers/ab/rootfs")),
        log_path=Path("/var/lib/proa/containers/ab/log"),
    )
    return replace(spec, **changes)  # type: ignore[arg-type]  # named by the tests

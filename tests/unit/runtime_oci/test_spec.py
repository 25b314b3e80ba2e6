# SPDX-License-Identifier: Apache-2.0
"""proa.runtime.oci.spec and mounts: the configuration a task becomes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from proa.model.errors import InvalidParameter
from proa.model.ids import NetworkId
from proa.model.task import (
    BlockRootfs,
    IdMap,
    Interface,
    Mount,
    MountKind,
    Namespaces,
    NetworkAttachment,
    ProcessSpec,
    Resources,
    Rlimit,
    Security,
    TaskSpec,
)
from proa.runtime.oci.devices import DeviceNode
from proa.runtime.oci.spec import Found, build_config, cgroup_path, exec_entry, lower_rlimits, process_env
from proa.runtime.oci.user import User
from tests.unit.runtime_oci.values import FACTS, task_spec

GOLDEN = Path(__file__).with_name("golden")
ROOT = User(uid=0, gid=0, groups=(0,), home="/root")
JOE = User(uid=1000, gid=100, groups=(100, 55), home="/home/joe")

FULL = task_spec(
    process=ProcessSpec(args=("top",), cwd="/data", tty=True, open_stdin=True, console_size=(24, 80)),
    domainname="example.org",
    read_only_rootfs=True,
    init=True,
    mounts=(
        Mount(kind=MountKind.BIND, target="/data/deep", source=Path("/srv/deep"), read_only=True),
        Mount(kind=MountKind.BIND, target="/data", source=Path("/srv"), options=("rshared",)),
        Mount(kind=MountKind.TMPFS, target="/scratch", options=("size=64m", "exec")),
        Mount(kind=MountKind.TMPFS, target="/dev/shm", options=("size=1m",)),
    ),
    network=NetworkAttachment(
        namespace=Path("/run/proa/netns/ab"),
        interfaces=(
            Interface(
                name="eth0",
                device="veth1",
                network_id=NetworkId("0" * 64),
                mac="02:42:ac:11:00:02",
                address=IPv4Interface("172.17.0.2/16"),
            ),
        ),
    ),
    resources=Resources(
        memory_bytes=1 << 28,
        memory_swap_bytes=1 << 29,
        memory_swappiness=10,
        cpu_quota_us=50_000,
        cpu_period_us=100_000,
        cpuset_cpus="0-1",
        pids=100,
    ),
    rlimits=(Rlimit(name="nofile", soft=1024, hard=-1), Rlimit(name="CORE", soft=-1, hard=-1)),
    security=Security(
        cap_drop=("NET_RAW",),
        cap_add=("CAP_SYS_TIME",),
        no_new_privileges=True,
        device_cgroup_rules=("c 42:* rmw",),
    ),
    namespaces=Namespaces(pid="/proc/1/ns/pid", ipc="host", cgroup="host"),
    sysctls={"net.core.somaxconn": "1024"},
    cgroup_parent="custom/parent",
    oom_score_adj=100,
    annotations={"note": "kept"},
)
FULL_FOUND = Found(
    user=JOE,
    devices=(DeviceNode(path="/dev/fuse", kind="c", major=10, minor=229, mode=0o666, uid=0, gid=0),),
    files={"/etc/hosts": Path("/run/proa/oci/ab/files/0-hosts")},
)


@pytest.mark.parametrize(
    ("name", "spec", "found"),
    [("default", task_spec(), Found(user=ROOT)), ("full", FULL, FULL_FOUND)],
)
def test_configuration_is_the_golden_one(name: str, spec: TaskSpec, found: Found) -> None:
    made = json.dumps(build_config(spec, found, FACTS), indent=1) + "\n"
    path = GOLDEN / f"{name}.json"
    if "PROA_WRITE_GOLDEN" in os.environ:
        path.write_text(made)
    assert made == path.read_text()


def build(facts: Any = FACTS, **changes: object) -> Any:  # Any: JSON, looked into by the tests
    return build_config(task_spec(**changes), Found(user=ROOT), facts)


def test_host_namespaces_are_not_made() -> None:
    shared = Namespaces(pid="host", ipc="host", uts="host", cgroup="host")
    config = build(namespaces=shared, network=NetworkAttachment(host=True))
    assert config["linux"]["namespaces"] == [{"type": "mount"}]
    assert "hostname" not in config
    assert "sysctl" not in config["linux"]


def test_privileged_sees_all_and_is_filtered_by_nothing() -> None:
    config = build(security=Security(privileged=True))
    assert config["linux"]["maskedPaths"] == config["linux"]["readonlyPaths"] == []
    assert "seccomp" not in config["linux"]
    assert config["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert "ro" not in next(each for each in config["mounts"] if each["destination"] == "/sys")["options"]


def test_users_hold_no_capabilities_but_may_gain_them() -> None:
    config: Any = build_config(task_spec(), Found(user=JOE), FACTS)
    sets = config["process"]["capabilities"]
    assert sets["effective"] == sets["permitted"] == []
    assert "CAP_CHOWN" in sets["bounding"]


def test_own_paths_replace_the_defaults() -> None:
    config = build(security=Security(masked_paths=("/proc/x",), readonly_paths=()))
    assert (config["linux"]["maskedPaths"], config["linux"]["readonlyPaths"]) == (["/proc/x"], [])


BLOCKS = BlockRootfs(layers=(), writable=Path("/x"), blank=Path("/b"), is_new=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"rootfs": BlockRootfs(layers=(), writable=Path("/x"), blank=Path("/b"), is_new=True)},
            "needs a directory",
        ),
        ({"process": ProcessSpec(args=())}, "no command specified"),
        ({"cgroup_parent": "../up"}, "invalid cgroup parent"),
        ({"security": Security(seccomp="{")}, "Decoding seccomp profile failed"),
        ({"security": Security(device_cgroup_rules=("nonsense",))}, "invalid device cgroup rule format"),
        ({"mounts": (Mount(kind=MountKind.BIND, target="/x"),)}, "no source"),
        ({"mounts": (Mount(kind=MountKind.BIND, target="/x", source=Path("/"), options=("z",)),)}, "option"),
    ],
)
def test_bad_requests_are_named(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        build(**changes)


def test_ids_of_its_own() -> None:
    config = build(
        namespaces=Namespaces(user="/run/ns"),
        ids=IdMap(uid=100_000, gid=200_000, size=1000),
        network=NetworkAttachment(namespace=Path("/run/net")),
    )
    linux = config["linux"]
    assert linux["namespaces"][0] == {"type": "user", "path": "/run/ns"}
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": 100_000, "size": 1000}]
    assert linux["gidMappings"] == [{"containerID": 0, "hostID": 200_000, "size": 1000}]
    assert linux["sysctl"]["net.ipv4.ping_group_range"] == "0 999"
    assert "uidMappings" not in build()["linux"]


def test_what_the_kernel_lacks_is_left_out() -> None:
    wanted = Resources(memory_bytes=100, memory_swap_bytes=200, memory_swappiness=1, oom_kill_disable=True)
    v1 = build(replace(FACTS, cgroup_is_v2=False, limits_swap=False), resources=wanted)
    assert v1["linux"]["resources"]["memory"] == {"limit": 100, "swappiness": 1, "disableOOMKiller": True}
    v2 = build(resources=wanted)
    assert v2["linux"]["resources"]["memory"] == {"limit": 100, "swap": 200}


def test_limits_are_lowered_to_what_the_engine_may_set() -> None:
    facts = replace(FACTS, hard_limits={"nofile": 20_000, "core": -1, "nproc": 500}, nr_open=10_000)
    given = (
        Rlimit(name="nofile", soft=-1, hard=-1),
        Rlimit(name="nproc", soft=100, hard=1000),
        Rlimit(name="core", soft=0, hard=-1),
    )
    assert lower_rlimits(given, facts) == [
        {"type": "RLIMIT_NOFILE", "hard": 10_000, "soft": 10_000},
        {"type": "RLIMIT_NPROC", "hard": 500, "soft": 100},
        {"type": "RLIMIT_CORE", "hard": 2**64 - 1, "soft": 0},
    ]
    with pytest.raises(InvalidParameter, match="invalid ulimit type: wrong"):
        lower_rlimits((Rlimit(name="wrong", soft=0, hard=0),), facts)


@pytest.mark.parametrize(
    ("own", "lowest", "asked", "written"),
    [(0, -1000, 0, None), (0, -1000, -500, -500), (0, 0, -500, None), (200, 200, 0, None), (0, 0, 300, 300)],
)
def test_oom_score_is_lowered_only_as_far_as_allowed(
    own: int, lowest: int, asked: int, written: int | None
) -> None:
    facts = replace(FACTS, oom_score_adj=own, lowest_oom_score_adj=lowest)
    assert build(facts, oom_score_adj=asked)["process"].get("oomScoreAdj") == written


def test_environment_gets_path_and_home() -> None:
    assert process_env(("A=1", "A=2", "NAKED"), home="/root")[1:] == ["A=2", "HOME=/root"]
    assert process_env(("PATH=/x", "HOME="), home="/root") == ["PATH=/x", "HOME="]


def test_a_bind_is_read_only_with_all_below_it_when_asked() -> None:
    mount = Mount(kind=MountKind.BIND, target="/a", source=Path("/a"), read_only=True, options=("rro",))
    mounts = {entry["destination"]: entry for entry in build(FACTS, mounts=(mount,))["mounts"]}
    assert mounts["/a"]["options"] == ["rbind", "rro", "rprivate"]


def test_without_shared_memory() -> None:
    mounts = [entry["destination"] for entry in build(FACTS, shm_size_bytes=0)["mounts"]]
    assert "/dev/mqueue" in mounts
    assert "/dev/shm" not in mounts


def test_cgroup_lies_below_its_parent() -> None:
    assert cgroup_path(task_spec()) == f"/proa/{'ab' * 32}"
    assert cgroup_path(task_spec(cgroup_parent="/a/b/")) == f"/a/b/{'ab' * 32}"


def test_exec_takes_limits_and_capabilities_of_its_container() -> None:
    config = json.dumps(build_config(FULL, FULL_FOUND, FACTS)).encode()
    spec = ProcessSpec(args=("id",))
    entry: Any = exec_entry(config, spec, user=ROOT, available=FACTS.capabilities)
    assert entry["noNewPrivileges"] is True
    assert "CAP_NET_RAW" not in entry["capabilities"]["effective"]
    assert "CAP_SYS_TIME" in entry["capabilities"]["effective"]
    assert [each["type"] for each in entry["rlimits"]] == ["RLIMIT_NOFILE", "RLIMIT_CORE"]
    assert entry["oomScoreAdj"] == 100
    full: Any = exec_entry(config, replace(spec, privileged=True), user=ROOT, available=FACTS.capabilities)
    assert set(full["capabilities"]["effective"]) == FACTS.capabilities

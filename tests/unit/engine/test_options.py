# SPDX-License-Identifier: Apache-2.0
"""docs/reference/options.md against the engine: no field is missing there, and each row is true."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proa.api.shapes_containers import inspect
from proa.model import config as model
from proa.model.errors import InvalidParameter, NotFound
from proa.model.network import NetworkRequest
from proa.runtime.oci import features as oci
from proa.runtime.vm import features as vm
from proa.wire import codec
from proa.wire.containers import ContainerCreateRequest
from tests.support.engine import Daemon, Ground
from tests.support.fake_runtime import FakeRuntime
from tests.unit.runtime_oci.values import FACTS

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).resolve().parents[3] / "docs/reference/options.md"
_ROW = re.compile(r"^\| `([^`]+)`([^|]*)\|([^|]*)\|([^|]*)\|$", re.MULTILINE)
DEVICE = {"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse", "CgroupPermissions": "rwm"}
RATE = [{"Path": "/dev/sda", "Rate": 1000}]
PROFILE = json.dumps({"defaultAction": "SCMP_ACT_ALLOW"})

# A value for each row of the page that is not the field's neutral one.
SAMPLES: dict[str, Any] = {
    "Hostname": "h",
    "Domainname": "d.example",
    "User": "1:1",
    "AttachStdin": True,
    "AttachStdout": True,
    "AttachStderr": True,
    "ExposedPorts": {"80/tcp": {}},
    "Tty": True,
    "OpenStdin": True,
    "StdinOnce": True,
    "Env": ["A=1"],
    "Cmd": ["true"],
    "Healthcheck": {"Test": ["CMD", "true"]},
    "ArgsEscaped": True,
    "Image": "busybox",
    "Volumes": {"/data": {}},
    "WorkingDir": "/tmp",
    "Entrypoint": ["sh"],
    "NetworkDisabled": True,
    "MacAddress": "02:42:ac:11:00:09",
    "OnBuild": ["RUN x"],
    "Labels": {"a": "b"},
    "StopSignal": "SIGINT",
    "StopTimeout": 3,
    "Shell": ["sh"],
    "HostConfig.CpuShares": 512,
    "HostConfig.Memory": 2**27,
    "HostConfig.CgroupParent": "/mine",
    "HostConfig.BlkioWeight": 500,
    "HostConfig.BlkioWeightDevice": [{"Path": "/dev/sda", "Weight": 100}],
    "HostConfig.BlkioDeviceReadBps": RATE,
    "HostConfig.BlkioDeviceWriteBps": RATE,
    "HostConfig.BlkioDeviceReadIOps": RATE,
    "HostConfig.BlkioDeviceWriteIOps": RATE,
    "HostConfig.CpuPeriod": 50_000,
    "HostConfig.CpuQuota": 50_000,
    "HostConfig.CpuRealtimePeriod": 1000,
    "HostConfig.CpuRealtimeRuntime": 1000,
    "HostConfig.CpusetCpus": "0",
    "HostConfig.CpusetMems": "0",
    "HostConfig.MemoryReservation": 2**26,
    "HostConfig.MemorySwap": -1,
    "HostConfig.MemorySwappiness": 10,
    "HostConfig.NanoCpus": 500_000_000,
    "HostConfig.OomKillDisable": True,
    "HostConfig.OomScoreAdj": 100,
    "HostConfig.PidsLimit": 100,
    "HostConfig.Ulimits": [{"Name": "nofile", "Soft": 10, "Hard": 20}],
    "HostConfig.ShmSize": 2**20,
    "HostConfig.StorageOpt": {"size": "1g"},
    "HostConfig.CpuCount": 1,
    "HostConfig.CpuPercent": 1,
    "HostConfig.IOMaximumIOps": 1,
    "HostConfig.IOMaximumBandwidth": 1,
    "HostConfig.KernelMemoryTCP": 1,
    "HostConfig.CapAdd": ["NET_ADMIN"],
    "HostConfig.CapDrop": ["ALL"],
    "HostConfig.Privileged": True,
    "HostConfig.SecurityOpt no-new-privileges": ["no-new-privileges"],
    "HostConfig.SecurityOpt seccomp=PROFILE": [f"seccomp={PROFILE}"],
    "HostConfig.MaskedPaths": ["/proc/kcore"],
    "HostConfig.ReadonlyPaths": ["/proc/sys"],
    "HostConfig.Devices": [DEVICE],
    "HostConfig.DeviceCgroupRules": ["c 1:3 rwm"],
    "HostConfig.DeviceRequests": [{"Count": -1, "Capabilities": [["gpu"]]}],
    "HostConfig.GroupAdd": ["5"],
    "HostConfig.Sysctls": {"net.ipv4.ip_forward": "1"},
    "HostConfig.Sysctls vm.swappiness": {"vm.swappiness": "1"},
    "HostConfig.PidMode": "host",
    "HostConfig.UTSMode": "host",
    "HostConfig.Cgroup": "container:x",
    "HostConfig.Runtime": None,  # as the hull says
    "HostConfig.Isolation": None,
    "HostConfig.Binds": ["/tmp:/a"],
    "HostConfig.Binds :idmap": ["/tmp:/a:idmap"],
    "HostConfig.Binds :rshared": ["/tmp:/a:rshared"],
    "HostConfig.VolumeDriver": "local",
    "HostConfig.VolumesFrom": ["other"],
    "HostConfig.Mounts": [{"Type": "tmpfs", "Target": "/a"}],
    "HostConfig.Tmpfs": {"/a": "size=1m,noexec"},
    "HostConfig.ReadonlyRootfs": True,
    "HostConfig.ContainerIDFile": "/tmp/id",
    "Mount.Target": {"Type": "volume", "Source": "", "Target": "/a"},
    "Mount.Source": {"Type": "volume", "Source": "data", "Target": "/a"},
    "Mount.Type": {"Type": "bind", "Source": "/tmp", "Target": "/a"},
    "Mount.Type image": {"Type": "image", "Source": "busybox", "Target": "/a"},
    "Mount.ReadOnly": {"ReadOnly": True},
    "Mount.Consistency": {"Consistency": "cached"},
    "Mount.BindOptions.Propagation": {"BindOptions": {"Propagation": "rslave"}},
    "Mount.BindOptions.NonRecursive": {"BindOptions": {"NonRecursive": True}},
    "Mount.BindOptions.CreateMountpoint": {"BindOptions": {"CreateMountpoint": True}},
    "Mount.BindOptions.ReadOnlyNonRecursive": {
        "ReadOnly": True,
        "BindOptions": {"ReadOnlyNonRecursive": True},
    },
    "Mount.BindOptions.ReadOnlyForceRecursive": {
        "ReadOnly": True,
        "BindOptions": {"ReadOnlyForceRecursive": True},
    },
    "Mount.VolumeOptions.NoCopy": {"Type": "volume", "Source": "", "VolumeOptions": {"NoCopy": True}},
    "Mount.VolumeOptions.Labels": {"Type": "volume", "Source": "", "VolumeOptions": {"Labels": {"a": "b"}}},
    "Mount.VolumeOptions.DriverConfig": {
        "Type": "volume",
        "Source": "",
        "VolumeOptions": {"DriverConfig": {"Name": "local"}},
    },
    "Mount.VolumeOptions.Subpath": {"Type": "volume", "Source": "data", "VolumeOptions": {"Subpath": "x"}},
    "Mount.ImageOptions.Subpath": {
        "Type": "image",
        "Source": "busybox",
        "ImageOptions": {"Subpath": "bin"},
    },
    "Mount.TmpfsOptions.SizeBytes": {"Type": "tmpfs", "Source": "", "TmpfsOptions": {"SizeBytes": 2**20}},
    "Mount.TmpfsOptions.Mode": {"Type": "tmpfs", "Source": "", "TmpfsOptions": {"Mode": 0o700}},
    "Mount.TmpfsOptions.Options": {
        "Type": "tmpfs",
        "Source": "",
        "TmpfsOptions": {"Options": [["exec"], ["uid", "5"]]},
    },
    "HostConfig.PortBindings": {"80/tcp": [{"HostPort": "8080"}]},
    "HostConfig.PublishAllPorts": True,
    "HostConfig.Dns": ["192.0.2.1"],
    "HostConfig.DnsOptions": ["ndots:2"],
    "HostConfig.DnsSearch": ["example.org"],
    "HostConfig.ExtraHosts": ["a:192.0.2.1"],
    "HostConfig.Links": ["other:alias"],
    "Endpoint.IPAMConfig.IPv4Address": {"IPAMConfig": {"IPv4Address": "172.17.0.9"}},
    "Endpoint.IPAMConfig.IPv6Address": {"IPAMConfig": {"IPv6Address": "2001:db8::9"}},
    "Endpoint.IPAMConfig.LinkLocalIPs": {"IPAMConfig": {"LinkLocalIPs": ["169.254.1.1"]}},
    "Endpoint.Links": {"Links": ["other:alias"]},
    "Endpoint.MacAddress": {"MacAddress": "02:42:ac:11:00:09"},
    "Endpoint.Aliases": {"Aliases": ["db"]},
    "Endpoint.DriverOpts": {"DriverOpts": {"com.docker.network.endpoint.ifname": "lan0"}},
    "Endpoint.DriverOpts other": {"DriverOpts": {"a": "b"}},
    "Endpoint.GwPriority": {"GwPriority": 1},
    "HostConfig.LogConfig none": {"Type": "none"},
    "HostConfig.LogConfig max-size": {"Type": "json-file", "Config": {"max-size": "1m"}},
    "HostConfig.LogConfig syslog": {"Type": "syslog"},
    "HostConfig.LogConfig fluentd": {"Type": "fluentd"},
    "HostConfig.RestartPolicy": {"Name": "always"},
    "HostConfig.AutoRemove": True,
    "HostConfig.Init": True,
    "HostConfig.ConsoleSize": [24, 80],
    "HostConfig.Annotations": {"a": "b"},
    "HostConfig.Binds of a socket, a pipe or a device": ["/dev/tty:/x"],
    "HostConfig.Annotations proa.vm.kernel": {"proa.vm.kernel": "/etc/passwd"},
    "HostConfig.Annotations proa.vm.kernel-args": {"proa.vm.kernel-args": "a=b"},
}
# The page's rows by name, each with the cells of the two hulls.
ROWS = {
    f"{name} {value.strip()}".strip(): (container.strip(), vm_hull.strip())
    for name, value, container, vm_hull in _ROW.findall(PAGE.read_text())
}
_FROM_SERVER = {
    "NetworkID", "EndpointID", "Gateway", "IPAddress", "IPPrefixLen", "IPv6Gateway", "GlobalIPv6Address",
    "GlobalIPv6PrefixLen", "DNSNames",
}  # fmt: skip


def sample(row: str) -> Any:
    """The value for a row; a word after the field's name is the value itself."""
    if row in SAMPLES:
        return SAMPLES[row]
    field, _, word = row.partition(" ")
    return [word] if field.endswith("SecurityOpt") else word


def body(row: str, isolation: str) -> dict[str, Any]:
    """A request that asks for one row."""
    field = row.partition(" ")[0]
    host: dict[str, Any] = {"Isolation": isolation}
    request: dict[str, Any] = {"Image": "busybox", "HostConfig": host}
    if field == "HostConfig.Runtime":
        host["Runtime"] = {"container": "crun", "vm": "vm"}[isolation]
    elif field == "HostConfig.Isolation":
        pass
    elif field.startswith("HostConfig."):
        host[field.removeprefix("HostConfig.")] = sample(row)
    elif field.startswith("Mount."):
        host["Mounts"] = [{"Type": "bind", "Source": "/tmp", "Target": "/a", **sample(row)}]
    elif field.startswith("Endpoint."):
        host["NetworkMode"] = "mine"
        request["NetworkingConfig"] = {"EndpointsConfig": {"mine": sample(row)}}
    else:
        request[field] = sample(row)
    return request


def fields(struct: type[msgspec.Struct], prefix: str) -> Iterator[str]:
    """Every field a client may set, down to the leaves that the page lists."""
    deeper: dict[str, type[msgspec.Struct]] = {
        "BindOptions": model.BindOptions,
        "VolumeOptions": model.VolumeOptions,
        "TmpfsOptions": model.TmpfsOptions,
        "ImageOptions": model.ImageOptions,
        "IPAMConfig": model.EndpointIpamConfig,
    }
    for field in msgspec.structs.fields(struct):
        name = field.encode_name
        if name in deeper:
            yield from fields(deeper[name], f"{prefix}{name}.")
        elif name not in _FROM_SERVER:
            yield f"{prefix}{name}"


@asynccontextmanager
async def both_hulls(ground: Ground) -> AsyncIterator[Daemon]:
    crun = FakeRuntime(ground.world, features=replace(oci.FEATURES, judge=partial(oci.judge, FACTS)))
    machine = FakeRuntime(ground.world, name="vm", features=vm.FEATURES)
    async with ground.daemon(runtimes={"crun": crun, "vm": machine}) as daemon:
        await daemon.engine.networks._store.create(NetworkRequest(name="mine"))
        await daemon.create("other")
        yield daemon


async def refusal(daemon: Daemon, request: dict[str, Any]) -> str:
    """Create and remove; return the sentence of a refusal, or ""."""
    decoded = codec.decode(json.dumps(request), ContainerCreateRequest)
    before = len(daemon.actions)
    try:
        created = await daemon.engine.containers.create(
            "web",
            decoded.config(),
            decoded.host_config or model.HostConfig(),
            decoded.networking_config or model.NetworkingConfig(),
        )
    except (InvalidParameter, NotFound) as error:
        assert daemon.actions[before:] == []
        return error.message
    inspect(daemon.get(created.id), [], None)
    await daemon.engine.containers.remove(created.id, force=True, volumes=True, link=False)
    return ""


def test_the_page_lists_every_field() -> None:
    known = {
        *fields(model.ContainerConfig, ""),
        *fields(model.HostConfig, "HostConfig."),
        *fields(model.MountSpec, "Mount."),
        *fields(model.EndpointSettings, "Endpoint."),
    }
    assert {row.partition(" ")[0] for row in ROWS} == known


async def test_each_row_is_true(ground: Ground) -> None:
    wrong = []
    async with both_hulls(ground) as daemon:
        for row, cells in ROWS.items():
            for isolation, cell in zip(("container", "vm"), cells, strict=True):
                message = await refusal(daemon, body(row, isolation))
                if bool(message) != cell.startswith("refused"):
                    wrong.append(f"{row}, {isolation}: the page says {cell!r}, the engine {message!r}")
    assert wrong == []


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        ({"CgroupParent": "/a/../../b"}, "invalid cgroup parent"),
        ({"PidMode": "container:"}, "invalid PID mode: container:"),
        ({"IpcMode": "mine"}, "invalid IPC mode: mine"),
        ({"UTSMode": "container:x"}, "invalid UTS mode"),
        ({"CgroupnsMode": "x"}, "invalid cgroup namespace mode: x"),
        ({"SecurityOpt": ["no-new-privileges=maybe"]}, "invalid --security-opt 2"),
        ({"SecurityOpt": ["seccomp={}"]}, "Decoding seccomp profile failed"),
        ({"Tmpfs": {"/a": "size=1m,colour=red"}}, "invalid tmpfs option \\['colour=red'\\]"),
        ({"Sysctls": {"net.core.somaxconn": "1"}, "NetworkMode": "host"}, "no network namespace"),
        ({"Sysctls": {"kernel.msgmax": "1"}, "IpcMode": "host"}, "no IPC namespace"),
        ({"LogConfig": {"Config": {"colour": "red"}}}, "unknown log opt 'colour' for json-file log driver"),
        (
            {"Mounts": [{"Type": "tmpfs", "Target": "/a", "BindOptions": {}}]},
            "field BindOptions must not be specified",
        ),
        (
            {
                "Mounts": [
                    {
                        "Type": "bind",
                        "Source": "/tmp",
                        "Target": "/a",
                        "BindOptions": {"ReadOnlyForceRecursive": True},
                    }
                ]
            },
            "mount options conflict: !ReadOnly && BindOptions.ReadOnlyForceRecursive",
        ),
        (
            {
                "Mounts": [
                    {
                        "Type": "volume",
                        "Target": "/a",
                        "VolumeOptions": {"DriverConfig": {"Options": {"o": "x"}}},
                    }
                ]
            },
            'missing required option: "device"',
        ),
    ],
)
async def test_values_that_could_only_fail(ground: Ground, host: dict[str, Any], sentence: str) -> None:
    async with both_hulls(ground) as daemon:
        assert re.search(sentence, await refusal(daemon, {"Image": "busybox", "HostConfig": host}))
        assert list(daemon.engine.volumes._store.list()) == []


async def test_limits_that_a_kernel_lacks_are_warned_of(ground: Ground) -> None:
    host = model.HostConfig(memory=2**27, memory_swap=2**28, memory_swappiness=1, oom_kill_disable=True)
    facts = replace(FACTS, limits_swap=False, cgroup_is_v2=True)
    crun = FakeRuntime(ground.world, features=replace(oci.FEATURES, judge=partial(oci.judge, facts)))
    async with ground.daemon(runtimes={"crun": crun}) as daemon:
        created = await daemon.engine.containers.create(
            "web", model.ContainerConfig(image="busybox"), host, model.NetworkingConfig()
        )
    assert [re.findall("swap limit|swappiness|OomKillDisable", one)[0] for one in created.warnings] == [
        "swap limit",
        "swappiness",
        "OomKillDisable",
    ]


async def test_labels_of_a_volume_made_for_a_mount(ground: Ground) -> None:
    mount = model.MountSpec(
        type="volume", source="data", target="/a/", volume_options=model.VolumeOptions(labels={"a": "b"})
    )
    async with ground.daemon() as daemon:
        await daemon.create(host=model.HostConfig(mounts=[mount]))
        assert [volume.labels for volume in daemon.engine.volumes._store.list()] == [{"a": "b"}]

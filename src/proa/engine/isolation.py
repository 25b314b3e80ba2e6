# SPDX-License-Identifier: Apache-2.0
"""Chooses the hull of a container, and refuses what that hull cannot honour.

The choice is the API's own: HostConfig.Isolation and HostConfig.Runtime. What a hull cannot do is data in
its feature record, so nothing here knows one hull from the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from proa.engine.container import Container, MountPoint
from proa.engine.limits import parse_resources, parse_security
from proa.engine.taskspec import build_mounts
from proa.engine.together import machine_of
from proa.model.config import EndpointSettings, HostConfig
from proa.model.errors import FeatureMissing, InvalidParameter
from proa.model.network import Network
from proa.model.task import NetworkKind
from proa.network.request import PARENT_DRIVERS
from proa.runtime.seam import Asked, Runtime

ISOLATION_VM = "vm"
ISOLATION_CONTAINER = "container"
RUNTIME_SHARED = "pod"  # of containers in one virtual machine, isolation "vm:NAME"

# Fields whose neutral value is not the type's own zero.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "IpcMode": ("", "private", "shareable"),
    "CgroupnsMode": ("", "private"),
    "PidMode": ("",),
    "UTSMode": ("",),
    "UsernsMode": ("", "host"),
    "MemorySwappiness": (None, -1),
}


class Hulls:
    """The runtimes by name, and which of them each isolation means.

    :param runtimes: by name; crun, runc and vm when the host can do them.
    :param container_runtime: the name that isolation "container" means.
    :param default_isolation: "container" or "vm", for requests that say nothing.
    :param missing: for runtimes that this host cannot offer, the reason, by name.
    """

    def __init__(
        self,
        runtimes: Mapping[str, Runtime],
        *,
        container_runtime: str,
        default_isolation: str,
        missing: Mapping[str, str],
    ) -> None:
        self.runtimes = runtimes
        self.container_runtime = container_runtime
        self.default_isolation = default_isolation
        self.missing = missing

    def __getitem__(self, name: str) -> Runtime:
        """Return the runtime of an existing container. Raises InvalidParameter when it is gone."""
        runtime = self.runtimes.get(name)
        if runtime is None:
            reason = self.missing.get(name)
            raise InvalidParameter(
                f"runtime {name} is not available on this host: {reason}"
                if reason
                else f"unknown or invalid runtime name: {name}"
            )
        return runtime

    def choose(self, host: HostConfig) -> str:
        """Return the runtime's name for a request. Raises InvalidParameter."""
        if machine_of(host):
            if host.runtime not in ("", ISOLATION_VM, RUNTIME_SHARED):
                raise InvalidParameter(
                    f"conflicting options: isolation {host.isolation} and runtime {host.runtime}"
                )
            self[ISOLATION_VM]  # it has the reason when there can be no virtual machines
            return self[RUNTIME_SHARED].name
        if host.runtime == RUNTIME_SHARED:
            raise InvalidParameter(f'runtime {RUNTIME_SHARED} needs isolation "vm:NAME"')
        isolation = host.isolation.lower()
        if isolation in ("", "default"):
            isolation = ""
        elif isolation not in (ISOLATION_VM, ISOLATION_CONTAINER):
            raise InvalidParameter(
                f'invalid isolation: "{host.isolation}": use "container", "vm" or "vm:NAME", or '
                "leave it empty"
            )
        if host.runtime:
            chosen = self[host.runtime].name
            if isolation and (isolation == ISOLATION_VM) != (chosen == ISOLATION_VM):
                raise InvalidParameter(
                    f"conflicting options: isolation {isolation} and runtime {host.runtime}"
                )
            return chosen
        wanted = isolation or self.default_isolation
        return self[ISOLATION_VM if wanted == ISOLATION_VM else self.container_runtime].name

    def check(self, runtime: str, host: HostConfig) -> None:
        """Raise FeatureMissing when the request asks for something that the runtime cannot honour."""
        features = self[runtime].features
        plain: dict[str, Any] = msgspec.to_builtins(host)  # Any: JSON of the structure
        neutral: dict[str, Any] = msgspec.to_builtins(HostConfig())
        for option, reason in features.refused.items():
            key = option.removeprefix("HostConfig.")
            value = plain.get(key)
            if value and value != neutral.get(key) and value not in _NEUTRAL.get(key, ()):
                raise FeatureMissing(runtime, option, reason)
        mode = host.network_mode.partition(":")[0]
        kind = mode if mode in ("none", "host", "container") else "bridge"
        if kind not in features.network_modes:
            raise FeatureMissing(
                runtime, f"HostConfig.NetworkMode {host.network_mode}", "it has a network stack of its own"
            )
        memory = parse_resources(host).memory_bytes
        if memory and memory < features.min_memory_bytes:
            minimum = features.min_memory_bytes // (1024 * 1024)
            raise FeatureMissing(runtime, f"a memory limit below {minimum}MB", "its kernel would not boot")

    def check_network(self, runtime: str, network: Network) -> None:
        """Raise FeatureMissing for a network that only a device in a namespace of the host's can be on."""
        if self[runtime].features.network is NetworkKind.TAP and network.driver in PARENT_DRIVERS:
            raise FeatureMissing(
                runtime,
                f"network {network.name} of driver {network.driver}",
                "its network card is a tap, which is plugged into a bridge",
            )

    def check_endpoints(self, runtime: str, endpoints: Iterable[EndpointSettings]) -> None:
        """Raise FeatureMissing for more networks than a container may be on."""
        endpoints = tuple(endpoints)
        most = self[runtime].features.most_networks
        if most and len(endpoints) > most:
            raise FeatureMissing(
                runtime, f"more than {most} network", "a container in a shared virtual machine has one card"
            )

    def check_joined(self, runtime: str, host: HostConfig, other: Container) -> None:
        """Raise InvalidParameter when a container's network is out of reach of one in a virtual machine, or
        the other way round."""
        kinds = [self[name].features.network for name in (runtime, other.runtime)]
        if NetworkKind.TAP not in kinds:
            return
        machine = machine_of(host)
        if not machine:
            raise InvalidParameter(f"container {other.name} has no network namespace that could be joined")
        if machine_of(other.host_config) != machine:
            raise InvalidParameter(
                f"container {other.name} is not in the virtual machine {machine}: "
                "its network cannot be joined"
            )

    def judge(self, runtime: str, host: HostConfig, points: Sequence[MountPoint]) -> tuple[str, ...]:
        """Check a whole request; return warnings about limits that are left out. Raises InvalidParameter."""
        self.check(runtime, host)
        asked = Asked(host=host, security=parse_security(host), mounts=build_mounts(points))
        return tuple(self[runtime].features.judge(asked))

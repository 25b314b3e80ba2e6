# SPDX-License-Identifier: Apache-2.0
"""Runs the command of a RUN in a container or a virtual machine, and packs what it changed.

The container is one like any other while it runs; it is removed afterwards, on success and on failure, and by
the next start of the daemon when this one is killed.
"""

from __future__ import annotations

import codecs
import random
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

import anyio
from msgspec.structs import replace as replace_struct

from proa.build.parser import Instruction
from proa.engine import names
from proa.engine.building.request import NETWORK_HOST, SECURITY_INSECURE
from proa.engine.container import Container, MountPoint
from proa.engine.creation import event_attributes
from proa.engine.events import EventBus
from proa.engine.files import MOUNT_POINTS, Files
from proa.engine.isolation import Hulls
from proa.engine.lifecycle import Lifecycle
from proa.engine.networking import check_networking
from proa.engine.registry import Registry
from proa.engine.removal import Removal
from proa.engine.unit import PendingStdio, Units
from proa.model.config import ContainerConfig, HostConfig, NetworkingConfig
from proa.model.errors import CommandFailed, EngineError, InvalidParameter, NotFound
from proa.model.ids import ContainerId, Digest, new_id
from proa.network.networks import Networks
from proa.storage.files import trees
from proa.storage.files.trees import PackedLayer
from proa.storage.rootfs import Roots

INSECURE = "insecure"  # of RUN --security
Speak = Callable[[str], Awaitable[None]]
"""Takes a piece of the command's output."""


class StepRefused(InvalidParameter):
    """A container for the step cannot be: the request is at fault, and not a line of the Dockerfile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One RUN. ``shown`` is how a failure names it; ``extra_env`` is not in ``config``, and nowhere seen."""

    argv: tuple[str, ...]
    shown: str
    image_id: Digest
    layers: tuple[Digest, ...]
    config: ContainerConfig
    host: HostConfig
    mounts: tuple[MountPoint, ...] = ()
    extra_env: tuple[str, ...] = ()


class Runner:
    """Runs commands."""

    def __init__(
        self,
        *,
        registry: Registry,
        units: Units,
        lifecycle: Lifecycle,
        removal: Removal,
        networks: Networks,
        hulls: Hulls,
        roots: Roots,
        events: EventBus,
        files: Files,
        containers_dir: Path,
    ) -> None:
        self._registry = registry
        self._units = units
        self._lifecycle = lifecycle
        self._removal = removal
        self._networks = networks
        self._hulls = hulls
        self._roots = roots
        self._events = events
        self._files = files
        self._containers_dir = containers_dir

    @property
    def host_gateway(self) -> IPv4Address | None:
        """The address of the host that ``--add-host name:host-gateway`` means; None when there is none."""
        return self._networks.host_gateway

    def create(self, command: Command) -> ContainerId:
        """Make the container. Raises StepRefused, NoSuchNetwork."""
        try:
            return self._create(command)
        except InvalidParameter as error:
            raise StepRefused(error.message) from error

    def _create(self, command: Command) -> ContainerId:
        container_id = ContainerId(new_id())
        config = replace_struct(
            command.config,
            hostname="" if command.host.network_mode.startswith("container:") else container_id[:12],
            env=[*(command.config.env or ()), *command.extra_env],
            cmd=list(command.argv),
            entrypoint=None,
            healthcheck=None,
            on_build=None,
            volumes=None,
            exposed_ports=None,
            tty=False,
            open_stdin=False,
        )
        taken = {container.name for container in self._registry}
        container = Container(
            id=container_id,
            name=names.random_name(taken, random.Random()),
            created_at_ns=time.time_ns(),
            image_id=command.image_id,
            image_ref=command.image_id,
            layers=command.layers,
            config=config,
            host_config=command.host,
            networking=check_networking(
                replace_struct(config, hostname=""), command.host, NetworkingConfig(), self._networks
            ),
            path=command.argv[0],
            args=command.argv[1:],
            runtime=self._hulls.choose(command.host),
            mounts=command.mounts,
            log_path=str(self._containers_dir / container_id / "log"),
            for_build=True,
        )
        self._registry.add(container)
        self._events.publish("container", "create", container_id, event_attributes(container))
        return container_id

    async def run(self, container_id: ContainerId, command: Command, speak: Speak) -> None:
        """Run the command to its end. Raises CommandFailed, StepRefused, and what a start raises."""
        unit = self._units[container_id]
        with unit.waiting(unit.exit_waiters) as waiter, unit.held():
            stdio = unit.attach_pending()
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(_pump, stdio, speak)
                    try:
                        await self._lifecycle.start(container_id)
                    except (EngineError, OSError):
                        group.cancel_scope.cancel()
                        raise
                    result = await waiter()
            except ExceptionGroup as errors:
                # Of our own two tasks; a caller wants the error itself.
                error = errors.exceptions[0]
                raise StepRefused(str(error)) if isinstance(error, InvalidParameter) else error from None
            finally:
                await stdio.aclose()
        if result.code != 0:
            raise CommandFailed(command.shown, result.code)

    async def pack(self, container_id: ContainerId, command: Command, out: int, image: int) -> PackedLayer:
        """Write what the ended command changed as a tar to ``out``, and as its image to ``image``."""
        ignored = {*MOUNT_POINTS, *_mount_points([point.destination for point in command.mounts])}
        with self._roots.open_below(command.layers) as below:
            async with self._files.open_upper(self._registry.get(container_id)) as upper:
                return await trees.pack_upper(upper, below, out, ignored=ignored, image=image)

    async def remove(self, container_id: ContainerId) -> None:
        """Remove the container, whatever it does. Idempotent."""
        with anyio.CancelScope(shield=True):
            try:
                await self._removal.remove(container_id, force=True)
            except NotFound:
                return

    def keep(self, container_id: ContainerId) -> None:
        """Leave the container to the user (``--rm=false``)."""
        container = self._registry.find(container_id)
        if container is not None:
            self._registry.put(replace(container, for_build=False))


async def _pump(stdio: PendingStdio, speak: Speak) -> None:
    """Pass the output on as text; a character cut by a piece's end is put together again."""
    decoders = {number: codecs.getincrementaldecoder("utf-8")(errors="replace") for number in range(3)}
    while True:
        try:
            stream, data = await stdio.receive()
        except anyio.EndOfStream:
            return
        text = decoders[int(stream)].decode(data)
        if text:
            await speak(text)


def _mount_points(targets: Sequence[str]) -> set[str]:
    """What a runtime makes for mounts: every directory on the way."""
    made: set[str] = set()
    for target in targets:
        parts = target.strip("/").split("/")
        made |= {"/".join(parts[:depth]) for depth in range(1, len(parts) + 1)}
    return made


def host_of_step(instruction: Instruction, host: HostConfig, entitlements: Collection[str]) -> HostConfig:
    """Return the configuration of a RUN's container. Raises InvalidParameter: its client did not allow it."""
    security = instruction.flag("security")
    if security not in ("", "sandbox", INSECURE):
        raise InvalidParameter(f'unsupported security mode "{security}"')
    if security == INSECURE:
        if SECURITY_INSECURE not in entitlements:
            raise InvalidParameter(
                f"RUN --security=insecure: {SECURITY_INSECURE} is not allowed; "
                f"proa build --allow {SECURITY_INSECURE} gives the host's privileges away"
            )
        host = replace_struct(host, privileged=True)
    if instruction.all_flags("device"):
        raise InvalidParameter("RUN --device is not supported: a build gets no devices of the host")
    network = instruction.flag("network")
    if network in ("", "default"):
        return host
    if network not in ("none", "host"):
        raise InvalidParameter(f'unsupported network mode "{network}"')
    if network == "host" and host.network_mode != "host" and NETWORK_HOST not in entitlements:
        raise InvalidParameter(
            "RUN --network=host is only allowed in a build with --network=host or --allow network.host: "
            "it gives the host's network away"
        )
    return replace_struct(host, network_mode=network)

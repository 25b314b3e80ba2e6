# SPDX-License-Identifier: Apache-2.0
"""The container hull: makes tasks out of OCI bundles with crun or runc under conmon.

Owns the directories in the exec root (see ``record``) and the order of the steps; the root file system, the
network namespace and the log's directory are given. A container is made in one go by conmon and the
runtime's create; its first process then waits for the start, with its streams ready for clients.

Source: proa.runtime.seam.Runtime; OCI runtime-spec, runtime.md.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import msgspec
from anyio.abc import TaskGroup

from proa.host import process
from proa.host.cgroup import Cgroup, ensure_hierarchies, get_hierarchies, unmounted_controllers
from proa.host.watch import get_start_time, open_process
from proa.model.errors import InvalidParameter, ToolFailed
from proa.model.ids import ContainerId
from proa.model.task import DirectoryRootfs, IdMap, Mount, TaskSpec
from proa.runtime.oci import cdi, conmon, failures
from proa.runtime.oci.binary import SealedBinary
from proa.runtime.oci.block_io import find_limits
from proa.runtime.oci.devices import find_devices
from proa.runtime.oci.facts import get_facts
from proa.runtime.oci.features import FEATURES, judge
from proa.runtime.oci.filters import FilterCache
from proa.runtime.oci.record import Home, Record
from proa.runtime.oci.seccomp import Profile, parse_profile
from proa.runtime.oci.spec import Found, build_config, cgroup_path
from proa.runtime.oci.task import OciTask, Tools
from proa.runtime.oci.user import User, find_user
from proa.runtime.seam import Features

PROBE_TIMEOUT_S = 10.0


class OciRuntime:
    """One of crun and runc. ``tasks`` owns what waits for the containers; it must outlive the last use.

    :param exec_root: directory for bundles, sockets and state, emptied by a reboot; may be shared by both.
    :param seccomp_profile: Docker-format profile for containers that name none; a missing file means none.
    :param device_specs: where devices are described that containers ask for by qualified names.
    :param init: static program that is process 1 of containers that ask for an init.
    """

    def __init__(
        self,
        *,
        name: str,
        binary: Path,
        conmon: Path,
        exec_root: Path,
        tasks: TaskGroup,
        seccomp_profile: Path,
        init: Path,
        device_specs: cdi.DeviceSpecs | None = None,
    ) -> None:
        self._device_specs = device_specs or cdi.DeviceSpecs(())
        self._exec_root = exec_root
        self._init = init
        self._default_seccomp = _load_profile(seccomp_profile)
        self._hierarchies = get_hierarchies()
        self._filters = FilterCache() if name == "crun" else None
        exec_root.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._tools = Tools(
            name=name,
            binary=SealedBinary(binary),
            conmon=conmon,
            arguments=("--root", str(exec_root / f".{name}")),
            facts=get_facts(self._hierarchies),
            tasks=tasks,
        )
        self._features = replace(FEATURES, judge=partial(judge, self._tools.facts))

    @property
    def name(self) -> str:
        return self._tools.name

    @property
    def features(self) -> Features:
        return self._features

    async def create(self, spec: TaskSpec) -> OciTask:
        """Make the container; it waits for ``start``."""
        home = self._home(spec.id)
        if home.directory.exists():
            await self.forget(spec.id)
        async with contextlib.AsyncExitStack() as undo:
            filter_key, user = self._write_bundle(spec, home, undo)
            cgroup = Cgroup(cgroup_path(spec), self._hierarchies)
            undo.push_async_callback(_delete_shielded, cgroup)
            undo.callback(shutil.rmtree, home.state, ignore_errors=True)
            record, child = await self._run_conmon(spec, home, user)
            first = open_process(record.pid)
            if first is None:
                await child.wait()
                raise failures.translate(
                    "the first process ended at once", program=record.program, action="create"
                )
            undo.callback(first.close)
            record = msgspec.structs.replace(record, pid_start=first.start_time)
            home.save(record)
            if filter_key and self._filters is not None:
                self._filters.keep(filter_key, home.state)
            if spec.resources.blkio_weight:  # crun fails where the kernel has no weights; Docker discards
                cgroup.set_limits(spec.resources)
            undo.pop_all()
        task = OciTask(
            spec.id,
            tools=self._tools,
            home=home,
            record=record,
            cgroup=cgroup,
            first=first,
            supervisor=child,
        )
        self._tools.tasks.start_soon(task.watch)
        return task

    async def find(self, container_id: ContainerId) -> OciTask | None:
        """Find a container that an earlier engine made with this runtime, running or ended."""
        home = self._home(container_id)
        record = home.load()
        if record is None or record.runtime != self.name or record.pid == 0:
            return None
        task = OciTask(
            container_id,
            tools=self._tools,
            home=home,
            record=record,
            cgroup=Cgroup(record.cgroup, self._hierarchies),
            first=open_process(record.pid, start_time=record.pid_start),
            supervisor=open_process(record.conmon_pid, start_time=record.conmon_start),
        )
        self._tools.tasks.start_soon(task.watch)
        return task

    async def forget(self, container_id: ContainerId) -> None:
        """Clean up whatever a container of this id left."""
        home = self._home(container_id)
        record = home.load()
        if record is not None:
            supervisor = open_process(record.conmon_pid, start_time=record.conmon_start)
            if supervisor is not None:
                with contextlib.closing(supervisor):
                    conmon.kill_children(supervisor.pid)
                    supervisor.send_signal(9)
                    await supervisor.wait()
            await Cgroup(record.cgroup, self._hierarchies).delete()
        shutil.rmtree(home.state, ignore_errors=True)
        shutil.rmtree(home.directory, ignore_errors=True)

    # --- machinery ---

    def _home(self, container_id: ContainerId) -> Home:
        return Home(
            directory=self._exec_root / container_id,
            state=self._exec_root / f".{self.name}" / container_id,
        )

    def _write_bundle(self, spec: TaskSpec, home: Home, undo: contextlib.AsyncExitStack) -> tuple[str, User]:
        """Write what the runtime is given; return the key of the filter it is to compile, and the user."""
        if not isinstance(spec.rootfs, DirectoryRootfs):
            raise InvalidParameter("a container needs a directory as its root file system")
        if spec.init and not self._init.exists():
            raise InvalidParameter(f"the init {self._init} is not installed: apt install tini")
        home.directory.mkdir(mode=0o711)
        undo.callback(shutil.rmtree, home.directory, ignore_errors=True)
        found = Found(
            user=find_user(spec.rootfs.path, spec.process.user, group_add=spec.process.group_add),
            devices=find_devices(spec.security),
            limits=find_limits(spec.resources.device_limits, throttles_io=self._tools.facts.throttles_io),
            files=_write_files(spec.files, home.files, spec.ids),
            init=self._init,
            default_seccomp=self._default_seccomp,
        )
        config = build_config(replace(spec, mounts=_of_files(spec.mounts)), found, self._tools.facts)
        if spec.security.cdi_devices:
            cdi.inject(config, self._device_specs.resolve(spec.security.cdi_devices))
        key = self._filters.apply(config) if self._filters is not None else ""
        home.config.write_bytes(msgspec.json.encode(config))
        return key, found.user

    async def _run_conmon(self, spec: TaskSpec, home: Home, user: User) -> tuple[Record, process.Spawned]:
        program, arguments = await self._tools.command(spec.ids, user)
        plan = conmon.Plan(
            conmon=self._tools.conmon,
            runtime=program,
            runtime_args=arguments,
            container_id=spec.id,
            name=spec.id,
            directory=home.directory,
            log_path=None if spec.log_path == Path(os.devnull) else spec.log_path,
            log_max_bytes=spec.log_max_bytes,
            tty=spec.process.tty,
            open_stdin=spec.process.open_stdin,
            keep_stdin=not spec.process.stdin_once,
        )
        try:
            async with conmon.Launch(plan) as launch:
                child = launch.conmon
                record = Record(
                    runtime=self.name,
                    cgroup=cgroup_path(spec),
                    conmon_pid=child.pid,
                    conmon_start=get_start_time(child.pid) or 0,
                    program=spec.process.args[0],
                    open_stdin=spec.process.open_stdin,
                    stdin_once=spec.process.stdin_once,
                    host_network=spec.network.host,
                    ids=spec.ids,
                )
                home.save(record)  # the runtime is at work meanwhile
                pid = await launch.wait_started()
        except conmon.RuntimeFailed as error:
            raise failures.translate(error.output, program=spec.process.args[0], action="create") from error
        return msgspec.structs.replace(record, pid=pid), child


async def find_runtimes(names: Sequence[str] = ("crun", "runc")) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the programs of the runtimes that work on this host, and why the others do not.

    crun 1.8 refuses a v1 or hybrid host until the trees it misses are mounted: that is done here, where it
    can be done.
    """
    found: dict[str, Path] = {}
    missing: dict[str, str] = {}
    unmounted = unmounted_controllers(await ensure_hierarchies())
    for name in names:
        program = shutil.which(name)
        if program is None:
            missing[name] = f"{name} is not installed: apt install {name}"
        elif name == "crun" and unmounted:
            missing[name] = f"crun needs these cgroup controllers to be mounted: {', '.join(unmounted)}"
        else:
            try:
                await process.run([program, "--version"], timeout_s=PROBE_TIMEOUT_S)
                found[name] = Path(program)
            except ToolFailed as error:
                missing[name] = str(error)
    return found, missing


def _load_profile(path: Path) -> Profile | None:
    try:
        return parse_profile(path.read_bytes())
    except FileNotFoundError:
        return None


def _of_files(mounts: Sequence[Mount]) -> tuple[Mount, ...]:
    """Have what is no directory read-only alone: nothing is mounted below it, and crun 1.8, which looks there
    for "rro", would find no directory."""
    return tuple(
        replace(mount, options=tuple(option for option in mount.options if option != "rro"))
        if "rro" in mount.options and mount.source is not None and not mount.source.is_dir()
        else mount
        for mount in mounts
    )


def _write_files(files: Mapping[str, bytes], directory: Path, ids: IdMap | None) -> dict[str, Path]:
    """Write what is mounted into the container; return where each lies, by target."""
    written = {}
    if files:
        directory.mkdir(mode=0o711)
    for number, (target, content) in enumerate(files.items()):
        path = directory / f"{number}-{Path(target).name}"
        path.write_bytes(content)
        path.chmod(0o644)
        if ids is not None:
            os.chown(path, ids.uid, ids.gid)
        written[target] = path
    return written


async def _delete_shielded(cgroup: Cgroup) -> None:
    with anyio.CancelScope(shield=True):
        await cgroup.delete()

# SPDX-License-Identifier: Apache-2.0
"""Takes away all that a daemon has left on the host: workloads, networks, mounts, control groups.

    python -m proa.daemon.purge --data-root DIR --exec-root DIR

For uninstalling, and for tests. A daemon that merely ends leaves its workloads running on purpose. Images,
volumes and records under the data root stay; delete the directory when they are not wanted either.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio

from proa.daemon.config import Config, parse_config
from proa.daemon.locks import exclusive_root
from proa.daemon.wiring import open_engine
from proa.host.mount import Unmount, mount_table, unmount
from proa.model.errors import EngineError
from proa.network.teardown import teardown

log = logging.getLogger("proa.daemon.purge")


def main(argv: Sequence[str]) -> int:
    """Purge the roots of the command line; return the exit status."""
    config = parse_config(argv)
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    if os.geteuid() != 0:
        print("proa purge: it must run as root", file=sys.stderr)
        return 1
    try:
        with exclusive_root(config.data_root), exclusive_root(config.exec_root):
            anyio.run(_remove_containers, config)
            teardown(config.exec_root)
            unmount_below(config.exec_root)
            unmount_below(
                config.data_root
            )  # devices of volumes: who deletes the directory means only what is in it
    except EngineError as error:
        print(f"proa purge: {error}", file=sys.stderr)
        return 1
    return 0


async def _remove_containers(config: Config) -> None:
    async with anyio.create_task_group() as group:
        async with open_engine(config, group) as engine:
            assert engine.machines is not None
            await engine.machines.lives.find_all()
            await engine.machines.lives.end_all()
            await engine.restore.find_all()
            await engine.builds.open()
            for container in await engine.containers.list(all=True, limit=0, filters={}):
                await engine.containers.remove(container.id, force=True, volumes=True)
        group.cancel_scope.cancel()


def unmount_below(directory: Path) -> None:
    """Unmount everything mounted below a directory, the last mounted first."""
    for mount in reversed(mount_table()):
        if mount.mount_point.is_relative_to(directory):
            try:
                unmount(mount.mount_point, Unmount.DETACH | Unmount.NOFOLLOW)
            except OSError as error:
                log.warning("%s", error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: Apache-2.0
"""Runs the daemon: lock the roots, open what is below, restore, listen, until a signal ends it.

A daemon that ends, or is killed, leaves every workload running; the next one finds them.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack

import anyio

from proa.api.app import Own, build_app
from proa.api.server import serve
from proa.daemon.config import Config, parse_config
from proa.daemon.listening import open_listeners
from proa.daemon.locks import exclusive_root
from proa.daemon.wiring import open_engine
from proa.model.errors import EngineError

log = logging.getLogger("proa.daemon")


def main(argv: Sequence[str]) -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    config = parse_config(argv)
    logging.basicConfig(
        level=logging.DEBUG if config.debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    if os.geteuid() != 0:
        print("proa daemon: it must run as root", file=sys.stderr)
        return 1
    os.umask(0o022)
    _raise_open_files()
    failures: list[BaseException] = []
    try:
        with exclusive_root(config.data_root), exclusive_root(config.exec_root):
            anyio.run(run, config)
    except* EngineError as group:
        failures = _leaves(group)
    for error in failures:
        print(f"proa daemon: {error}", file=sys.stderr)
    return 1 if failures else 0


async def run(config: Config) -> None:
    """Serve until a signal comes. Raises EngineError when it cannot start."""
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(anyio.create_task_group())
        engine = await stack.enter_async_context(open_engine(config, group))
        assert engine.machines is not None
        await engine.machines.lives.find_all()
        await engine.restore.find_all()
        await engine.builds.open()
        tls = config.tls.context() if config.tls else None
        listeners = [
            listener
            for host in config.hosts
            for listener in await open_listeners(host, group=config.group, tls=tls)
        ]
        own = Own(forking=engine.forking, snapshots=engine.snapshots)
        await group.start(serve, build_app(engine, engine.machines, own), listeners)
        await engine.restore.start_wanted()
        await engine.machines.lives.start_wanted()
        for host in config.hosts:
            log.info("listening on %s", host)
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for number in received:
                log.info("ending on %s; containers go on", number.name)
                break
        group.cancel_scope.cancel()


def _raise_open_files() -> None:
    """Take all the open files we may have: every attached client and every task holds some."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _leaves(group: BaseExceptionGroup[EngineError]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves

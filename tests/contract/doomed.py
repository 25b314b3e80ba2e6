# SPDX-License-Identifier: Apache-2.0
"""A daemon that starts one task, says so, and waits to be killed: run as a program by ``Hull.leave``."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio

from tests.contract.hulls import open_hull
from tests.contract.programs import PROGRAMS


async def main(*arguments: str) -> None:
    name, base, root, program = arguments
    async with open_hull(name, Path(base), Path(root)) as hull, hull.daemon() as runtime:
        spec = await hull.spec(PROGRAMS[int(program)])
        task = await runtime.create(spec)
        await task.start()
        print(spec.id, task.pid, spec.log_path, flush=True)
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])

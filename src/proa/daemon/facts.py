# SPDX-License-Identifier: Apache-2.0
"""Facts about the host and this installation, found out once at start-up."""

from __future__ import annotations

import re
import shutil
import uuid
from pathlib import Path

import anyio

from proa.host.process import run
from proa.model.errors import EngineError

_TOOLS = {
    "crun": ("crun", "--version"),
    "runc": ("runc", "--version"),
    "conmon": ("conmon", "--version"),
    "qemu": ("qemu-system-x86_64", "--version"),
}
_VERSION = re.compile(r"\d+(\.\d+)+\S*")


def engine_id(data_root: Path) -> str:
    """Return the identity of this data root, made when it is new."""
    path = data_root / "engine-id"
    if not path.exists():
        path.write_text(f"{uuid.uuid4()}\n")
    return path.read_text().strip()


async def tool_versions() -> dict[str, str]:
    """Ask the programs that proa runs for their versions; those that are missing are left out."""
    found: dict[str, str] = {}

    async def ask(name: str, argv: tuple[str, ...]) -> None:
        binary = shutil.which(argv[0])
        if binary is None:
            return
        try:
            answer = await run([binary, *argv[1:]], timeout_s=5)
        except EngineError:
            return
        match = _VERSION.search(answer.stdout.decode("utf-8", "replace"))
        if match:
            found[name] = match[0]

    async with anyio.create_task_group() as group:
        for name, argv in _TOOLS.items():
            group.start_soon(ask, name, argv)
    return found

# SPDX-License-Identifier: Apache-2.0
"""The processes of a container, as the host's ps shows them. Needs procps on the host, nothing inside.

Source: Engine API, ContainerTop; moby, daemon/top_unix.go (what is accepted, how lines are cut); ps(1).
"""

from __future__ import annotations

import re
from collections.abc import Collection

from proa.host import process
from proa.model.errors import Internal, InvalidParameter, ToolFailed
from proa.model.task import ProcessTable

DEFAULT_ARGS = "-ef"
_TIMEOUT_S = 20.0


async def list_processes(pids: Collection[int], ps_args: str) -> ProcessTable:
    """Run ``ps`` with the user's arguments and keep the lines of these processes.

    :raises InvalidParameter: ps does not take the arguments, or hides the pid.
    """
    arguments = (ps_args or DEFAULT_ARGS).split()
    check_arguments(arguments)
    chosen = ",".join(map(str, pids)) or "0"
    done = await process.run(
        ["ps", *arguments, "-q", chosen], check=False, timeout_s=_TIMEOUT_S, env=process.BASE_ENV
    )
    if done.status != 0:
        # Some arguments do not go with a choice of pids: all lines then, and our own choice.
        try:
            done = await process.run(["ps", *arguments], timeout_s=_TIMEOUT_S)
        except ToolFailed as error:
            if error.status in (126, 127):
                raise Internal(f"ps is needed on the host: {error}") from error
            raise InvalidParameter(f"ps: {error.stderr.strip()}") from error
    return parse_table(done.stdout.decode(errors="replace"), pids)


def check_arguments(arguments: Collection[str]) -> None:
    """Refuse another column under the title by which processes are chosen. Raises InvalidParameter."""
    for argument in arguments:
        for name, title in re.findall(r"(\w*)=\s*(PID\S*)", argument):
            if not name.lower().endswith("pid") or name.lower().endswith("ppid"):
                raise InvalidParameter(f'specifying "{name}={title}" is not allowed')


def parse_table(text: str, pids: Collection[int]) -> ProcessTable:
    """Cut the output of ps into columns and keep these processes. Pure. Raises InvalidParameter."""
    lines = text.splitlines()
    titles = tuple(lines[0].split()) if lines else ()
    if "PID" not in titles:
        raise InvalidParameter("Couldn't find PID field in ps output")
    column = titles.index("PID")
    wanted = {str(pid) for pid in pids}
    rows = []
    was_wanted = False
    for line in lines[1:]:
        fields = line.split(None, len(titles) - 1)
        if len(fields) <= column:
            continue
        # A thread of the process above it, with ps -m or -L, has "-" in place of the pid.
        was_wanted = was_wanted if fields[column] == "-" else fields[column] in wanted
        if was_wanted:
            rows.append(tuple(field.strip() for field in fields))
    return ProcessTable(titles=titles, rows=tuple(rows))

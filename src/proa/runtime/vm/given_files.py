# SPDX-License-Identifier: Apache-2.0
"""The files that the engine has put into a container (/etc/hosts and the like), while it runs.

The agent reads and writes them in place, by the container's own path. One that the container has covered,
replaced or removed is its own matter from then on.

Source: docs/reference/agent-protocol.md, FILES, LOAD and STORE.
"""

from __future__ import annotations

import anyio

from proa.model.errors import Internal, Unavailable
from proa.runtime.seam import FilesKind, FilesRequest, FileTask, StreamId

TIMEOUT_S = 20.0  # for a few kilobytes; the guest may be busy
MAX_BYTES = 512 * 1024
_DONE, _MISSING = 0, 2  # exit codes of FILES


async def load(task: FileTask, path: str) -> bytes | None:
    """Return the file's content; None when it is not the engine's any more.

    :raises Internal, Unavailable: the guest does not give it.
    """
    return await _do(task, FilesRequest(kind=FilesKind.LOAD, path=path))


async def store(task: FileTask, path: str, content: bytes) -> None:
    """Replace the file's content, if it is the engine's. Raises as ``load``."""
    if len(content) > MAX_BYTES:
        raise Internal(f"{path} is too large")
    await _do(task, FilesRequest(kind=FilesKind.STORE, path=path, content=content))


async def _do(task: FileTask, request: FilesRequest) -> bytes | None:
    """Return what the process printed; None when the file is missing."""
    process = await task.open_files(request)
    stdio = process.stdio
    assert stdio is not None
    parts = {StreamId.STDOUT: bytearray(), StreamId.STDERR: bytearray()}
    try:
        with anyio.fail_after(TIMEOUT_S):
            try:
                while sum(map(len, parts.values())) <= MAX_BYTES:
                    stream, data = await stdio.receive()
                    parts[stream] += data
            except anyio.EndOfStream:
                status = await process.wait()
            else:
                raise Internal(f"the virtual machine's {request.path} has no end")
    except TimeoutError as error:
        raise Unavailable(f"the virtual machine did not answer for its {request.path}") from error
    finally:
        with anyio.CancelScope(shield=True):  # each of them has an end of its own
            await stdio.aclose()
            await process.kill()
    if status.code == _MISSING:
        return None
    if status.code != _DONE:
        said = parts[StreamId.STDERR].decode(errors="replace").strip()
        raise Internal(f"the virtual machine could not serve its {request.path}: {said}")
    return bytes(parts[StreamId.STDOUT])

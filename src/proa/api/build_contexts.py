# SPDX-License-Identifier: Apache-2.0
"""The named contexts of POST /build: a parameter of ours, and what the body brings for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from proa.engine.building.request import BuildRequest, ContextSource
from proa.model.errors import InvalidParameter
from proa.wire import codec
from proa.wire.builds import CONTEXTS_PARAMETER
from proa.wire.sections import StreamReader


def take_contexts(
    wanted: BuildRequest, text: str, body: AsyncIterator[bytes]
) -> tuple[BuildRequest, AsyncIterator[bytes]]:
    """Return the request with its named contexts, and the build's own context.

    :param text: a JSON object from names to sources; "" for those whose tar the body brings, which has
        several streams then: the build's own context first.
    :raises InvalidParameter: it is none.
    """
    if not text:
        return wanted, body
    try:
        given = codec.decode(text, dict[str, str])
    except ValueError as error:
        raise InvalidParameter(f"error reading {CONTEXTS_PARAMETER}: {error}") from error
    if all(given.values()):
        return replace(wanted, contexts=given), body
    reader = StreamReader(body)
    contexts: dict[str, ContextSource] = {}
    number = 0
    for name, source in given.items():
        if source:
            contexts[name] = source
        else:
            number += 1
            contexts[name] = _opener(reader, number)
    return replace(wanted, contexts=contexts), _stream(reader, 0)


def _opener(reader: StreamReader, number: int) -> Callable[[], AsyncIterator[bytes]]:
    return lambda: _stream(reader, number)


async def _stream(reader: StreamReader, number: int) -> AsyncIterator[bytes]:
    try:
        async for piece in reader.read(number):
            yield piece
    except ValueError as error:
        raise InvalidParameter(f"the contexts are broken: {error}") from error

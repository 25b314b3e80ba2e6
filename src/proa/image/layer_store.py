# SPDX-License-Identifier: Apache-2.0
"""What images need of the place where layers are stored. ``proa.storage.layers`` is the implementation."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

from proa.model.ids import Digest

OnRead = Callable[[int], None]
"""Told now and then how many bytes of the blob have been read."""


class AddedLayer(Protocol):
    """A layer that is stored, durably."""

    @property
    def diff_id(self) -> Digest: ...

    @property
    def size_bytes(self) -> int:
        """Of the content, uncompressed."""
        ...

    @property
    def disk_bytes(self) -> int:
        """That the layer takes where it is stored."""
        ...


class LayerStore(Protocol):
    """Layers by diff id."""

    async def add(
        self, blob: Path, *, expected: Digest | None = None, on_progress: OnRead | None = None
    ) -> AddedLayer:
        """Store the layer whose tar, compressed or not, is in ``blob``. Idempotent; on failure nothing stays.
        Concurrent calls for one layer share the work; ``on_progress`` is told of it by the one that does it.

        Raises InvalidParameter when the tar is broken or is not the one expected.
        """
        ...

    def exists(self, diff_id: Digest) -> bool: ...

    async def remove(self, diff_ids: Collection[Digest]) -> None:
        """Delete layers that nothing uses. One that is not there is no error."""
        ...

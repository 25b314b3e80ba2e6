# SPDX-License-Identifier: Apache-2.0
"""Finds the steps of a stage in the cache, or stores what they made, in the image store and in the cache."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

from proa.build.cache import CachedStep, step_key
from proa.build.parser import Stage
from proa.engine.building.attending import StageWatch
from proa.engine.building.state import StageState, now_text
from proa.engine.building.surroundings import Surroundings, Tools
from proa.engine.building.transcript import Voice
from proa.image.catalog import LayerRecord
from proa.image.content import Spooled
from proa.image.store import Session
from proa.storage.files.trees import PackedLayer

WriteLayer = Callable[[int, int], Awaitable[PackedLayer]]
"""Writes a layer's tar to the first descriptor, its image to the second."""


class Recorder:
    """Of one stage being built. What is found or stored is entered in the stage's state."""

    def __init__(
        self,
        tools: Tools,
        around: Surroundings,
        stage: Stage,
        session: Session,
        voice: Voice,
        watch: StageWatch,
    ) -> None:
        request = around.request
        self._asks_cache = not (request.no_cache or stage.name in request.no_cache_stages)
        self._tools = tools
        self._around = around
        self._session = session
        self._voice = voice
        self._watch = watch

    def note(self, state: StageState, created_by: str) -> None:
        """Enter a step without a layer, with the time it was first made."""
        key = step_key("note", state.key, created_by)
        known = self.find(state, key, created_by, layered=False)
        if known is None:
            known = self._tools.cache.put(key, description=created_by, created=now_text())
        state.add(created_by, known.created, None)

    def find(self, state: StageState, key: str, created_by: str, *, layered: bool) -> CachedStep | None:
        """Look for a step in the cache, then in the images of ``--cache-from``.

        :param layered: the step may have a layer.
        """
        if not self._asks_cache:
            return None
        known = self._tools.cache.find(key)
        if known is None:
            known = self._find_in_images(state, key, created_by, layered=layered)
        return known

    def _find_in_images(
        self, state: StageState, key: str, created_by: str, *, layered: bool
    ) -> CachedStep | None:
        """Look for the step in the images of ``--cache-from``: one that began as this stage did, and went on
        with it."""
        past = [step.created_by for step in state.history]
        for image in self._around.cache_sources:
            steps = image.history
            if len(steps) <= len(past) or steps[len(past)].created_by != created_by:
                continue
            if [step.created_by for step in steps[: len(past)]] != past:
                continue
            below = sum(1 for step in steps[: len(past)] if not step.empty_layer)
            if image.layers[:below] != state.diff_ids:
                continue
            step = steps[len(past)]
            if step.empty_layer:
                return self._tools.cache.put(key, description=created_by, created=step.created)
            if not layered or below >= len(image.layers):
                continue
            diff_id = image.layers[below]
            blob = self._tools.images.store.catalog.find_blob(diff_id)
            if blob is not None:
                return self._tools.cache.put(
                    key,
                    description=created_by,
                    created=step.created,
                    layer=LayerRecord(diff_id=diff_id, blob=blob),
                    size_bytes=image.layer_sizes.get(diff_id, 0),
                )
        return None

    async def take(self, state: StageState, known: CachedStep, created_by: str) -> bool:
        """Take a step from the cache; False when its layer is gone."""
        if known.layer is not None:
            held = await self._session.hold_stored(known.layer)
            if not held:
                return False
        self._voice.say(" ---> Using cache\n")
        self._watch.cached()
        state.add(created_by, known.created, known.layer)
        return True

    async def layered(self, state: StageState, key: str, created_by: str, write: WriteLayer) -> None:
        """Take the step from the cache, or have it done."""
        known = self.find(state, key, created_by, layered=True)
        if known is not None and await self.take(state, known, created_by):
            return
        await self.store(state, key, created_by, write)

    async def store(self, state: StageState, key: str, created_by: str, write: WriteLayer) -> None:
        """Have the step's layer written and stored; enter it in the stage and in the cache."""
        images = self._tools.images.store
        layer: LayerRecord | None = None
        async with images.open_spool() as spool, self._tools.trees.open_new_layer() as new:
            path, out = spool.open_file()
            try:
                packed = await write(out, new.image)
            finally:
                os.close(out)
            if not packed.is_empty:
                spooled = Spooled(path=path, digest=packed.diff_id, size=packed.size_bytes)
                blob = await self._session.keep(spooled)
                layer = await self._session.adopt_layer(blob, packed.diff_id, new.keep)
        step = self._tools.cache.put(
            key,
            description=created_by,
            created=now_text(),
            layer=layer,
            size_bytes=packed.size_bytes if layer else 0,
        )
        state.add(created_by, step.created, layer)

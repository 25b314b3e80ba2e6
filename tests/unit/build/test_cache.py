# SPDX-License-Identifier: Apache-2.0
"""The book of steps survives the daemon and forgets what it is told to."""

from __future__ import annotations

from pathlib import Path

from proa.build.cache import BuildCache, step_key
from proa.host.database import Database
from proa.image.catalog import LayerRecord
from proa.model.ids import Digest

LAYER = LayerRecord(diff_id=Digest("sha256:" + "a" * 64), blob=Digest("sha256:" + "b" * 64))


def test_steps_are_kept(tmp_path: Path) -> None:
    with Database(tmp_path / "db") as db:
        cache = BuildCache(db)
        cache.put("one", description="RUN a", created="t1", layer=LAYER, size_bytes=5)
        cache.put("two", description="ENV a", created="t2")
        assert cache.find("three") is None
    with Database(tmp_path / "db") as db:
        cache = BuildCache(db)
        found = cache.find("one")
        assert found is not None
        assert (found.layer, found.created, found.size_bytes, found.uses) == (LAYER, "t1", 5, 1)
        assert [step.key for step in cache.steps()] == ["two", "one"], "the one just used comes last"
        assert list(cache.layers()) == [LAYER]
        cache.drop_lost(lambda diff_id: False)
        assert cache.find("one") is None
        cache.remove(["two", "never"])
        assert cache.steps() == []


def test_keys_differ_by_structure() -> None:
    assert step_key("a", ["b"]) != step_key("a", "b")
    assert step_key(["a", "b"], []) != step_key(["a"], ["b"])
    assert step_key("a\udc80") == step_key("a\udc80")

# SPDX-License-Identifier: Apache-2.0
"""Blobs on their way: resumed, replaced, pruned; and never the ruin of a blob that is stored."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path

import pytest

from proa.host.database import Database
from proa.image.content import ContentStore
from proa.image.partials import KEPT_S, PartialFile
from proa.image.sources import BlobSources
from proa.model.ids import Digest
from tests.support.images import sha256

DATA = b"0123456789" * 1000
DIGEST = sha256(DATA)


@pytest.fixture
def content(tmp_path: Path) -> ContentStore:
    store = ContentStore(tmp_path / "blobs")
    store.open()
    return store


def resume(content: ContentStore, digest: Digest, size: int) -> PartialFile:
    file = content.partials.resume(digest, size)
    while not file.catch_up():
        pass
    return file


def test_goes_on_where_it_stopped(content: ContentStore) -> None:
    with closing(resume(content, DIGEST, len(DATA))) as file:
        file.write(DATA[:4000])
        assert not file.is_right
    content.open()  # a new daemon
    with closing(resume(content, DIGEST, len(DATA))) as file:
        assert (file.offset, file.missing) == (4000, 6000)
        file.write(DATA[4000:])
        assert file.is_right
    assert not content.has(DIGEST)
    content.keep_partial(DIGEST)
    content.keep_partial(DIGEST)
    assert content.read(DIGEST, 1 << 20) == DATA


def test_wrong_content_is_never_right(content: ContentStore) -> None:
    with closing(resume(content, DIGEST, len(DATA))) as file:
        file.write(bytes(len(DATA)))
        assert (file.missing, file.is_right) == (0, False)
        file.restart()
        file.write(DATA)
        assert file.is_right


def test_a_stored_blob_survives_what_is_done_to_its_partial_file(content: ContentStore) -> None:
    with closing(resume(content, DIGEST, len(DATA))) as file:
        file.write(DATA)
    content.keep_partial(DIGEST)
    with closing(resume(content, DIGEST, 10)) as file:  # a manifest that lies about the size
        assert file.offset == 0
        file.write(b"evil")
    assert content.read(DIGEST, 1 << 20) == DATA
    content.partials.drop(DIGEST)
    content.partials.drop(DIGEST)
    assert content.read(DIGEST, 1 << 20) == DATA


def test_old_files_that_nobody_uses_are_pruned(content: ContentStore) -> None:
    partials = content.partials
    names = [Digest(f"sha256:{digit * 64}") for digit in "123"]
    for name in names:
        partials.resume(name, 10).close()
    old = time.time() - KEPT_S - 1
    for name in names[:2]:
        os.utime(partials.path(name), (old, old))
    with partials.using(names[0]):
        partials.prune(KEPT_S)
    assert [partials.path(name).exists() for name in names] == [True, False, True]
    content.open()
    assert [partials.path(name).exists() for name in names] == [False, False, True]


def test_sources(tmp_path: Path) -> None:
    diff, blob, other = (Digest(f"sha256:{digit * 64}") for digit in "abc")
    with Database(tmp_path / "db") as db:
        sources = BlobSources(db)
        sources.remember("r:5000/a", [(diff, blob, 7)])
        sources.remember("r:5000/b", [(diff, blob, 7), (diff, other, 9)])
        sources.remember("docker.io/library/a", [(diff, blob, 7)])
        assert sorted(sources.paths_of(blob, "r:5000")) == ["a", "b"]
        assert sources.paths_of(blob, "r") == []
        assert sorted(sources.blobs_of(diff, "r:5000")) == [(blob, 7), (other, 9)]
        assert sources.manifest_of(diff) is None
        sources.remember_manifest(diff, b"{}")
        sources.remember_manifest(diff, b"x" * (1 << 20))
        assert sources.manifest_of(diff) == b"{}"

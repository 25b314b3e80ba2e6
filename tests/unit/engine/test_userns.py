# SPDX-License-Identifier: Apache-2.0
"""Which ids containers get: ranges that never meet, modes, and what does not go with them."""

from __future__ import annotations

import pytest

from proa.engine.container import Container
from proa.engine.userns import DEFAULT_POOL, RANGE_SIZE, UserNamespaces, free_range
from proa.model.config import HostConfig
from proa.model.errors import Conflict, InvalidParameter, NoSuchContainer
from proa.model.task import IdMap
from tests.support.engine import Ground

pytestmark = pytest.mark.anyio

POOL = IdMap(uid=100_000, gid=500_000, size=1000)
REMAP = IdMap(uid=300_000, gid=300_000, size=RANGE_SIZE)


def nobody(ref: str) -> Container:
    raise NoSuchContainer(ref)


def at(offset: int, size: int) -> IdMap:
    return IdMap(uid=POOL.uid + offset, gid=POOL.gid + offset, size=size)


@pytest.mark.parametrize(
    ("taken", "size", "offset"),
    [
        ([], 10, 0),
        ([at(0, 10)], 10, 10),
        ([at(10, 10)], 10, 0),
        ([at(10, 10)], 11, 20),
        ([at(20, 10), at(0, 10)], 10, 10),
        ([at(0, 10), at(5, 10), at(40, 960)], 25, 15),
        ([at(990, 100)], 990, 0),
        ([IdMap(uid=1, gid=POOL.gid + 5, size=10)], 10, 15),  # of another pool: one half is enough
        ([IdMap(uid=1, gid=1, size=10)], 1000, 0),
    ],
)
def test_the_lowest_that_is_free(taken: list[IdMap], size: int, offset: int) -> None:
    assert free_range(POOL, taken, size) == at(offset, size)


@pytest.mark.parametrize("taken", [[at(0, 500)], [at(100, 1), at(600, 1)], [at(-10, 2000)]])
def test_none_is_left(taken: list[IdMap]) -> None:
    with pytest.raises(Conflict, match="no 501 user ids are left"):
        free_range(POOL, taken, 501)


def test_all_of_a_pool_and_each_once() -> None:
    taken: list[IdMap] = []
    for _ in range(100):
        taken.append(free_range(POOL, reversed(taken), 10))
    assert len({one.uid for one in taken}) == 100
    with pytest.raises(Conflict):
        free_range(POOL, taken, 10)


@pytest.mark.parametrize(
    "mode", ["auto:", "auto:size=", "auto:size=x", "auto:size=10,uid=1", "keep-id", "private", "auto:size=5"]
)
def test_modes_that_are_none(mode: str) -> None:
    with pytest.raises(InvalidParameter, match=f"invalid user namespace mode: {mode}"):
        UserNamespaces().check(HostConfig(userns_mode=mode), nobody, is_able=True)


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        (HostConfig(privileged=True), "privileged mode is incompatible with user namespaces"),
        (HostConfig(network_mode="host"), "cannot share the host's network namespace"),
        (HostConfig(pid_mode="host"), "cannot share the host PID namespace"),
        (HostConfig(ipc_mode="host"), "cannot share the host IPC namespace"),
    ],
)
def test_what_does_not_go_with_a_map(host: HostConfig, sentence: str) -> None:
    with pytest.raises(InvalidParameter, match=sentence):
        UserNamespaces(remap=REMAP).check(host, nobody, is_able=True)
    UserNamespaces().check(host, nobody, is_able=True)
    UserNamespaces(remap=REMAP).check(host, nobody, is_able=False)


def test_remap_is_for_all_that_say_nothing() -> None:
    daemon = UserNamespaces(remap=REMAP)
    assert daemon.choose(HostConfig(), [], is_able=True) == REMAP
    assert daemon.choose(HostConfig(), [], is_able=False) is None
    assert daemon.choose(HostConfig(userns_mode="host"), [], is_able=True) is None
    assert UserNamespaces().choose(HostConfig(), [], is_able=True) is None


def test_auto_keeps_out_of_the_remapped_range() -> None:
    daemon = UserNamespaces(pool=REMAP, remap=REMAP)
    with pytest.raises(Conflict):
        daemon.choose(HostConfig(userns_mode="auto"), [], is_able=True)


async def test_a_range_is_the_containers_until_it_is_removed(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        first = await daemon.create("first", host=HostConfig(userns_mode="auto"))
        await daemon.create("plain")
    async with ground.daemon() as daemon:  # another one, on the same disk
        second = await daemon.create("second", host=HostConfig(userns_mode="auto:size=10"))
        assert daemon.get(first.id).ids == IdMap(uid=DEFAULT_POOL.uid, gid=DEFAULT_POOL.gid, size=RANGE_SIZE)
        assert daemon.get("plain").ids is None
        assert second.ids == IdMap(
            uid=DEFAULT_POOL.uid + RANGE_SIZE, gid=DEFAULT_POOL.gid + RANGE_SIZE, size=10
        )
        await daemon.engine.containers.remove(first.id, force=True, volumes=False, link=False)
        third = await daemon.create("third", host=HostConfig(userns_mode="auto"))
        found = third.ids
        assert found is not None
        assert found.uid == DEFAULT_POOL.uid


async def test_another_namespace_cannot_be_joined(ground: Ground) -> None:
    async with ground.daemon() as daemon:
        await daemon.create("plain")
        with pytest.raises(InvalidParameter, match="it is not in the same user namespace"):
            await daemon.create("mapped", host=HostConfig(userns_mode="auto", network_mode="container:plain"))

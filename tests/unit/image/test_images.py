# SPDX-License-Identifier: Apache-2.0
"""Finding, listing, naming and removing images, in Docker's words."""

from __future__ import annotations

import pytest

from proa.image.config import chain_ids, parse_config
from proa.model.errors import Conflict, InvalidParameter, NoSuchImage, ResourceInUse
from proa.model.ids import Digest, short
from proa.model.image import Image
from tests.support.images import docker_files, make_config, make_layer, make_tar, sha256
from tests.unit.image.conftest import MakeRig, Rig

pytestmark = pytest.mark.anyio

ONE, TWO, THREE = make_layer("one"), make_layer("two"), make_layer("three")
RUNNING = [("c" * 64, True)]
STOPPED = [("d" * 64, False)]


def nobody(image_id: Digest) -> list[tuple[str, bool]]:
    return []


async def load(rig: Rig, *layers: bytes, names: tuple[str, ...] = (), **keys: object) -> Image:
    config = make_config(layers, **keys)  # type: ignore[arg-type]
    await rig.load(make_tar(docker_files(layers, names, config)))
    return rig.images.get(sha256(config))


async def test_get_by_every_kind_of_reference(make_rig: MakeRig) -> None:
    rig = await make_rig()
    image = await load(rig, ONE, names=("busybox:latest", "localhost:5000/x:1"))
    digits = image.id.removeprefix("sha256:")
    refs = ["busybox", "busybox:latest", "docker.io/library/busybox", "localhost:5000/x:1"]
    for ref in [*refs, image.id, digits, digits[:12], digits[:3], f"sha256:{digits[:8]}"]:
        assert rig.images.get(ref).id == image.id


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("foo", "No such image: foo:latest"),
        ("docker.io/library/foo:1", "No such image: foo:1"),
        ("busybox:2", "No such image: busybox:2"),
        ("a" * 64, f"No such image: sha256:{'a' * 64}"),
        (f"busybox@sha256:{'a' * 64}", f"No such image: busybox@sha256:{'a' * 64}"),
    ],
)
async def test_no_such_image(make_rig: MakeRig, ref: str, message: str) -> None:
    rig = await make_rig()
    await load(rig, ONE, names=("busybox:latest",))
    with pytest.raises(NoSuchImage) as caught:
        rig.images.get(ref)
    assert caught.value.message == message


async def test_an_ambiguous_prefix(make_rig: MakeRig) -> None:
    rig = await make_rig()
    images = [await load(rig, ONE, comment=str(number)) for number in range(20)]
    firsts = [image.id[7] for image in images]
    twice = next(digit for digit in firsts if firsts.count(digit) > 1)
    with pytest.raises(InvalidParameter, match="ambiguous"):
        rig.images.get(twice)
    with pytest.raises(InvalidParameter, match="invalid reference format"):
        rig.images.get("")


async def test_a_name_wins_over_an_id_prefix(make_rig: MakeRig) -> None:
    rig = await make_rig()
    one, two = await load(rig, ONE), await load(rig, TWO)
    await rig.images.tag(one.id, two.id[7:11])
    assert rig.images.get(two.id[7:11]).id == one.id


async def test_tag_moves_a_name(make_rig: MakeRig) -> None:
    rig = await make_rig()
    one, two = await load(rig, ONE, names=("a:1",)), await load(rig, TWO)
    rig.events.clear()
    await rig.images.tag("a:1", "me/b")
    await rig.images.tag(two.id, "a", "1")
    assert rig.images.get("me/b:latest").id == one.id
    assert rig.images.get("a:1").id == two.id
    assert rig.images.get(one.id).references == ("me/b:latest",)
    assert rig.images.get("a:1").last_tagged_at_ns > 0
    assert rig.events == [("tag", one.id, {"name": "me/b:latest"}), ("tag", two.id, {"name": "a:1"})]
    await rig.reopen()
    assert rig.images.get("a:1").id == two.id
    with pytest.raises(InvalidParameter, match=r"repository name \(library/B\) must be lowercase"):
        await rig.images.tag("a:1", "B")
    with pytest.raises(NoSuchImage):
        await rig.images.tag("nope", "b")


async def test_list_order_and_filters(make_rig: MakeRig) -> None:
    rig = await make_rig()
    old = await load(rig, ONE, names=("old:1", "me/old:2"), created="2020-01-01T00:00:00Z")
    new = await load(
        rig, TWO, names=("new:1",), created="2024-01-01T00:00:00Z", config={"Labels": {"a": "1", "b": ""}}
    )
    nameless = await load(rig, THREE, created="2022-01-01T00:00:00Z")

    def ids(**filters: str | list[str]) -> list[str]:
        lists = {
            name.replace("_not", "!"): [value] if isinstance(value, str) else value
            for name, value in filters.items()
        }
        return [image.id for image in rig.images.list(filters=lists)]

    assert ids() == [new.id, nameless.id, old.id]
    assert ids(dangling="true") == [nameless.id]
    assert ids(dangling="0") == [new.id, old.id]
    assert ids(label="a") == ids(label="a=1") == ids(label=["a", "b"]) == [new.id]
    assert ids(label="a=2") == ids(label=["a", "c"]) == []
    assert ids(label_not="a") == [nameless.id, old.id]
    assert ids(before="new:1") == [nameless.id, old.id]
    assert ids(since="old:1") == [new.id, nameless.id]
    assert ids(until="2021-01-01") == ids(until="1600000000") == [old.id]
    assert ids(until="10m") == [new.id, nameless.id, old.id]
    assert (
        ids(reference="old") == ids(reference="*:1", before="new:1") == ids(reference="o[a-m]d") == [old.id]
    )
    assert ids(reference=["new", "*/old"]) == [new.id, old.id]
    assert rig.images.list(filters={"reference": ["*/*"]})[0].references == ("me/old:2",)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"x": ["1"]}, "invalid filter 'x'"),
        ({"dangling": ["foo"]}, "invalid filter 'dangling=[foo]'"),
        ({"dangling": ["true", "false"]}, "invalid filter 'dangling=[true false]'"),
        ({"before": ["nope"]}, "No such image: nope:latest"),
        ({"reference": ["[a"]}, "syntax error in pattern"),
        ({"reference": ["a\\"]}, "syntax error in pattern"),
        ({"until": ["1", "2"]}, "more than one until filter specified"),
        ({"until": ["yesterday"]}, "neither a time nor a duration"),
    ],
)
async def test_bad_filters(make_rig: MakeRig, filters: dict[str, list[str]], message: str) -> None:
    rig = await make_rig()
    await load(rig, ONE, names=("a:1",))
    with pytest.raises((InvalidParameter, NoSuchImage)) as caught:
        rig.images.list(filters=filters)
    assert message in caught.value.message


async def test_history(make_rig: MakeRig) -> None:
    rig = await make_rig()
    history = [
        {"created": "1970-01-01T00:00:07Z", "created_by": "ADD one"},
        {"created": "1970-01-01T00:00:08Z", "created_by": "ENV A=1", "empty_layer": True},
        {"created": "1970-01-01T00:00:09.5Z", "created_by": "ADD two", "comment": "c"},
    ]
    image = await load(rig, ONE, TWO, names=("a:1",), history=history)
    missing = {"Id": "<missing>", "Tags": None}
    assert rig.images.history("a:1") == [
        {
            "Id": image.id,
            "Created": 9,
            "CreatedBy": "ADD two",
            "Tags": ["a:1"],
            "Size": len(TWO),
            "Comment": "c",
        },
        {**missing, "Created": 8, "CreatedBy": "ENV A=1", "Size": 0, "Comment": ""},
        {**missing, "Created": 7, "CreatedBy": "ADD one", "Size": len(ONE), "Comment": ""},
    ]


async def test_disk_usage_counts_shared_layers(make_rig: MakeRig) -> None:
    rig = await make_rig()
    await load(rig, ONE, TWO, names=("a:1",))
    await load(rig, ONE, names=("b:1",))
    usage = await rig.images.disk_usage()
    assert usage.layers_bytes == len(ONE) + len(TWO)
    assert {image.references[0]: shared for image, shared in usage.images} == {
        "a:1": len(ONE),
        "b:1": len(ONE),
    }
    assert usage.disk_bytes > usage.layers_bytes


# --- removing ---


async def test_removing_the_last_name_removes_the_image(make_rig: MakeRig) -> None:
    rig = await make_rig()
    image = await load(rig, ONE, TWO, names=("a:1", "b:1"))
    await load(rig, ONE, names=("c:1",))
    rig.events.clear()
    assert await rig.images.remove("a:1", used_by=nobody) == [{"Untagged": "a:1"}]
    assert await rig.images.remove("b:1", used_by=nobody) == [
        {"Untagged": "b:1"},
        {"Deleted": image.id},
        {"Deleted": chain_ids([sha256(ONE), sha256(TWO)])[1]},
    ]
    assert [event[0] for event in rig.events] == ["untag", "untag", "delete"]
    assert set(rig.layers.stored) == {sha256(ONE)}
    with pytest.raises(NoSuchImage):
        await rig.images.remove(image.id, used_by=nobody)
    await rig.reopen()
    assert [image.references for image in rig.images.list()] == [("c:1",)]


async def test_removing_by_id(make_rig: MakeRig) -> None:
    rig = await make_rig()
    image = await load(rig, ONE, names=("a:1",))
    assert await rig.images.remove(short(image.id), used_by=nobody) == [
        {"Untagged": "a:1"},
        {"Deleted": image.id},
        {"Deleted": sha256(ONE)},
    ]
    assert rig.files() == set()


async def test_removing_by_id_with_two_names(make_rig: MakeRig) -> None:
    rig = await make_rig()
    image = await load(rig, ONE, names=("a:1", "b:1"))
    with pytest.raises(Conflict) as caught:
        await rig.images.remove(image.id, used_by=nobody)
    assert caught.value.message == (
        f"conflict: unable to delete {short(image.id)} (must be forced) - "
        "image is referenced in multiple repositories"
    )
    assert rig.images.get("a:1").references == ("a:1", "b:1")
    records = await rig.images.remove(image.id, force=True, used_by=nobody)
    assert records[:2] == [{"Untagged": "a:1"}, {"Untagged": "b:1"}]
    assert rig.images.list(all=True) == []


async def test_a_name_in_use_must_be_forced(make_rig: MakeRig) -> None:
    rig = await make_rig()
    image = await load(rig, ONE, names=("a:1",))
    for users in (RUNNING, STOPPED):
        with pytest.raises(ResourceInUse) as caught:
            await rig.images.remove("a:1", used_by=lambda image_id, users=users: users)  # type: ignore[misc]
        assert caught.value.message == (
            f'conflict: unable to remove repository reference "a:1" (must force) - container '
            f"{users[0][0][:12]} is using its referenced image {short(image.id)}"
        )


async def test_one_of_two_names_goes_even_in_use(make_rig: MakeRig) -> None:
    rig = await make_rig()
    await load(rig, ONE, names=("a:1", "b:1"))
    assert await rig.images.remove("a:1", used_by=lambda image_id: RUNNING) == [{"Untagged": "a:1"}]


@pytest.mark.parametrize("force", [False, True])
async def test_an_image_of_a_running_container_stays(make_rig: MakeRig, force: bool) -> None:
    rig = await make_rig()
    image = await load(rig, ONE, names=("a:1",))
    with pytest.raises(ResourceInUse) as caught:
        await rig.images.remove(image.id, force=force, used_by=lambda image_id: RUNNING)
    assert caught.value.message == (
        f"conflict: unable to delete {short(image.id)} (cannot be forced) - "
        f"image is being used by running container {'c' * 12}"
    )
    # By name, force takes the name away and leaves the image.
    records = await rig.images.remove("a:1", force=True, used_by=lambda image_id: RUNNING)
    assert records == [{"Untagged": "a:1"}]
    assert rig.images.get(image.id).references == ()


async def test_an_image_of_a_stopped_container_keeps_its_layers_when_forced(make_rig: MakeRig) -> None:
    rig = await make_rig()
    image = await load(rig, ONE, names=("a:1",))
    with pytest.raises(ResourceInUse) as caught:
        await rig.images.remove(image.id, used_by=lambda image_id: STOPPED)
    assert caught.value.message == (
        f"conflict: unable to delete {short(image.id)} (must be forced) - "
        f"image is being used by stopped container {'d' * 12}"
    )
    records = await rig.images.remove("a:1", force=True, used_by=lambda image_id: STOPPED)
    assert records == [{"Untagged": "a:1"}, {"Deleted": image.id}]
    assert rig.images.list(all=True) == []
    with pytest.raises(NoSuchImage):
        rig.images.get(image.id)
    assert rig.layers.exists(sha256(ONE))
    await rig.reopen()
    assert rig.layers.exists(sha256(ONE))
    await rig.images.release("unknown")
    assert rig.layers.exists(sha256(ONE))
    await rig.images.release(STOPPED[0][0])
    assert rig.layers.stored == {}
    assert rig.files() == set()


async def test_a_removed_image_that_is_held_comes_back_when_loaded(make_rig: MakeRig) -> None:
    rig = await make_rig()
    image = await load(rig, ONE, names=("a:1",))
    await rig.images.remove("a:1", force=True, used_by=lambda image_id: STOPPED)
    assert (await load(rig, ONE, names=("a:1",))).id == image.id
    await rig.images.release(STOPPED[0][0])
    assert rig.images.get("a:1").id == image.id
    assert rig.layers.exists(sha256(ONE))


async def test_holds_of_containers_that_are_gone_are_released_at_start(make_rig: MakeRig) -> None:
    rig = await make_rig()
    await load(rig, ONE, names=("a:1",))
    await rig.images.remove("a:1", force=True, used_by=lambda image_id: STOPPED)
    await rig.reopen()
    await rig.images.release_all_but({STOPPED[0][0]})
    assert rig.layers.exists(sha256(ONE))
    await rig.images.release_all_but(set())
    assert rig.layers.stored == {}


async def build_child(rig: Rig, parent: Image) -> Image:
    """What a build does: an image on top of another."""
    child = await load(rig, ONE, TWO)
    await rig.images.remove(child.id, used_by=nobody)
    async with rig.images.store.open_session() as session:
        config = make_config([ONE, TWO])
        records = []
        for layer in (ONE, TWO):
            records.append(await session.add_layer(await session.put_blob(layer), sha256(layer)))
        return session.register(
            await session.put_blob(config), parse_config(config), records, parent=parent.id
        )


async def test_parents_and_children(make_rig: MakeRig) -> None:
    rig = await make_rig()
    parent = await load(rig, ONE)
    child = await build_child(rig, parent)
    await rig.images.tag(child.id, "child")
    assert [image.id for image in rig.images.list()] == [child.id]
    assert {image.id for image in rig.images.list(all=True)} == {child.id, parent.id}
    assert [step["Id"] for step in rig.images.history("child")] == [child.id, parent.id]
    with pytest.raises(Conflict, match=r"\(cannot be forced\) - image has dependent child images"):
        await rig.images.remove(parent.id, force=True, used_by=nobody)
    records = await rig.images.remove("child", used_by=nobody)
    assert {"Deleted": parent.id} in records
    assert rig.files() == set()


async def test_prune(make_rig: MakeRig) -> None:
    rig = await make_rig()
    await load(rig, ONE, names=("named:1", "named:2"))
    dangling = await load(rig, TWO)
    used = await load(rig, THREE)

    def used_by(image_id: Digest) -> list[tuple[str, bool]]:
        return STOPPED if image_id == used.id else []

    with pytest.raises(InvalidParameter, match="invalid filter 'reference'"):
        await rig.images.prune({"reference": ["x"]}, used_by=used_by)
    records, freed = await rig.images.prune({"label": ["x"]}, used_by=used_by)
    assert (records, freed) == ([], 0)
    records, freed = await rig.images.prune({}, used_by=used_by)
    assert records == [{"Deleted": dangling.id}, {"Deleted": sha256(TWO)}]
    assert freed == len(TWO)
    assert rig.events[-1] == ("prune", "", {"reclaimed": str(len(TWO))})
    records, freed = await rig.images.prune({"dangling": ["false"]}, used_by=used_by)
    assert records[:2] == [{"Untagged": "named:1"}, {"Untagged": "named:2"}]
    assert [image.id for image in rig.images.list(all=True)] == [used.id]

# SPDX-License-Identifier: Apache-2.0
"""Which network card of a machine carries what, and how it comes from some networks to others."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

import msgspec
import pytest

from proa.model.errors import FeatureMissing, InvalidParameter
from proa.model.ids import NetworkId
from proa.model.task import Interface
from proa.runtime.vm import messages, nics, plugging
from proa.runtime.vm.forking import saved_of
from proa.runtime.vm.home import Pid, Record
from proa.runtime.vm.machine import Shape
from proa.runtime.vm.nics import MAX_NICS, SPARES, Card, plan_change

BOOT, SPARE, OTHER = (
    Card(is_spare=spare, number=number) for spare, number in ((False, 0), (True, 0), (True, 1))
)


def interface(device: str) -> Interface:
    return Interface(
        name=f"eth-{device}",
        device=device,
        network_id=NetworkId("n"),
        mac="02:42:0a:00:00:02",
        address=IPv4Interface("10.0.0.2/24"),
    )


def record(*devices: str, spares: tuple[str, ...] = ("", "")) -> Record:
    return Record(
        qemu=Pid(pid=1, start_time=1),
        fs_server=None,
        memory_bytes=0,
        vcpus=1,
        capabilities=0,
        no_new_privileges=False,
        tty=False,
        open_stdin=False,
        stdin_once=False,
        cgroup="",
        cards=devices,
        spares=spares,
    )


A, B, C = map(interface, "abc")


def test_cards_are_told_by_their_addresses() -> None:
    assert BOOT.mac.hex(":") == "02:70:72:6f:00:00"
    assert OTHER.mac.hex(":") == "02:70:72:6f:01:01"
    assert (BOOT.netdev, OTHER.netdev, OTHER.hub) == ("net0", "spare1", 1)


def test_there_are_as_many_cards_as_fit() -> None:
    shape = Shape(memory_bytes=0, vcpus=1, nics=1)
    assert nics.spares_for(shape) == SPARES
    assert nics.spares_for(replace(shape, nics=MAX_NICS - 1)) == 1
    assert nics.spares_for(replace(shape, nics=MAX_NICS)) == 0
    assert nics.spares_for(replace(shape, seats=1)) == 0
    with pytest.raises(FeatureMissing, match=f"more than {MAX_NICS} networks"):
        nics.check_number(MAX_NICS + 1)


def test_a_network_that_comes_takes_the_first_spare() -> None:
    change = plan_change(record("a"), [A, B])
    assert change is not None
    assert (change.gone, change.added, change.kept) == ((), ((SPARE, B),), ((BOOT, A),))


def test_a_network_that_goes_frees_a_spare_but_no_card_of_the_start() -> None:
    change = plan_change(record("a", spares=("b", "c")), [B])
    assert change is not None
    assert change.gone == ((BOOT, "a"), (OTHER, "c"))
    assert plan_change(record("a", spares=("b",)), [B, C]) is None
    moved = plan_change(record("a", spares=("b",)), [A, C])
    assert moved is not None and moved.added == ((SPARE, C),)


def test_too_many_are_refused_with_the_number() -> None:
    plugging.check_room(record("a"))
    with pytest.raises(FeatureMissing, match="to more than 2 further networks"):
        plugging.check_room(record("a", spares=("b", "c")))
    with pytest.raises(FeatureMissing, match="cards are fixed when it starts"):
        plugging.check_change(record(spares=()))
    plugging.check_change(record("a", spares=()))


def test_the_record_follows() -> None:
    assert nics.devices_after(record("a"), OTHER, "b") == (("a",), ("", "b"))
    assert nics.devices_after(record("a"), BOOT, "") == (("",), ("", ""))
    written = msgspec.json.encode(record("a", spares=("b",)))
    assert msgspec.json.decode(written, type=Record).spares == ("b",)


def test_what_the_guest_is_told() -> None:
    leading = replace(A, gateway=IPv4Address("10.0.0.1"))
    change = plan_change(record("a", spares=("c", "")), [leading, B])
    assert change is not None
    text = messages.network(change)
    assert text.count(SPARE.mac) == 2  # it goes, and comes with another network
    assert text.index(b"10.0.0.1") > text.index(b"eth-b") > text.index(SPARE.mac)
    assert b"eth-a" not in text and b"eth-c" not in text


@pytest.mark.parametrize("changed", [record("a", spares=("b", "")), record("", "a")])
def test_a_machine_whose_networks_have_changed_is_not_copied(changed: Record) -> None:
    with pytest.raises(InvalidParameter, match="networks have been changed while it runs"):
        saved_of(changed)

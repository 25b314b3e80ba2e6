# SPDX-License-Identifier: Apache-2.0
"""The network cards of a machine by number, and what is behind each: those that it starts with, and spares.

A machine cannot be given a card while it runs (virtio-mmio has no hot plug), so it has some to spare. A card
that it starts with has its tap as back end, for good: once the tap is gone it serves no more. A spare is a
port of a hub of its own, which a tap joins when a network is connected, and leaves again.

The guest's agent tells cards by their permanent MAC addresses, of which the fifth byte says whether it is a
spare. On the network they have others.

Source: QEMU invocation, -netdev hubport; hw/i386/microvm.c (24 transports); docs/decisions/0043.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proa.model.errors import FeatureMissing
from proa.model.task import Interface
from proa.runtime.vm.home import Record
from proa.runtime.vm.machine import Shape

SPARES = 4  # each costs a machine 0.2 MB, and its start nothing that could be measured
# Of the 24 devices of a microvm three are disks, one the serial ports; interrupts of the last one get lost.
MAX_NICS = 19
_MAC_PREFIX = bytes((0x02, *b"pro"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One card. ``number`` counts the spares for themselves."""

    is_spare: bool
    number: int

    @property
    def mac(self) -> bytes:
        """The permanent one."""
        return _MAC_PREFIX + bytes((int(self.is_spare), self.number))

    @property
    def netdev(self) -> str:
        """What the card is connected to in QEMU."""
        return f"spare{self.number}" if self.is_spare else f"net{self.number}"

    @property
    def hub(self) -> int:
        """Of a spare."""
        return self.number

    @property
    def tap(self) -> str:
        """The id that QEMU knows the tap of a connected spare by; its port of the hub is ``port``."""
        return f"{self.netdev}-tap"

    @property
    def port(self) -> str:
        return f"{self.netdev}-port"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How a machine comes from the networks that it is on to others.

    :ivar gone: cards that no network is behind any more, with the devices that were.
    :ivar added: interfaces that it gets, and by which cards.
    :ivar kept: the others.
    """

    gone: tuple[tuple[Card, str], ...]
    added: tuple[tuple[Card, Interface], ...]
    kept: tuple[tuple[Card, Interface], ...]


def check_number(count: int) -> None:
    """Raise FeatureMissing for more networks than a machine can have cards."""
    if count > MAX_NICS:
        raise FeatureMissing("vm", f"more than {MAX_NICS} networks", "its machine has room for so many cards")


def spares_for(shape: Shape) -> int:
    """Return how many spares a machine has. One that containers share has no room for any."""
    return 0 if shape.seats else max(0, min(SPARES, MAX_NICS - shape.nics))


def plan_change(record: Record, wanted: Sequence[Interface]) -> Change | None:
    """Return what is to be done; None when the machine has too few cards."""
    slots = _slots(record)
    devices = {interface.device: interface for interface in wanted}
    gone = [(card, device) for card, device in slots if device and device not in devices]
    kept = [(card, devices[device]) for card, device in slots if device in devices]
    known = {interface.device for _card, interface in kept}
    new = [interface for interface in wanted if interface.device not in known]
    gone_spares = {card for card, _device in gone}
    free = [card for card, device in slots if card.is_spare and (not device or card in gone_spares)]
    if len(new) > len(free):
        return None
    return Change(gone=tuple(gone), added=tuple(zip(free, new, strict=False)), kept=tuple(kept))


def free_spares(record: Record) -> int:
    """Return how many networks could be connected now."""
    return record.spares.count("")


def devices_after(record: Record, card: Card, device: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the record's ``cards`` and ``spares`` once ``device`` ("": none) is behind a card."""
    sides = [list(record.cards), list(record.spares)]
    sides[card.is_spare][card.number] = device
    return tuple(sides[0]), tuple(sides[1])


def _slots(record: Record) -> list[tuple[Card, str]]:
    return [
        (Card(is_spare=is_spare, number=number), device)
        for is_spare, devices in ((False, record.cards), (True, record.spares))
        for number, device in enumerate(devices)
    ]

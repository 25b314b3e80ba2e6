# SPDX-License-Identifier: Apache-2.0
"""Connects a running machine to networks, and disconnects it.

    leave   the tap's back end is taken from QEMU, the guest puts the card away
    join    the tap joins the hub of a spare card, the guest gives that its name, addresses and routes

What is behind each card is in the machine's record, written before a tap is given to QEMU: a later daemon
goes on from there. What keeps a guest off a network is the host's side alone (the tap is no port of the
bridge any more, and then gone); a guest that does not answer keeps nothing.

Source: QMP, netdev_add, netdev_del, getfd; docs/reference/agent-protocol.md, NETWORK.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence

import msgspec

from proa.host.tap import open_tap
from proa.model.errors import EngineError, FeatureMissing, Internal
from proa.model.task import Interface
from proa.runtime.vm import messages, nics
from proa.runtime.vm.channel import AgentError, Channel
from proa.runtime.vm.home import Home, Record
from proa.runtime.vm.monitor import Monitor, MonitorError, greeted_monitor
from proa.runtime.vm.nics import Card, Change
from proa.runtime.vm.protocol import FrameType

TIMEOUT_S = 20.0  # 10 ms here; under emulation a NIC that is used for the first time takes some more
_FD = "tap"

log = logging.getLogger(__name__)


def check_change(record: Record) -> None:
    """Raise FeatureMissing when the machine's networks cannot change: it shares its cards, or is of old."""
    if not record.cards and not record.spares:
        raise FeatureMissing(
            "vm",
            "connecting or disconnecting this running container",
            "its network cards are fixed when it starts: stop it, change them, and start it again",
        )


def check_room(record: Record) -> None:
    """Raise FeatureMissing when no further network can be connected."""
    check_change(record)
    if nics.free_spares(record) == 0:
        raise _too_many(record)


async def change_networks(
    home: Home, record: Record, channel: Channel, wanted: Sequence[Interface], *, is_paused: bool
) -> Record:
    """Make the machine's interfaces these; return its record as it is then.

    :param is_paused: the guest hears of it when it goes on.

    On failure it is on none that it was not on before, and the record in ``home`` says what is.

    :raises FeatureMissing: it has too few cards.
    :raises Internal, OutcomeUnknown, Unavailable: QEMU or the agent could not do it.
    """
    change = nics.plan_change(record, wanted)
    if change is None:
        raise _too_many(record)
    if not change.gone and not change.added:
        return record
    async with greeted_monitor(home.monitor) as monitor:
        for card, _device in change.gone:
            await _take_out(monitor, card)
            record = _note(home, record, card, "")
        try:
            for card, interface in change.added:
                record = _note(home, record, card, interface.device)
                await _put_in(monitor, card, interface.device)
            await _tell_guest(channel, change, is_paused=is_paused)
        except BaseException:
            for card, _interface in change.added:
                with contextlib.suppress(EngineError):
                    await _take_out(monitor, card)
                    record = _note(home, record, card, "")
            raise
    return record


def _too_many(record: Record) -> FeatureMissing:
    return FeatureMissing(
        "vm",
        f"connecting a running container to more than {len(record.spares)} further networks",
        "its machine starts with so many network cards to spare: stop it, connect it, and start it again",
    )


def _note(home: Home, record: Record, card: Card, device: str) -> Record:
    boot, spares = nics.devices_after(record, card, device)
    record = msgspec.structs.replace(record, cards=boot, spares=spares)
    home.write(record)
    return record


async def _put_in(monitor: Monitor, card: Card, device: str) -> None:
    await _take_out(monitor, card)  # what a daemon that died had begun
    try:
        fd = open_tap(device)
    except OSError as error:
        raise Internal(f"cannot open the network device {device}: {error}") from error
    try:
        await monitor.execute("getfd", {"fdname": _FD}, fd=fd)
    finally:
        os.close(fd)
    await monitor.execute("netdev_add", {"type": "tap", "id": card.tap, "fd": _FD})
    port = {"type": "hubport", "id": card.port, "hubid": card.hub, "netdev": card.tap}
    await monitor.execute("netdev_add", port)


async def _take_out(monitor: Monitor, card: Card) -> None:
    for netdev in (card.port, card.tap) if card.is_spare else (card.netdev,):
        with contextlib.suppress(MonitorError):  # it is not there
            await monitor.execute("netdev_del", {"id": netdev})


async def _tell_guest(channel: Channel, change: Change, *, is_paused: bool) -> None:
    try:
        if is_paused:
            channel.post(FrameType.NETWORK, messages.network(change))
        else:
            await channel.request(FrameType.NETWORK, messages.network(change), timeout_s=TIMEOUT_S)
    except (AgentError, EngineError) as error:
        if not change.added:
            log.warning("a machine was taken off a network, but its guest could not be told: %s", error)
        elif isinstance(error, AgentError):
            raise Internal(f"the virtual machine could not join the network: {error.message}") from error
        else:
            raise

# SPDX-License-Identifier: Apache-2.0
"""The store, the seed of cloud-init, the console's log and clients, and what dnsmasq is told."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import anyio
import msgspec
import pytest

from proa.host.database import Database
from proa.machines.console import CLIENT_BYTES, BoundedLog, SerialConsole
from proa.machines.dhcp import Lease, command
from proa.machines.seed import MAX_USER_DATA_BYTES, meta_data, user_data
from proa.machines.store import MachineStore, NoSuchMachine
from proa.model.errors import InvalidParameter, NameInUse
from proa.model.machine import CloudInit, Machine, MachineConfig, MachineId, MachineState

MACHINE = Machine(
    id=MachineId("ab" * 32),
    name="one",
    created_at_ns=1,
    config=MachineConfig(kernel="/k"),
    state=MachineState.CREATED,
)
KEY = "ssh-ed25519 AAAA me@here"


# --- store ---


def test_records_survive_the_daemon(tmp_path: Path) -> None:
    with Database(tmp_path / "db") as db:
        store = MachineStore(db)
        store.add(MACHINE)
        store.put(msgspec.structs.replace(MACHINE, name="two", state=MachineState.RUNNING))
    with Database(tmp_path / "db") as db:
        store = MachineStore(db)
        assert [one.name for one in store] == ["two"]
        assert store.get("two").state is MachineState.RUNNING
        assert store.get("abab").id == MACHINE.id
        store.drop(MACHINE.id)
        with pytest.raises(NoSuchMachine, match="No such virtual machine: two"):
            store.get("two")


def test_a_name_is_given_once(tmp_path: Path) -> None:
    with Database(tmp_path / "db") as db:
        store = MachineStore(db)
        store.add(MACHINE)
        with pytest.raises(NameInUse):
            store.add(msgspec.structs.replace(MACHINE, id=MachineId("cd" * 32)))
        store.add(msgspec.structs.replace(MACHINE, id=MachineId("ab" * 31 + "cd"), name="two"))
        with pytest.raises(InvalidParameter, match="Multiple IDs"):
            store.get("abab")


# --- seed ---


def test_user_data_of_options() -> None:
    wanted = CloudInit(user="me", ssh_keys=[KEY], password="secret", packages=["nginx"])
    text = user_data(wanted).decode()
    assert text.startswith("#cloud-config\n")
    document = json.loads(text.partition("\n")[2])
    assert document["users"][1]["ssh_authorized_keys"] == [KEY]
    assert document["users"][1]["plain_text_passwd"] == "secret"
    assert document["packages"] == ["nginx"]
    hashed = json.loads(user_data(CloudInit(user="me", password="$6$x")).decode().partition("\n")[2])
    assert hashed["users"][1]["hashed_passwd"] == "$6$x"


def test_user_data_of_the_users_own() -> None:
    assert user_data(CloudInit(user_data="#!/bin/sh\n")) == b"#!/bin/sh\n"
    assert json.loads(meta_data(MACHINE.id, "h"))["local-hostname"] == "h"


@pytest.mark.parametrize(
    "wanted",
    [
        CloudInit(user_data="x", user="me"),
        CloudInit(user_data="x" * (MAX_USER_DATA_BYTES + 1)),
        CloudInit(ssh_keys=["no key"[:2]]),
        CloudInit(ssh_keys=[f"{KEY}\nusers: []"]),
    ],
)
def test_user_data_that_is_refused(wanted: CloudInit) -> None:
    with pytest.raises(InvalidParameter):
        user_data(wanted)


# --- console ---


def test_a_flood_fills_two_files(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "log", limit=1000)
    for number in range(500):
        log.append(f"{number:09d}\n".encode())
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2000
    assert log.read().splitlines()[-1] == b"000000499"


def test_a_log_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "missing" / "log")
    log.append(b"x")
    assert log.read() == b""


@pytest.mark.anyio
async def test_a_client_that_does_not_read_keeps_the_end(tmp_path: Path) -> None:
    console = SerialConsole(tmp_path / "console", BoundedLog(tmp_path / "log"))
    client = console.open()
    client.feed(b"a" * CLIENT_BYTES)
    client.feed(b"end")
    _, data = await client.receive()
    assert len(data) == CLIENT_BYTES
    assert data.endswith(b"end")
    with pytest.raises(anyio.BrokenResourceError):
        await client.send(b"x")  # nobody is connected
    await client.aclose()
    with pytest.raises(anyio.EndOfStream):
        await client.receive()


# --- addresses ---


def test_each_card_is_told_its_own() -> None:
    leases = [
        Lease(
            mac="52:54:00:00:00:01",
            address=IPv4Interface("172.18.0.2/16"),
            hostname="one",
            router=IPv4Address("172.18.0.1"),
            servers=("172.18.0.1",),
        ),
        Lease(mac="52:54:00:00:00:02", address=IPv4Interface("172.18.0.3/16"), hostname="two", router=None),
    ]
    words = command("br0", leases, Path("/x/br0.pid"))
    assert "--port=0" in words
    assert "--interface=br0" in words
    assert "--dhcp-range=172.18.0.0,static,255.255.0.0,3600" in words
    assert "--dhcp-host=52:54:00:00:00:01,set:m0,172.18.0.2,one,3600" in words
    assert "--dhcp-option=tag:m0,option:router,172.18.0.1" in words
    assert "--dhcp-option=tag:m1,option:router" in words
    assert "--dhcp-option=tag:m1,option:dns-server" in words

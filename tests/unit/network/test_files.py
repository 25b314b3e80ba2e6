# SPDX-License-Identifier: Apache-2.0
"""/etc/resolv.conf and /etc/hosts of containers."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from proa.model.errors import InvalidParameter
from proa.network import files

HOST = files.ResolvConf(nameservers=("10.0.0.53",), search=("corp.example",), options=("edns0",))
RESOLVER = IPv4Address("172.18.0.1")


def test_a_resolv_conf_is_read_as_libc_does() -> None:
    text = (
        "# c\nnameserver 10.0.0.1 # x\nnameserver ::1\nsearch a b\ndomain c\noptions x y\noptions z\n;\nbad\n"
    )
    assert files.parse_resolv_conf(text) == files.ResolvConf(
        nameservers=("10.0.0.1", "::1"), search=("c",), options=("x", "y", "z")
    )


def test_what_only_the_host_can_reach_is_dropped() -> None:
    conf = files.ResolvConf(nameservers=("127.0.0.53", "::1", "nonsense", "fe80::1%eth0", "10.0.0.1"))
    assert files.without_loopback(conf).nameservers == ("fe80::1%eth0", "10.0.0.1")


def test_the_default_network_has_the_hosts_servers() -> None:
    expected = b"nameserver 10.0.0.53\nsearch corp.example\noptions edns0\n"
    assert files.resolv_conf(host=HOST) == expected


def test_a_network_with_names_is_asked_alone_and_first() -> None:
    expected = b"nameserver 172.18.0.1\nsearch corp.example\noptions edns0 ndots:0\n"
    assert files.resolv_conf(host=HOST, resolvers=[RESOLVER]) == expected


def test_what_the_user_asks_for_replaces_what_the_host_has() -> None:
    text = files.resolv_conf(
        host=HOST, resolvers=[RESOLVER], dns=["9.9.9.9"], search=["s"], options=["ndots:2"]
    )
    assert text == b"nameserver 172.18.0.1\nnameserver 9.9.9.9\nsearch s\noptions ndots:2\n"
    assert files.resolv_conf(host=HOST, dns=["9.9.9.9"], search=["."]) == (
        b"nameserver 9.9.9.9\noptions edns0\n"
    )


def test_hosts_are_dockers_lines_then_the_users_then_the_container() -> None:
    text = files.hosts_file(
        addresses=[IPv4Address("172.17.0.2")],
        hostname="web",
        domainname="example.org",
        extra_hosts=["db:10.0.0.5", "up=host-gateway", "six:[2001:db8::1]"],
        host_gateway=IPv4Address("172.17.0.1"),
    ).decode()
    assert text.splitlines() == [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::\tip6-localnet",
        "ff00::\tip6-mcastprefix",
        "ff02::1\tip6-allnodes",
        "ff02::2\tip6-allrouters",
        "10.0.0.5\tdb",
        "172.17.0.1\tup",
        "2001:db8::1\tsix",
        "172.17.0.2\tweb.example.org web",
    ]


def test_a_container_without_a_network_has_no_line_of_its_own() -> None:
    assert files.hosts_file(addresses=[], hostname="h").decode().splitlines()[-1] == "ff02::2\tip6-allrouters"


@pytest.mark.parametrize(
    "entry", ["nocolon", ":10.0.0.1", "a:", "a:10.0.0.300", "a b:10.0.0.1", "a:x\n1.1.1.1 b"]
)
def test_a_malformed_extra_host_is_refused(entry: str) -> None:
    with pytest.raises(InvalidParameter, match="add-host"):
        files.hosts_file(addresses=[], hostname="h", extra_hosts=[entry])


def test_linked_peers_are_in_the_hosts_file_and_move_there() -> None:
    peers = [("db c0ffee store", [IPv4Address("172.17.0.2")])]
    before = files.hosts_file(addresses=[IPv4Address("172.17.0.3")], hostname="web", links=peers)
    assert before.endswith(b"172.17.0.2\tdb c0ffee store\n172.17.0.3\tweb\n")
    moved = files.peer_moved("db c0ffee store", [IPv4Address("172.17.0.9")])(before)
    assert moved == before.replace(b"172.17.0.2", b"172.17.0.9")
    assert files.peer_moved("db", [IPv4Address("10.0.0.1")])(b"# mine\n") == b"# mine\n10.0.0.1\tdb\n"

# SPDX-License-Identifier: Apache-2.0
"""Remove everything on the host that belongs to the networks of one exec root, without its daemon.

    python -m proa.network.teardown EXEC_ROOT

For tests, for uninstalling, and for a host where a daemon will not come back. Containers that run lose their
network. The database is not touched: a daemon that is started later makes its networks again.
"""

from __future__ import annotations

import json
import select
import sys
from pathlib import Path

from proa.host.netns import unbind
from proa.host.nftables import Nftables
from proa.host.rtnetlink import RouteSocket
from proa.network import rules
from proa.network.bridge import Bridges, table_name
from proa.network.names import connect
from proa.network.reaper import delete_devices

_RESOLVER_GRACE_S = 2.0


def teardown(exec_root: Path) -> None:
    """Remove resolvers, namespaces, devices and rules. Idempotent.

    :raises OSError: the kernel refuses, or privilege is missing.
    """
    _stop_resolver(exec_root / "dns")
    for path in _children(exec_root / "netns"):
        unbind(path)
    route = RouteSocket()
    try:
        delete_devices([link.name for link in Bridges(route, exec_root).strangers(set())])
    finally:
        route.close()
    nft = Nftables()
    try:
        name = table_name(exec_root)
        nft.run(rules.delete_table(name) + rules.delete_table(name, rules.IPV6))
        tables = [entry["table"] for entry in nft.list_ruleset() if "table" in entry]
        copies = [table for table in tables if table["name"].startswith(f"{name}_host_")]
        nft.run("".join(f"delete table {table['family']} {table['name']}\n" for table in copies))
    finally:
        nft.close()


def _stop_resolver(directory: Path) -> None:
    try:
        control = connect(directory)
    except OSError:
        return
    with control:
        control.send(json.dumps({"op": "end"}).encode())
        # It closes the connection when it ends.
        select.select([control], [], [], _RESOLVER_GRACE_S)


def _children(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


if __name__ == "__main__":
    teardown(Path(sys.argv[1]))

# SPDX-License-Identifier: Apache-2.0
"""Which proxy a request goes through, from the daemon's environment. Pure.

Source: Go, net/http.ProxyFromEnvironment, which Docker's users set HTTP_PROXY, HTTPS_PROXY and NO_PROXY for.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from proa.distribution.endpoints import host_name, is_loopback, parse_network
from proa.model.errors import InvalidParameter

_SCHEMES = frozenset({"http", "https"})


def choose_proxy(url: str, environment: Mapping[str, str]) -> str | None:
    """Return the proxy's URL for a request, None for a direct connection.

    The loopback is never asked for through a proxy.

    :raises InvalidParameter: the variable names a proxy of a kind that is not supported.
    """
    parts = urlsplit(url)
    name = f"{parts.scheme}_proxy"
    proxy = environment.get(name) or environment.get(name.upper()) or ""
    if not proxy or is_loopback(parts.netloc):
        return None
    exempt = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if any(_matches(parts.netloc, pattern.strip().lower()) for pattern in exempt.split(",")):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if urlsplit(proxy).scheme not in _SCHEMES:
        raise InvalidParameter(f"{name.upper()} must be a proxy of http:// or https://")
    return proxy


def _matches(host: str, pattern: str) -> bool:
    """``*``; a network; a host with or without a port; a domain with all below it (``.name``: only below)."""
    if not pattern:
        return False
    if pattern == "*" or pattern == host.lower():
        return True
    name = host_name(host)
    network = parse_network(pattern)
    if network is not None:
        wanted = parse_network(f"{name}/{128 if ':' in name else 32}")
        return wanted is not None and wanted.network_address in network
    bare = pattern.removeprefix("*")
    return name == bare or name.endswith(bare if bare.startswith(".") else f".{bare}")

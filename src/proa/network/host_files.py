# SPDX-License-Identifier: Apache-2.0
"""What the host's own resolver and hosts files say, which containers' are made from."""

from __future__ import annotations

from pathlib import Path

from proa.network.files import ResolvConf, parse_resolv_conf, without_loopback

HOSTS = Path("/etc/hosts")
RESOLV_CONF = Path("/etc/resolv.conf")
SYSTEMD_RESOLV_CONF = Path("/run/systemd/resolve/resolv.conf")  # the real servers behind 127.0.0.53


def read_hosts() -> str:
    """Return the host's hosts file, nothing when it has none."""
    return _read(HOSTS)


def read_resolv_conf(path: Path) -> ResolvConf:
    """Return the host's resolver settings; where it asks itself (systemd-resolved), those behind that."""
    conf = parse_resolv_conf(_read(path))
    if not without_loopback(conf).nameservers:
        behind = parse_resolv_conf(_read(SYSTEMD_RESOLV_CONF))
        if without_loopback(behind).nameservers:
            return behind
    return conf


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

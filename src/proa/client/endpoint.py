# SPDX-License-Identifier: Apache-2.0
"""Which daemon to speak to, and what to show it: options, environment and docker contexts.

First of these that is given: ``--host``, ``--context``, PROA_HOST, DOCKER_HOST, DOCKER_CONTEXT, the default
socket. The *current* context of ``~/.docker/config.json`` is not taken: it is the docker command's own
choice, and rarely points at proa.

Source: docker CLI reference, "Environment variables" and "docker context"; docker/cli, the layout of
``~/.docker/contexts``.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from proa.client.errors import ConnectionFailed

DEFAULT_HOST = "unix:///run/proa/proa.sock"


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Certificates of one daemon.

    :ivar ca: who has signed the daemon's; None trusts the authorities of this host.
    :ivar certificate: what we show, and its key; None shows nothing.
    :ivar verify: False takes any certificate of the daemon.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    verify: bool = True


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A daemon: unix:///path or tcp://host:port, and its certificates when it speaks TLS."""

    host: str = DEFAULT_HOST
    tls: TlsFiles | None = None

    @property
    def is_local(self) -> bool:
        return self.host.startswith("unix://")


def environment_endpoint() -> Endpoint:
    """Return what the environment names, else the default socket. Raises ConnectionFailed."""
    host = os.environ.get("PROA_HOST") or os.environ.get("DOCKER_HOST")
    context = os.environ.get("DOCKER_CONTEXT")
    if not host and context and context != "default":
        return context_endpoint(context)
    return host_endpoint(host or DEFAULT_HOST)


def host_endpoint(host: str, tls: TlsFiles | None = None) -> Endpoint:
    """Return a host's endpoint; without options the environment says whether it speaks TLS."""
    is_tcp = urlsplit(host).scheme in ("tcp", "https")
    if tls is None and is_tcp and (os.environ.get("DOCKER_TLS_VERIFY") or host.startswith("https:")):
        tls = folder_tls(certificate_folder())
    return Endpoint(host=host, tls=tls if is_tcp else None)


def certificate_folder() -> Path:
    """Return DOCKER_CERT_PATH, else docker's own folder."""
    return Path(os.environ.get("DOCKER_CERT_PATH") or docker_folder())


def docker_folder() -> Path:
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")


def folder_tls(folder: Path, *, verify: bool = True) -> TlsFiles:
    """Return those of ca.pem, cert.pem and key.pem that a folder has."""
    ca, certificate, key = (
        path if path.is_file() else None
        for path in (folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    )
    return TlsFiles(ca=ca, certificate=certificate, key=key, verify=verify)


class _ContextEndpoint(msgspec.Struct, rename="pascal"):
    host: str = ""
    skip_tls_verify: bool = msgspec.field(name="SkipTLSVerify", default=False)


class _ContextMeta(msgspec.Struct, rename="pascal"):
    endpoints: dict[str, _ContextEndpoint]


def context_endpoint(name: str) -> Endpoint:
    """Return the endpoint of a context made by ``docker context create``. Raises ConnectionFailed."""
    import hashlib  # brings OpenSSL, for which every other call of the command would wait

    folder = docker_folder() / "contexts"
    identity = hashlib.sha256(name.encode()).hexdigest()
    try:
        meta = msgspec.json.decode((folder / "meta" / identity / "meta.json").read_bytes(), type=_ContextMeta)
        found = meta.endpoints["docker"]
    except (OSError, msgspec.MsgspecError, KeyError) as error:
        raise ConnectionFailed(f"context {name}", "there is no such docker context") from error
    files = folder / "tls" / identity / "docker"
    tls = folder_tls(files, verify=not found.skip_tls_verify) if files.is_dir() else None
    return host_endpoint(found.host or DEFAULT_HOST, tls)

# SPDX-License-Identifier: Apache-2.0
"""What commands share: the client of the chosen daemon, and doing one thing to each of several names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from proa.client.client import Client
from proa.client.endpoint import (
    Endpoint,
    TlsFiles,
    certificate_folder,
    context_endpoint,
    environment_endpoint,
    folder_tls,
    host_endpoint,
)
from proa.client.errors import ApiError


def get_client(ctx: click.Context) -> Client:
    """Return a client of the daemon that the options or the environment name."""
    return ctx.with_resource(Client(_endpoint(ctx.find_root().obj or {})))


def _endpoint(options: Mapping[str, Any]) -> Endpoint:  # Any: click's values, by option
    """Choose the daemon as docker does. Raises click.UsageError, ConnectionFailed."""
    if options.get("host") and options.get("context"):
        raise click.UsageError("conflicting options: either specify --host or --context, not both")
    if options.get("context"):
        return context_endpoint(options["context"])
    base = host_endpoint(options["host"]) if options.get("host") else environment_endpoint()
    files = {name: options.get(name) for name in ("tlscacert", "tlscert", "tlskey")}
    if not (options.get("tls") or options.get("tlsverify") or any(files.values())):
        return base
    found = folder_tls(certificate_folder())
    tls = TlsFiles(
        ca=_path(files["tlscacert"]) or found.ca,
        certificate=_path(files["tlscert"]) or found.certificate,
        key=_path(files["tlskey"]) or found.key,
        verify=bool(options.get("tlsverify")) or base.tls is not None,
    )
    return host_endpoint(base.host, tls)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def report(error: ApiError) -> None:
    """Print a daemon's refusal as docker prints it."""
    click.echo(f"Error response from daemon: {error}", err=True)


def for_each(names: Iterable[str], do: Callable[[str], object], *, echo: bool = True) -> None:
    """Do it to every name and print the name; go on after a failure, and exit with 1 at the end."""
    failed = False
    for name in names:
        try:
            do(name)
        except ApiError as error:
            if error.status != 304:  # 304: it is so already
                report(error)
                failed = True
                continue
        if echo:
            click.echo(name)
    if failed:
        raise click.exceptions.Exit(1)

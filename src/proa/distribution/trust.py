# SPDX-License-Identifier: Apache-2.0
"""TLS of each registry: the system's authorities, and what the administrator put into certs.d.

    CERTS_DIR/HOST[:PORT]/*.crt           authorities that are trusted too
    CERTS_DIR/HOST[:PORT]/NAME.cert, .key a certificate of ours

Source: Docker documentation, "Verify repository client with certificates".
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path

from proa.model.errors import InvalidParameter


class Trust:
    """Makes TLS contexts. Files are read anew for each operation, so a change needs no restart."""

    def __init__(self, certs_dirs: Sequence[Path]) -> None:
        self._certs_dirs = certs_dirs
        self._usual: ssl.SSLContext | None = None

    def has_authority(self, host: str) -> bool:
        """Whether a host has an authority of its own, and is therefore always verified."""
        return any(path.suffix == ".crt" for path in self._files(host))

    def context(self, host: str, *, verify: bool = True) -> ssl.SSLContext:
        """Return the context for a host. Reads files, some of them large: call it in a thread.

        Raises InvalidParameter when a file of the host's is wrong.
        """
        files = list(self._files(host))
        if not files and verify:
            if self._usual is None:
                self._usual = _make()
            return self._usual
        context = _make()
        for path in files:
            self._add(context, path, files)
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _add(self, context: ssl.SSLContext, path: Path, files: Sequence[Path]) -> None:
        try:
            if path.suffix == ".crt":
                context.load_verify_locations(path)
            elif path.suffix == ".cert":
                key = path.with_suffix(".key")
                if key not in files:
                    raise InvalidParameter(
                        f"missing key {key.name} for client certificate {path.name}. "
                        "CA certificates must use the extension .crt"
                    )
                context.load_cert_chain(path, key)
            elif path.suffix == ".key" and path.with_suffix(".cert") not in files:
                raise InvalidParameter(f"missing client certificate {path.stem}.cert for key {path.name}")
        except (ssl.SSLError, OSError) as error:
            raise InvalidParameter(f"cannot use {path}: {error}") from error

    def _files(self, host: str) -> Iterator[Path]:
        if "/" in host or host.startswith("."):
            return
        for directory in self._certs_dirs:
            try:
                yield from sorted((directory / host).iterdir())
            except (FileNotFoundError, NotADirectoryError):
                continue


def _make() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context

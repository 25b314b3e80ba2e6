# SPDX-License-Identifier: Apache-2.0
"""Carry out nftables commands in this process, by libnftables. Knows no rule of ours.

One call is one transaction: all of its commands take effect at once, or none. It takes about 0.1 ms; an
``nft`` process takes 15. The library's context is bound to the network namespace it was made in, and belongs
to one thread at a time.

Source: libnftables(3), nft(8).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

_LIBRARY = "libnftables.so.1"  # Debian: libnftables1
_NFT_CTX_DEFAULT = 0
_NFT_CTX_OUTPUT_JSON = 1 << 4


class NftError(OSError):
    """The kernel or the parser refused; nothing was changed. The text is nft's own."""


class Nftables:
    """A connection to nftables of the current network namespace.

    :raises OSError: the library is not installed, or the kernel has no nftables.
    """

    def __init__(self) -> None:
        self._library = _load()
        context = self._library.nft_ctx_new(_NFT_CTX_DEFAULT)
        if not context:
            raise OSError("nft_ctx_new failed")
        self._context: int | None = context
        # Else the library writes to our stdout and stderr.
        self._library.nft_ctx_buffer_output(context)
        self._library.nft_ctx_buffer_error(context)

    def run(self, commands: str) -> str:
        """Carry out commands in nft's own language, as one transaction, and return what they print.

        :raises NftError: refused; nothing was changed.
        """
        if self._context is None:
            raise ValueError("closed")
        status = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        output: bytes = self._library.nft_ctx_get_output_buffer(self._context)
        errors: bytes = self._library.nft_ctx_get_error_buffer(self._context)
        if status != 0:
            raise NftError(f"nft: {errors.decode(errors='replace').strip() or 'failed without a message'}")
        return output.decode(errors="replace")

    def list_ruleset(self) -> list[dict[str, Any]]:
        """Return all tables, as ``nft --json list ruleset`` prints them.

        :raises NftError: the kernel refuses.
        """
        with self._json():
            found: list[dict[str, Any]] = json.loads(self.run("list ruleset"))["nftables"]
        return found

    def run_json(self, commands: Sequence[dict[str, Any]]) -> None:
        """Carry out commands in nft's JSON, as one transaction.

        :raises NftError: refused; nothing was changed.
        """
        with self._json():
            self.run(json.dumps({"nftables": list(commands)}))

    @contextlib.contextmanager
    def _json(self) -> Iterator[None]:
        self._library.nft_ctx_output_set_flags(self._context, _NFT_CTX_OUTPUT_JSON)
        try:
            yield
        finally:
            self._library.nft_ctx_output_set_flags(self._context, 0)

    def close(self) -> None:
        """Let go of the connection. Idempotent."""
        if self._context is not None:
            self._library.nft_ctx_free(self._context)
            self._context = None


@functools.cache
def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise OSError(f"{_LIBRARY} cannot be loaded (Debian package libnftables1): {error}") from error
    context = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_new.restype = context
    library.nft_ctx_free.argtypes = [context]
    library.nft_ctx_free.restype = None
    library.nft_ctx_output_set_flags.argtypes = [context, ctypes.c_uint]
    library.nft_ctx_output_set_flags.restype = None
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        function = getattr(library, name)
        function.argtypes = [context]
        function.restype = ctypes.c_int
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        function = getattr(library, name)
        function.argtypes = [context]
        function.restype = ctypes.c_char_p
    library.nft_run_cmd_from_buffer.argtypes = [context, ctypes.c_char_p]
    library.nft_run_cmd_from_buffer.restype = ctypes.c_int
    return library

# SPDX-License-Identifier: Apache-2.0
"""The keys that leave an attached container running, looked for on both sides of the connection.

The client looks too: it must know that it was detached, to end with status 0 instead of waiting for the exit.

Source: docker attach reference, "Override the detach sequence".
"""

from __future__ import annotations

DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"

_CONTROL = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def parse_detach_keys(text: str) -> bytes:
    """Return the bytes of ``ctrl-p,ctrl-q``; "" means these. Raises ValueError with a sentence for the user.

    Each key is one character or ``ctrl-`` and one of a-z, @, [, \\, ], ^ and _.
    """
    keys = bytearray()
    for key in (text or DEFAULT_DETACH_KEYS).split(","):
        control = key.removeprefix("ctrl-").lower() if len(key) > 1 else ""
        if len(key) == 1 and key.isascii():
            keys += key.encode()
        elif key.startswith("ctrl-") and len(control) == 1 and "a" <= control <= "z":
            keys.append(ord(control) - ord("a") + 1)
        elif key.startswith("ctrl-") and control in _CONTROL:
            keys.append(_CONTROL[control])
        else:
            raise ValueError(f"Invalid detach keys ({text}) provided: Unknown character: '{key}'")
    return bytes(keys)


class DetachScanner:
    """Looks for the keys in what is typed. The beginning of the sequence is held back until it is clear."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""
        self.detached = False

    def feed(self, data: bytes) -> bytes:
        """Return what may be passed on; after the sequence, nothing more and ``detached`` is set."""
        if not self._keys:
            return data
        data = self._held + data
        self._held = b""
        position = data.find(self._keys)
        if position >= 0:
            self.detached = True
            return data[:position]
        for length in range(min(len(self._keys) - 1, len(data)), 0, -1):
            if data.endswith(self._keys[:length]):
                self._held = data[-length:]
                return data[:-length]
        return data

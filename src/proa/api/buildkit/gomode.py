# SPDX-License-Identifier: Apache-2.0
"""Modes of files as Go has them, which fsutil's messages carry. Source: Go, io/fs, FileMode."""

from __future__ import annotations

DIR, SYMLINK, DEVICE, PIPE, SOCKET = 1 << 31, 1 << 27, 1 << 26, 1 << 25, 1 << 24
SETUID, SETGID, CHAR, STICKY = 1 << 23, 1 << 22, 1 << 21, 1 << 20
TYPES = DIR | SYMLINK | DEVICE | PIPE | SOCKET
SPECIAL_BITS = ((SETUID, 0o4000), (SETGID, 0o2000), (STICKY, 0o1000))
"""Of Go, and of POSIX."""

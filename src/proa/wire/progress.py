# SPDX-License-Identifier: Apache-2.0
"""The bar of a progress message, drawn by the engine for clients that print it as it is.

Source: Docker Engine, pkg/jsonmessage, JSONProgress; go-units, HumanSize.
"""

from __future__ import annotations

WIDTH = 50
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def draw_bar(current: int, total: int) -> str:
    """Return ``[=====>    ]  1.5MB/3MB``; without a total only the amount."""
    if total <= 0:
        return f"{format_bytes(current):>8}"
    filled = min(WIDTH * current // total, WIDTH)
    head = "=" * filled + (">" if filled < WIDTH else "")
    return f"[{head:<{WIDTH}}]  {format_bytes(current):>8}/{format_bytes(total)}"


def format_bytes(amount: int) -> str:
    """Return an amount with four digits at most, in powers of a thousand."""
    value, unit = float(amount), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.4g}{_UNITS[unit]}"

# SPDX-License-Identifier: Apache-2.0
"""``--chmod``, as octal digits and as chmod(1) has it."""

from __future__ import annotations

import pytest

from proa.storage.files.assemble import apply_mode
from proa.storage.files.paths import Refusal


@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [
        ("", 0o640, 0o640),
        ("755", 0o600, 0o755),
        ("4711", 0o600, 0o4711),
        ("u=rwx,go=rX", 0o644, 0o755),
        ("go=rX", 0o644, 0o644),
        ("+x", 0o644, 0o755),
        ("a-w", 0o666, 0o444),
        ("u+s,g-r", 0o755, 0o4715),
        ("+t", 0o777, 0o1777),
        ("g=u", 0o640, 0o660),
        ("o=", 0o777, 0o770),
    ],
)
def test_modes(text: str, mode: int, expected: int) -> None:
    assert oct(apply_mode(text, mode, is_directory=False)) == oct(expected)


@pytest.mark.parametrize("text", ["999", "77777", "u", "x+r", "u=q", "+r,", "²"])
def test_refusals(text: str) -> None:
    with pytest.raises(Refusal, match="invalid chmod parameter"):
        apply_mode(text, 0o644, is_directory=False)


def test_x_means_directories_too() -> None:
    assert apply_mode("a=rX", 0o600, is_directory=True) == 0o555

# SPDX-License-Identifier: Apache-2.0
"""Reading mountinfo, and names for mount options."""

from __future__ import annotations

from pathlib import Path

from proa.host.mount import mount_table, option_path, parse_mount_line

LINE = r"36 35 98:0 /mnt1 /a\040b rw,noatime shared:1 master:2 - ext4 /dev/ro\134ot rw,errors=continue"


def test_a_line_with_optional_fields_and_escapes() -> None:
    info = parse_mount_line(LINE)
    assert info.mount_point == Path("/a b")
    assert info.source == "/dev/ro\\ot"
    assert (info.mount_id, info.device, info.root) == (36, "98:0", "/mnt1")
    assert info.super_options == ("rw", "errors=continue")


def test_the_table_of_this_process_has_a_root() -> None:
    assert any(info.mount_point == Path("/") for info in mount_table())


def test_option_path_keeps_a_plain_path_and_names_a_difficult_one_by_descriptor(tmp_path: Path) -> None:
    with option_path(tmp_path) as plain:
        assert plain == str(tmp_path)
    for name in ("with,comma", "with:colon", "x" * 250):
        difficult = tmp_path / name
        difficult.mkdir()
        with option_path(difficult) as text:
            assert text.startswith("/proc/self/fd/")
            assert Path(text).samefile(difficult)
        assert not Path(text).exists()

# SPDX-License-Identifier: Apache-2.0
"""What a TPM keeps, as a copy takes it: files alone, and none that is too large."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proa.machines import tpm
from proa.model.errors import InvalidParameter
from proa.model.machine import MachineId

ID = MachineId("0123456789abcdef" * 4)


def test_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proa.runtime.vm.qemu.user_of", lambda _: None)
    folder = tmp_path / "tpm"
    assert not tpm.save_state(folder, tmp_path / "copy")
    folder.mkdir()
    assert not tpm.save_state(folder, tmp_path / "copy")
    (folder / tpm.STATE).write_bytes(b"kept")
    assert tpm.save_state(folder, tmp_path / "copy")
    tpm.load_state(ID, tmp_path / "copy", tmp_path / "other")
    assert (tmp_path / "other" / tpm.STATE).read_bytes() == b"kept"


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "huge"])
def test_what_is_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = tmp_path / tpm.STATE
    if kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        monkeypatch.setattr(tpm, "MAX_STATE_BYTES", 3)
        path.write_bytes(b"four")
        with pytest.raises(InvalidParameter, match="more than 3 bytes"):
            tpm.load_state(ID, path, tmp_path / "tpm")
    with pytest.raises(InvalidParameter, match="the state of the TPM"):
        tpm.save_state(tmp_path, tmp_path / "copy")

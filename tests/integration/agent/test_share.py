# SPDX-License-Identifier: Apache-2.0
"""Binds and volumes: FUSE in the guest, the file server on the host, the agent's relay between them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.agent import link as wire
from tests.integration.agent.conftest import MAIN, Disks, Guest, configuration, description
from tests.integration.agent.link import Pair, Refused
from tests.integration.agent.machine import LIB


@pytest.fixture
def shared(
    fresh: Guest, disks: Disks, tmp_path: Path
) -> Iterator[tuple[Guest, Path, subprocess.Popen[bytes]]]:
    """A directory on /data, a file read-only on /etc/one; the main process sleeps."""
    if not (LIB / "fs-server").exists():
        pytest.skip("needs the file server: make setup")
    (tmp_path / "data").mkdir()
    (tmp_path / "one").write_text("of the host\n")
    exports = ("--export-rw", tmp_path / "data", "--export-rw", tmp_path / "one")
    server = subprocess.Popen(
        [LIB / "fs-server", "--connect", fresh.machine.directory / "fs", *map(str, exports)]
    )
    try:
        fresh.link.request(
            wire.CONFIGURE,
            *configuration(disks),
            (wire.MOUNT, [(wire.KIND, 2), (wire.TARGET, "/data/deep"), (wire.SOURCE, "0")]),
            (
                wire.MOUNT,
                [(wire.KIND, 2), (wire.TARGET, "/etc/one"), (wire.SOURCE, "1"), (wire.READ_ONLY, 1)],
            ),
        )
        fresh.link.request(wire.START, (wire.PROCESS, MAIN), *description("sleep", "1000"))
        yield fresh, tmp_path, server
    finally:
        server.kill()
        server.wait()


def test_files_of_the_host(shared: tuple[Guest, Path, subprocess.Popen[bytes]]) -> None:
    guest, directory, server = shared
    (directory / "data/here").write_text("from the host\n")
    assert guest.shell("cat /data/deep/here /etc/one") == "from the host\nof the host\n"
    guest.shell("echo from the guest >/data/deep/there; mkdir /data/deep/folder")
    assert (directory / "data/there").read_text() == "from the guest\n"
    assert (directory / "data/folder").is_dir()
    code, _, errors = guest.run("sh", "-c", "echo x >/etc/one")
    assert code == 1
    assert "Read-only file system" in errors
    content = bytes(range(256)) * 16384
    (directory / "data/big").write_bytes(content)
    guest.shell("cat /data/deep/big >/data/deep/copy")
    assert (directory / "data/copy").read_bytes() == content
    # Without its server the share fails, and nothing waits for ever.
    server.kill()
    server.wait()
    assert guest.run("ls", "/data/deep/folder")[0] == 1
    assert guest.shell("echo alive") == "alive\n"


def test_a_share_that_has_no_such_child(fresh: Guest, disks: Disks) -> None:
    mount: Pair = (wire.MOUNT, [(wire.KIND, 2), (wire.TARGET, "/data"), (wire.SOURCE, "../x")])
    with pytest.raises(Refused, match="the source is not a number"):
        fresh.link.request(wire.CONFIGURE, *configuration(disks), mount)

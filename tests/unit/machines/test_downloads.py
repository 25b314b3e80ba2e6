# SPDX-License-Identifier: Apache-2.0
"""Images by address: what is one, what is fetched again, what is kept."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proa.machines import downloads
from proa.machines.downloads import Address, Downloads, find_address
from proa.model.errors import Internal, InvalidParameter

pytestmark = pytest.mark.anyio
CONTENT = bytes(range(256)) * 40
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
ADDRESS = Address(url="https://host/image", digest=DIGEST)


class Server:
    """Gives CONTENT; its line breaks after so many bytes, as often as it is told."""

    def __init__(self, *, breaks: int = 0, after: int = 3000, has_ranges: bool = True) -> None:
        self.offsets: list[int] = []
        self._breaks = breaks
        self._after = after
        self._has_ranges = has_ranges

    @asynccontextmanager
    async def fetch_from(self, url: str, offset: int) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        self.offsets.append(offset)
        start = offset if self._has_ranges else 0
        yield start, self._give(start)

    async def _give(self, start: int) -> AsyncIterator[bytes]:
        if self._breaks:
            self._breaks -= 1
            yield CONTENT[start : start + self._after]
            raise Internal("the line broke")
        yield CONTENT[start:]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "RETRY_S", 0)


async def test_what_is_kept_is_not_fetched_again(tmp_path: Path) -> None:
    server = Server()
    kept = Downloads(tmp_path / "d", server)
    await kept.get(ADDRESS, tmp_path / "a")
    await kept.get(ADDRESS, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == CONTENT
    assert server.offsets == [0]
    await kept.get(Address(url=ADDRESS.url), tmp_path / "c")
    assert server.offsets == [0, 0]
    assert kept.prune(unused_s=3600) == 0
    assert kept.prune() == len(CONTENT)
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize(("has_ranges", "offsets"), [(True, [0, 3000, 6000]), (False, [0, 3000, 3000])])
async def test_a_line_that_breaks(tmp_path: Path, has_ranges: bool, offsets: list[int]) -> None:
    server = Server(breaks=2, has_ranges=has_ranges)
    await Downloads(tmp_path / "d", server).get(ADDRESS, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.offsets == offsets


async def test_a_later_daemon_goes_on(tmp_path: Path) -> None:
    server = Server(breaks=99, after=0)
    (tmp_path / "d" / "partial").mkdir(parents=True)
    key = hashlib.sha256(f"{ADDRESS.url}#{DIGEST}".encode()).hexdigest()
    (tmp_path / "d" / "partial" / key).write_bytes(CONTENT[:5000])
    with pytest.raises(Internal, match="broke"):
        await Downloads(tmp_path / "d", server).get(ADDRESS, tmp_path / "a")
    assert server.offsets == [5000] * downloads.ATTEMPTS
    server = Server()
    await Downloads(tmp_path / "d", server).get(ADDRESS, tmp_path / "a")
    assert server.offsets == [5000]


async def test_another_file_than_expected(tmp_path: Path) -> None:
    wrong = Address(url=ADDRESS.url, digest="sha256:" + "0" * 64)
    with pytest.raises(InvalidParameter, match="its checksum is sha256:"):
        await Downloads(tmp_path / "d", Server()).get(wrong, tmp_path / "a")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


async def test_what_is_an_address() -> None:
    assert find_address("/image") is None
    assert find_address("") is None
    assert find_address(f"https://host/x#{DIGEST}") == Address(url="https://host/x", digest=DIGEST)
    assert find_address(f"http://host/x#{DIGEST}") is not None
    for wrong in ("http://host/x", "https://", "https://host/x#md5:1", "https://host/\n", "https://[x/"):
        with pytest.raises(InvalidParameter):
            find_address(wrong)

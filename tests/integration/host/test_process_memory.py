# SPDX-License-Identifier: Apache-2.0
"""What processes have changed of a file that they map privately: found, read, and given to another."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proa.host.process_memory import MappedFile, Span, copy_changed

PAGE = mmap.PAGESIZE
PAGES = 600  # more than is read in one piece
MAPPING = """
import mmap, sys
file = open(sys.argv[1], "r+b")
mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
for page in sys.argv[2].split(","):
    mapped[int(page) * 4096:int(page) * 4096 + 4] = b"%4d" % int(page)
print("ready", flush=True)
for line in sys.stdin:
    print(mapped[int(line) * 4096:][:4].decode(), flush=True)
"""


@contextlib.contextmanager
def mapping(path: Path, pages: str) -> Iterator[subprocess.Popen[str]]:
    """A process that maps the file and has written to some pages; it tells what is in those asked for."""
    command = [sys.executable, "-c", MAPPING, str(path), pages]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child


def ask(child: subprocess.Popen[str], page: int) -> str:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{page}\n")
    child.stdin.flush()
    return child.stdout.readline().rstrip("\n")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mem"
    path.write_bytes(b"file".ljust(PAGE) * PAGES)
    return path


def test_changes_move_from_one_to_another(file: Path) -> None:
    many = ",".join(map(str, range(100, 500)))
    with mapping(file, f"0,3,4,{many},{PAGES - 1}") as one, mapping(file, "1,4") as other:
        file.unlink()  # as when the template is made anew
        with (
            contextlib.closing(MappedFile(one.pid, "mem")) as source,
            contextlib.closing(MappedFile(other.pid, "mem")) as target,
        ):
            assert source.changed() == [
                Span(offset=0, length=PAGE),
                Span(offset=3 * PAGE, length=2 * PAGE),
                Span(offset=100 * PAGE, length=400 * PAGE),
                Span(offset=(PAGES - 1) * PAGE, length=PAGE),
            ]
            assert os.pread(source.fd, 4, 3 * PAGE) == b"file"
            assert copy_changed(source, target) == (404 + 2) * PAGE
            assert {page: ask(other, page) for page in (0, 1, 2, 3, 4, 100, 333, 499, 500, PAGES - 1)} == {
                0: "   0",
                1: "file",  # what it had changed itself is undone
                2: "file",
                3: "   3",
                4: "   4",
                100: " 100",
                333: " 333",
                499: " 499",
                500: "file",
                PAGES - 1: f" {PAGES - 1}",
            }
            assert os.pread(target.fd, 4, 3 * PAGE) == b"file", "the file itself is not written to"


def test_what_is_not_mapped(file: Path) -> None:
    with pytest.raises(FileNotFoundError, match="0 mapped files are called mem"):
        MappedFile(os.getpid(), "mem")
    with mapping(file, "0") as child:
        child.kill()
        child.wait()
        with pytest.raises(OSError):  # gone, whatever the kernel says of it
            MappedFile(child.pid, "mem")

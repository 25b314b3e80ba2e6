# SPDX-License-Identifier: Apache-2.0
"""What a child program can still do once it has confined itself."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3] / "src"


def run(script: str, *arguments: str) -> str:
    """Run a script as the children are started; return what it prints."""
    if os.geteuid() != 0:
        pytest.skip("namespaces need root")
    head = f"import os, sys; sys.path.insert(0, {str(SOURCE)!r}); from proa.host import confinement, mount\n"
    command = [sys.executable, "-I", "-S", "-c", head + textwrap.dedent(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_root_is_all_there_is(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    script = """
        from pathlib import Path
        root = Path(sys.argv[1])
        confinement.own_mounts()
        copy = mount.open_tree(root)
        mount.move_mount(copy, root)
        confinement.pivot_into(root)
        print(os.listdir("/"), os.listdir("/../.."), os.getcwd())
    """
    assert run(script, str(tmp_path)) == "['inside'] ['inside'] /\n"
    assert not any(str(tmp_path) in line for line in Path("/proc/self/mountinfo").read_text().splitlines())


def test_privileges_are_given_up_for_good(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    script = """
        confinement.keep_capabilities(["CHOWN"])
        os.chown(sys.argv[1], 5, 6)
        for attempt in (
            lambda: os.mknod(sys.argv[1] + "x", 0o20666, os.makedev(1, 3)),
            lambda: os.setuid(0) or os.chroot("/"),
            confinement.own_mounts,
        ):
            try:
                attempt()
            except PermissionError:
                print("refused")
        status = open("/proc/self/status").read()
        print([line.split()[1] for line in status.splitlines() if line.startswith(("CapPrm", "CapBnd",
        "NoNew"))])
    """
    out = run(script, str(tmp_path / "file")).splitlines()
    assert out == ["refused", "refused", "refused", "['0000000000000001', '0000000000000001', '1']"]
    assert (tmp_path / "file").stat().st_gid == 6


def test_limits_and_kinds_of_file_systems() -> None:
    script = """
        import resource
        confinement.limit(CORE=0, AS=1 << 30)
        confinement.limit(AS=2 << 30)
        print(resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_AS)[0] == 1 << 30)
        fd = os.open("/proc", os.O_PATH)
        print(confinement.file_system_type(fd) == confinement.PROC_SUPER_MAGIC)
    """
    assert run(script) == "(0, 0) True\nTrue\n"


def test_a_child_ends_with_its_parent() -> None:
    """The parent starts a child that sleeps, and is gone: so is the child, whose pipe closes."""
    script = """
        import subprocess, time
        if len(sys.argv) > 1:
            confinement.die_with_parent()
            print("ready", flush=True)
            time.sleep(60)
        child = subprocess.Popen([sys.executable, *sys.orig_argv[1:], "child"], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"ready\\n"
        os._exit(0)
    """
    # subprocess.run returns when the last holder of the pipe has ended: in time only if the child died too.
    assert run(script) == ""

# SPDX-License-Identifier: Apache-2.0
"""Volumes that are another file system, and paths inside volumes, in both hulls."""

from __future__ import annotations

from pathlib import Path

from tests.support.daemon import Daemon


def make(daemon: Daemon, name: str, **options: str) -> None:
    words = [word for key, value in options.items() for word in ("--opt", f"{key}={value}")]
    daemon.docker("volume", "create", *words, name)


def test_a_bind_as_a_volume(daemon: Daemon, hull: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("of the host\n")
    make(daemon, name, type="none", o="bind", device=str(tmp_path))
    mounted = ("run", "--rm", "--isolation", hull, "-v", f"{name}:/data")
    assert (
        daemon.docker(*mounted, "busybox", "sh", "-c", "cat /data/f; echo x >/data/g").out == "of the host\n"
    )
    daemon.docker("volume", "rm", name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "g"]


def test_a_tmpfs_lives_as_long_as_it_is_used(daemon: Daemon, name: str) -> None:
    make(daemon, name, type="tmpfs", device="tmpfs", o="size=1m,uid=7")
    volume = f"{name}:/data"
    daemon.docker("run", "-d", "--name", name, "-v", volume, "busybox", "sh", "-c",
                  "echo a >/data/f; exec sleep 600")  # fmt: skip
    other = daemon.docker("run", "--rm", "-v", volume, "busybox", "sh", "-c",
                          "stat -c %u /data; df -k /data | tail -n 1; ls /data")  # fmt: skip
    assert other.out.startswith("7\n")
    assert " 1024 " in other.out
    in_use = daemon.docker("volume", "rm", name, check=False)
    assert "volume is in use" in in_use.err
    daemon.restart()
    assert daemon.docker("exec", name, "cat", "/data/f").out == "a\n"
    daemon.docker("rm", "-f", name)
    assert daemon.docker("run", "--rm", "-v", volume, "busybox", "ls", "/data").out == ""
    daemon.docker("volume", "rm", name)


def test_options_that_cannot_be(daemon: Daemon, name: str) -> None:
    for options, sentence in (
        ({"type": "tmpfs"}, 'missing required option: "device"'),
        ({"colour": "red"}, 'invalid option: "colour"'),
        ({"type": "nonesuch", "device": "x"}, "this kernel has no file system 'nonesuch'"),
    ):
        words = [word for key, value in options.items() for word in ("--opt", f"{key}={value}")]
        assert sentence in daemon.docker("volume", "create", *words, name, check=False).err
    make(daemon, name, type="none", o="bind", device="/nonesuch")
    failed = daemon.docker("run", "--rm", "-v", f"{name}:/data", "busybox", "true", check=False)
    assert "failed to mount local volume: mount /nonesuch:" in failed.err
    assert "no such file or directory" in failed.err
    daemon.docker("volume", "rm", name)


def test_a_subpath_stays_in_its_volume(daemon: Daemon, hull: str, name: str) -> None:
    daemon.docker("run", "--rm", "-v", f"{name}:/v", "busybox", "sh", "-c",
                  "mkdir /v/in; echo inside >/v/in/f; ln -s in /v/link; ln -s /etc /v/out")  # fmt: skip
    try:
        for subpath in ("in", "link"):
            mount = f"type=volume,src={name},dst=/d,volume-subpath={subpath}"
            out = daemon.docker(
                "run", "--rm", "--isolation", hull, "--mount", mount, "busybox", "cat", "/d/f"
            )
            assert out.out == "inside\n"
        for subpath in ("out", "nonesuch"):
            mount = f"type=volume,src={name},dst=/d,volume-subpath={subpath}"
            refused = daemon.docker("run", "--rm", "--isolation", hull, "--mount", mount, "busybox", "true",
                                    check=False)  # fmt: skip
            assert "cannot access path" in refused.err
    finally:
        daemon.docker("volume", "rm", name)

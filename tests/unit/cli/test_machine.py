# SPDX-License-Identifier: Apache-2.0
"""What ``proa machine`` makes machines of, and which ports it carries."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from proa.cli import machine_disk
from proa.cli.machine import machine
from proa.cli.machine_forward import published
from proa.wire.containers import ContainerSummary, PortSummary


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> tarfile.TarFile:
    """The context with one module in place of all, which take seconds to compile."""
    module = (Path(machine_disk.__file__), "proa/cli/machine_disk.py")
    monkeypatch.setattr(machine_disk, "_modules", lambda: iter([module]))
    file = io.BytesIO()
    machine_disk.write_context(file, base="base:1", key="ssh-ed25519 AAAA me\n")
    file.seek(0)
    return tarfile.open(fileobj=file)


def test_a_module_comes_with_its_code(context: tarfile.TarFile) -> None:
    names = set(context.getnames())
    assert "files/opt/proa/proa/cli/machine_disk.py" in names
    assert any(name.startswith("files/opt/proa/proa/cli/__pycache__/machine_disk.") for name in names)
    dockerfile = context.extractfile("Dockerfile")
    assert dockerfile is not None
    assert dockerfile.read().decode().startswith("FROM base:1\nCOPY ")


def test_the_modules_are_this_proa_and_what_it_imports() -> None:
    names = {name for _, name in machine_disk._modules()}
    for name in ("proa/daemon/main.py", "anyio/__init__.py", "msgspec/__init__.py", "click/__init__.py"):
        assert name in names
    assert not any(name.startswith(("pytest/", "mypy/")) or ".." in name for name in names)


def test_only_the_key_logs_in(context: tarfile.TarFile) -> None:
    keys = context.getmember("files/root/.ssh/authorized_keys")
    assert (keys.mode, context.getmember("files/root/.ssh").mode) == (0o600, 0o700)
    script = context.extractfile(f"files{machine_disk.START}")
    assert script is not None
    assert "PasswordAuthentication=no" in script.read().decode()


def test_published_ports() -> None:
    ports = [
        PortSummary(ip="0.0.0.0", private_port=80, public_port=8080, type="tcp"),
        PortSummary(ip="::", private_port=80, public_port=8080, type="tcp"),
        PortSummary(ip="127.0.0.1", private_port=81, public_port=8081, type="tcp"),
        PortSummary(ip="0.0.0.0", private_port=53, public_port=53, type="udp"),
        PortSummary(private_port=90),
    ]
    assert published([ContainerSummary(id="1", ports=ports)]) == {("0.0.0.0", 8080), ("127.0.0.1", 8081)}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["init", "-v", "/a:/b"], "cannot be shared"),
        (["init", "A b"], "invalid name"),
        (["init", "../x"], "invalid"),
    ],
)
def test_what_is_refused(words: list[str], why: str) -> None:
    done = CliRunner().invoke(machine, words)
    assert done.exit_code == 2
    assert why in done.output

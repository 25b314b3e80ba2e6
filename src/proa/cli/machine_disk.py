# SPDX-License-Identifier: Apache-2.0
"""The image that a ``proa machine`` is made of: a Linux with what an engine needs, and this proa in it.

Source: docs/reference/machine.md.
"""

from __future__ import annotations

import io
import py_compile
import re
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import IO

import proa

START = "/usr/lib/proa-machine/start"
SOCKET = "/run/docker.sock"
# What setup/all.sh installs for the container hull, and a server for ssh.
PACKAGES = (
    "python3 openssh-server crun conmon tini nftables iproute2 procps kmod e2fsprogs ca-certificates git "
    "golang-github-containers-common"
)
_DEFAULT = f"""FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends {PACKAGES} && \\
    rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*
"""
_COPY = "COPY files /\n"
# The image's command, as machine/run.c starts it: no init is needed for two programs.
_SCRIPT = f"""#!/bin/sh
# The programs of a proa machine: a server for ssh, and the engine.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONPATH=/opt/proa
[ -e /etc/ssh/ssh_host_ed25519_key ] || ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key
mkdir -p /run/sshd /run/lock /var/lib/proa
/usr/sbin/sshd -o UsePAM=no -o PasswordAuthentication=no -o HostKey=/etc/ssh/ssh_host_ed25519_key
exec /usr/bin/python3 -m proa.daemon --host unix://{SOCKET}
"""
_WRAPPER = """#!/bin/sh
export PYTHONPATH=/opt/proa PROA_HOST=unix://%s
exec /usr/bin/python3 -c "from proa.cli.main import main; main()" "$@"
"""


def write_context(file: IO[bytes], *, base: str, key: str) -> None:
    """Write the context of the build as a tar.

    :param base: an image with PACKAGES; "" takes Debian's and installs them.
    :param key: the line of the public key that may log in as root.
    """
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        dockerfile = (f"FROM {base}\n" if base else _DEFAULT) + _COPY
        _add(tar, "Dockerfile", dockerfile.encode(), 0o644)
        _add(tar, f"files{START}", _SCRIPT.encode(), 0o755)
        _add(tar, "files/usr/local/bin/proa", (_WRAPPER % SOCKET).encode(), 0o755)
        for closed in ("root", "root/.ssh"):
            folder = tarfile.TarInfo(f"files/{closed}")
            folder.type, folder.mode = tarfile.DIRTYPE, 0o700
            tar.addfile(folder)
        _add(tar, "files/root/.ssh/authorized_keys", key.encode(), 0o600)
        for source, name in _modules():
            _add(tar, f"files/opt/proa/{name}", source.read_bytes(), 0o644)
            if source.suffix == ".py" and (code := _compiled(source)):
                directory, _, file_name = name.rpartition("/")
                cached = f"{file_name.removesuffix('.py')}.{sys.implementation.cache_tag}.pyc"
                _add(tar, f"files/opt/proa/{directory}/__pycache__/{cached}", code, 0o644)


def _compiled(source: Path) -> bytes:
    """Return a module's code, which is taken as it is: under emulation compiling would take minutes."""
    with tempfile.NamedTemporaryFile() as file:
        try:
            py_compile.compile(
                str(source),
                cfile=file.name,
                dfile=source.name,
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
        except (py_compile.PyCompileError, FileExistsError):
            return b""
        return Path(file.name).read_bytes()


def _modules() -> Iterator[tuple[Path, str]]:
    """Yield the files of this proa and of all that it imports, and their names as modules."""
    package = Path(proa.__file__).parent
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path, f"proa/{path.relative_to(package)}"
    for distribution in _distributions("proa", set()):
        for file in distribution.files or ():
            path = Path(str(distribution.locate_file(file)))
            inside = not file.is_absolute() and ".." not in file.parts and "__pycache__" not in file.parts
            if inside and path.is_file() and file.parts[0] != "proa" and file.suffix != ".pth":
                yield path, str(file)


def _distributions(name: str, seen: set[str]) -> Iterator[metadata.Distribution]:
    """Yield a distribution and what it requires here; extras and other systems' are left out."""
    normal = re.sub(r"[-_.]+", "-", name).lower()
    if normal in seen:
        return
    seen.add(normal)
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return  # of another version of Python, or system
    yield found
    for requirement in found.requires or ():
        match = re.match(r"[A-Za-z0-9._-]+", requirement)
        if match and "extra ==" not in requirement:
            yield from _distributions(match[0], seen)


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    tar.addfile(member, io.BytesIO(content))

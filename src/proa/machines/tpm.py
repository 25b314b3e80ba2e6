# SPDX-License-Identifier: Apache-2.0
"""A TPM 2.0 for a machine: swtpm beside its QEMU, on one end of a socket pair.

It is a user of its own, neither root nor QEMU's: a guest that has broken out into its QEMU does not reach
what the TPM keeps. It has no network and no capabilities, its state is its working directory, and it ends
when QEMU does, whoever looks after them; so nothing need be found again by a later daemon.

    <machine>/tpm/tpm2-00.permall    its seeds, keys and counters; made at the first start

Source: swtpm(8), socket interface; QEMU docs/specs/tpm.rst, the QEMU TPM emulator device.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from proa.host import process
from proa.host.process import Spawned
from proa.model.errors import InvalidParameter, Unavailable
from proa.model.machine import MachineId
from proa.runtime.vm import qemu

STATE = "tpm2-00.permall"
MAX_STATE_BYTES = 1024 * 1024  # a TPM's memory is some 100 KiB
_MEMORY_BYTES = 512 * 1024 * 1024
_FILE_BYTES = 16 * 1024 * 1024  # of its log as well, which a guest can make it write


def check_installed() -> None:
    """Raise Unavailable when this host has no swtpm."""
    if shutil.which("swtpm", path=process.BASE_ENV["PATH"]) is None:
        raise Unavailable("a TPM needs swtpm: apt install swtpm")


def spawn(machine_id: MachineId, folder: Path, *, link: int, log: int) -> Spawned:
    """Start a TPM; it waits on ``link``, a connected socket, for QEMU.

    :param folder: of its state; made when it is missing, and its own.
    :raises ToolFailed: it could not be started.
    """
    user = _user_of(machine_id)
    folder.mkdir(mode=0o700, exist_ok=True)
    words = ["unshare", "--net", "--ipc", "--"]
    if user is not None:
        os.chown(folder, user, user, follow_symlinks=False)
        words += ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"]
        words += ["--bounding-set=-all", "--inh-caps=-all", "--"]
    words += ["prlimit", f"--as={_MEMORY_BYTES}", f"--fsize={_FILE_BYTES}", "--core=0", "--"]
    # A relative path: its user may not walk to where the machine's files are.
    words += ["swtpm", "socket", "--tpm2", "--tpmstate", "dir=.,mode=0600", "--terminate"]
    words += ["--ctrl", f"type=unixio,clientfd={link}"]
    return process.spawn_now(
        words, cwd=folder, stdout=log, stderr=log, pass_fds=[link], start_new_session=True
    )


def save_state(folder: Path, target: Path) -> bool:
    """Copy what the TPM keeps; False when it has not been started yet. Raises InvalidParameter."""
    # The folder is the TPM's: what lies in it is looked at before it is believed to be a file.
    try:
        descriptor = os.open(folder / STATE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InvalidParameter(f"the state of the TPM cannot be read: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_STATE_BYTES:
            raise InvalidParameter("the state of the TPM is none")
        target.write_bytes(os.pread(descriptor, MAX_STATE_BYTES, 0))
    finally:
        os.close(descriptor)
    return True


def load_state(machine_id: MachineId, source: Path, folder: Path) -> None:
    """Give a new machine's TPM what another has kept. Raises InvalidParameter."""
    if source.stat().st_size > MAX_STATE_BYTES:
        raise InvalidParameter(f"the state of the TPM has more than {MAX_STATE_BYTES} bytes")
    folder.mkdir(mode=0o700)
    target = folder / STATE
    target.write_bytes(source.read_bytes())
    target.chmod(0o600)
    user = _user_of(machine_id)
    if user is not None:
        os.chown(target, user, user)


def _user_of(machine_id: MachineId) -> int | None:
    """The machine's QEMU has the user of its id."""
    return qemu.user_of(machine_id[8:])

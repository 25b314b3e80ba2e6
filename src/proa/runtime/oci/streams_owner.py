# SPDX-License-Identifier: Apache-2.0
"""The standard streams of a process in a user namespace: whose they are, and which null device they may be.

conmon makes them as the host's root, whom the container does not know: it could not open /dev/stdout. So the
pipes are given to the process's user before the runtime has them. crun does so itself, to the host's
/dev/null as well, whose owner every container that has it bind-mounted could then be; so there is another
null device in its place, which is nowhere in the tree. A shell does both and becomes the runtime.

Source: containers/crun issues 1019 and 1845 (fixed in 1.24); runc, fixStdioPermissions.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from proa.host import mount
from proa.model.task import IdMap
from proa.runtime.oci.user import User

_SHELL = Path("/bin/sh")
_SCRIPT = """\
null=$0 owner=$1 pipes=
shift
for n in 0 1 2; do
    if [ -p /proc/self/fd/$n ]; then
        pipes="$pipes /proc/self/fd/$n"
    elif [ /proc/self/fd/$n -ef /dev/null ]; then
        case $n in 0) exec 0<"$null";; 1) exec 1>"$null";; 2) exec 2>"$null";; esac
    fi
done
[ -z "$pipes" ] || chown "$owner" $pipes
exec "$@"
"""


class StreamsOwner:
    """Its null device is made on first use, and gone with this process."""

    def __init__(self) -> None:
        self._null = -1

    def wrap(
        self, program: Path, arguments: tuple[str, ...], *, ids: IdMap, user: User
    ) -> tuple[Path, tuple[str, ...]]:
        """Return program and arguments that do the same as those given, with streams that are the user's.

        :raises OSError: the kernel gives no device node.
        """
        if self._null < 0:
            self._null = _open_null()
        uid, gid = (number if number < ids.size else 0 for number in (user.uid, user.gid))
        null = f"/proc/{os.getpid()}/fd/{self._null}"
        owner = f"{ids.uid + uid}:{ids.gid + gid}"
        return _SHELL, ("-c", _SCRIPT, null, owner, str(program), *arguments)


def _open_null() -> int:
    context = mount.fsopen("tmpfs")
    try:
        mount.fsconfig_create(context, "tmpfs")
        tree = mount.fsmount(context, mount.MountAttr.NOSUID | mount.MountAttr.NOEXEC)
    finally:
        os.close(context)
    try:
        os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3), dir_fd=tree)
        os.chmod("null", 0o666, dir_fd=tree)
        return os.open("null", os.O_RDWR | os.O_CLOEXEC, dir_fd=tree)
    finally:
        os.close(tree)

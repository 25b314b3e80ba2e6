# SPDX-License-Identifier: Apache-2.0
"""The confined child that runs git; started by ``proa.distribution.git``.

Before git starts, the process has become nobody, without privileges and without a way to get any, in mount,
process and IPC namespaces of its own: the root is an empty file system with the host's programs and
certificates, read-only, and one directory to write to. So neither a repository nor a server can make git read
or change a file of the host, whatever git's faults are. All of it goes with this process.

git reads no configuration but what is said here: no hooks, no filters, no credential helpers, and of the
transports only http, https, git and ssh, for submodules too.

    usage: BOOTSTRAP, with a JSON object on standard input (see ``proa.distribution.git``)

Standard output is the answer: refs, or a tar. The exit status is 3 when git failed or a limit was exceeded;
standard error says why then.

Source: git(1), git-config(1), unshare(2), pid_namespaces(7).
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from proa.host import confinement, mount

NOBODY = 65534
WORK = Path("/work")
FAILED = 3
MAX_FILE_BYTES = 8 << 30
MAX_TOLD = 2000  # characters of git's last words
_CLONE_NEWPID = 0x20000000
_CLONE_NEWIPC = 0x08000000
_WATCH_S = 1.0
_SHARED = ("/usr", "/etc/ssl", "/etc/ca-certificates", "/etc/alternatives")
_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/services")
_DEVICES = ("null", "zero", "urandom", "random")
_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_SSH = (
    "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null "
    "-o GlobalKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=30"
)
_SETTINGS = (
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.symlinks", "true"),
    ("protocol.allow", "never"),
    ("protocol.http.allow", "always"),
    ("protocol.https.allow", "always"),
    ("protocol.git.allow", "always"),
    ("protocol.ssh.allow", "always"),
    ("credential.helper", ""),
    ("gc.auto", "0"),
    ("advice.detachedHead", "false"),
    ("init.defaultBranch", "main"),
    ("http.lowSpeedLimit", "1"),
    ("http.lowSpeedTime", "60"),
    ("submodule.recurse", "false"),
    ("safe.directory", "*"),
)

Request = dict[str, Any]  # Any: JSON


class Failed(Exception):
    """git said no, or a limit was exceeded."""


def main() -> None:
    """Run as described above."""
    confinement.die_with_parent()
    request: Request = json.load(sys.stdin)
    sys.stdin.close()
    os.umask(0o022)
    _check(ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWPID | _CLONE_NEWIPC))
    child = os.fork()
    if child == 0:
        _run(request)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
    _, status = os.waitpid(child, 0)  # when this one has ended, so have all that it started
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)


def _run(request: Request) -> None:
    """Be the first process of the namespace. Does not return."""
    status = 1
    try:
        confinement.die_with_parent()
        _enter(Path(request["place"]))
        runner = _Runner(request)
        if request["do"] == "resolve":
            runner.resolve()
        else:
            runner.fetch()
        sys.stdout.flush()
        status = 0
    except Failed as error:
        print(error, file=sys.stderr, flush=True)
        status = FAILED
    except BrokenPipeError:
        pass  # nobody wants it any more
    except OSError as error:
        print(f"{error.filename or request['do']}: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def _enter(place: Path) -> None:
    """Make the root described above, go there, and become nobody."""
    confinement.own_mounts()
    work = mount.open_tree(place)
    root = place  # the name is free below: what it was is open
    mount.mount("tmpfs", root, "tmpfs", flags=_flags(write=True), data="size=1m,mode=755")
    for name in _SHARED:
        if Path(name).is_dir():
            _bind(Path(name), root, is_directory=True)
    for name in _FILES:
        if Path(name).is_file():
            _bind(Path(name), root, is_directory=False)
    for name in _LINKS:
        source = Path("/") / name
        if source.is_symlink():
            (root / name).symlink_to(source.readlink())
        elif source.is_dir():
            _bind(source, root, is_directory=True)
    for name in _DEVICES:
        _bind(Path("/dev") / name, root, is_directory=False, device=True)
    (root / "etc/passwd").write_text(f"nobody:x:{NOBODY}:{NOBODY}:nobody:/work:/bin/sh\n")
    (root / "etc/group").write_text(f"nogroup:x:{NOBODY}:\n")
    (root / "proc").mkdir()
    mount.mount("proc", root / "proc", "proc", flags=_flags(write=True))
    (root / "work").mkdir()
    mount.move_mount(work, root / "work")
    os.close(work)
    confinement.pivot_into(root)
    os.chown(WORK, NOBODY, NOBODY)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    confinement.keep_capabilities(())
    confinement.limit(FSIZE=MAX_FILE_BYTES, CORE=0, NOFILE=4096)
    os.chdir(WORK)


def _bind(source: Path, root: Path, *, is_directory: bool, device: bool = False) -> None:
    target = root / source.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_directory:
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    copy = mount.open_tree(source.resolve())
    try:
        attributes = mount.MountAttr.NOSUID | mount.MountAttr.RDONLY
        if not device:
            attributes |= mount.MountAttr.NODEV
        mount.mount_setattr(copy, set_attributes=attributes)
        mount.move_mount(copy, target)
    finally:
        os.close(copy)


def _flags(*, write: bool) -> int:
    nosuid, nodev, noexec, read_only = 2, 4, 8, 1
    return nosuid | nodev | noexec | (0 if write else read_only)


class _Runner:
    """Runs git in the work directory."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._url: str = request["url"]
        self._max_bytes: int = request["max_bytes"]
        self._tree = WORK / "tree"
        settings = [*_SETTINGS, *request["settings"]]
        self._env = {
            **request["env"],
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "HOME": os.fspath(WORK / "home"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "/bin/false",
            "GIT_ALLOW_PROTOCOL": "http:https:git:ssh",
            "GIT_SSH_COMMAND": _SSH,
            "GIT_CONFIG_COUNT": str(len(settings)),
        }
        for number, (key, value) in enumerate(settings):
            self._env |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        if request["agent"]:
            self._env["SSH_AUTH_SOCK"] = os.fspath(WORK / request["agent"])

    def resolve(self) -> None:
        """Write the refs that a name may mean to standard output."""
        ref = self._request["ref"]
        wanted = [ref, f"{ref}^{{}}"] if ref else ["HEAD"]
        sys.stdout.write(self._git("ls-remote", "--", self._url, *wanted, cwd=WORK))

    def fetch(self) -> None:
        """Check a commit out with its submodules; write its files as a tar to standard output."""
        commit = self._request["commit"]
        self._tree.mkdir()
        self._git("init", "--quiet")
        self._git("remote", "add", "origin", self._url)
        self._bring(commit)
        self._git("checkout", "--quiet", "--force", "--detach", commit)
        if (self._tree / ".gitmodules").is_file():
            self._bring_submodules()
        moment = int(self._git("log", "-1", "--format=%ct").strip() or 0)
        if not self._request["keep"]:
            self._forget_repositories()
        self._pack(moment)

    def _bring(self, commit: str) -> None:
        ref = self._request["ref"]
        try:
            self._git("fetch", "--quiet", "--depth=1", "--no-tags", "origin", commit)
            return
        except Failed:
            pass  # a server need not give a commit by its name, nor a part of a history
        named = [f"+{ref}"] if ref.startswith("refs/") else []
        self._git(
            *(
                "fetch",
                "--quiet",
                "--tags",
                "--force",
                "origin",
                "+refs/heads/*:refs/remotes/origin/*",
                *named,
            )
        )
        self._git("cat-file", "-e", f"{commit}^{{commit}}")

    def _bring_submodules(self) -> None:
        update = ("submodule", "--quiet", "update", "--init", "--recursive")
        try:
            self._git(*update, "--depth=1")
        except Failed:
            self._git(*update)  # as above

    def _forget_repositories(self) -> None:
        for path, directories, files in os.walk(self._tree):
            if ".git" in directories:
                shutil.rmtree(Path(path) / ".git")
                directories.remove(".git")
            if ".git" in files:
                (Path(path) / ".git").unlink()

    def _pack(self, moment: int) -> None:
        top = self._tree
        wanted = Path(os.path.realpath(top / self._request["directory"]))
        if not wanted.is_relative_to(top) or not wanted.is_dir():
            raise Failed(f"no such directory in the repository: {self._request['directory']}")

        def owned(info: tarfile.TarInfo) -> tarfile.TarInfo:
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mtime = moment
            return info

        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for name in sorted(path.name for path in wanted.iterdir()):
                tar.add(wanted / name, arcname=name, filter=owned)

    def _git(self, *words: str, cwd: Path | None = None) -> str:
        """Run git to its end; return what it wrote. Raises Failed."""
        with (WORK / "out").open("w+b") as out, (WORK / "err").open("w+b") as err:
            program = subprocess.Popen(
                ["git", *words],
                cwd=cwd or self._tree,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
            pause = _WATCH_S
            while True:
                try:
                    status = program.wait(pause)
                    break
                except subprocess.TimeoutExpired:
                    pause = self._check_size()
            self._check_size()
            out.seek(0)
            err.seek(0)
            if status != 0:
                told = err.read()[-MAX_TOLD:].decode(errors="replace").strip()
                raise Failed(f"git {words[0]}: {told or f'exit status {status}'}")
            return out.read().decode(errors="replace")

    def _check_size(self) -> float:
        """Raise Failed when there is too much on disk; return when to look again, in seconds."""
        begin, total = time.monotonic(), 0
        for path, _, files in os.walk(WORK):
            for name in files:
                try:
                    total += (Path(path) / name).lstat().st_blocks * 512
                except FileNotFoundError:
                    continue  # git's own, and gone
        if total > self._max_bytes:
            raise Failed(f"the repository has more than {self._max_bytes} bytes, the limit")
        return max(_WATCH_S, 20 * (time.monotonic() - begin))


def _check(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "unshare")


if __name__ == "__main__":
    main()

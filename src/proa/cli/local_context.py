# SPDX-License-Identifier: Apache-2.0
"""The context of ``proa build`` on this machine: the directory, what ``.dockerignore`` leaves out, the
Dockerfile from elsewhere. Source: docker build reference, "Build context"."""

from __future__ import annotations

import io
import posixpath
import secrets
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from proa.build.git_address import is_git_context
from proa.build.ignore import IgnoreRules, read_ignore_file
from proa.cli.local_tar import pack_tree
from proa.model.errors import InvalidParameter

_PIECE = 1 << 20
_ARCHIVES = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalContext:
    """``pieces`` are the tar, ``dockerfile`` its path in it; ``remote`` is an address in place of both."""

    pieces: Iterator[bytes]
    dockerfile: str
    remote: str = ""


def open_context(path: str, dockerfile: str | None) -> LocalContext:
    """Find the context that the arguments name. Raises ClickException."""
    if path.startswith(("http://", "https://")) or is_git_context(path):
        return LocalContext(pieces=iter(()), dockerfile=dockerfile or "Dockerfile", remote=path)
    if path == "-":
        return _from_stdin(dockerfile)
    root = Path(path)
    if not root.is_dir():
        raise click.ClickException(f'unable to prepare context: path "{path}" not found')
    if dockerfile == "-":
        text = sys.stdin.buffer.read()
        return _with_text(root, text, _ignore_rules(root, None))
    name, inside = _locate(root, dockerfile)
    if not inside:
        return _with_text(root, name.read_bytes(), _ignore_rules(root, name))
    relative = name.resolve().relative_to(root.resolve()).as_posix()
    rules = _ignore_rules(root, name)
    kept = {relative, ".dockerignore", f"{relative}.dockerignore"}
    return LocalContext(pieces=_pack(root, rules, kept, {}), dockerfile=relative)


def pack_directory(path: str) -> Iterator[bytes]:
    """Return the tar of a directory without what its ``.dockerignore`` leaves out. Raises ClickException."""
    root = Path(path)
    if not root.is_dir():
        raise click.ClickException(f'unable to prepare context: path "{path}" not found')
    return _pack(root, _ignore_rules(root, None), set(), {})


def _locate(root: Path, dockerfile: str | None) -> tuple[Path, bool]:
    """Return where the Dockerfile is, and whether that is inside the context."""
    name = Path(dockerfile) if dockerfile is not None else root / "Dockerfile"
    if dockerfile is None and not name.exists() and (root / "dockerfile").exists():
        name = root / "dockerfile"
    if not name.is_file():
        raise click.ClickException(
            f"unable to prepare context: unable to evaluate symlinks in Dockerfile path: lstat {name}: "
            "no such file or directory"
        )
    return name, name.resolve().is_relative_to(root.resolve())


def _ignore_rules(root: Path, dockerfile: Path | None) -> IgnoreRules:
    own = [] if dockerfile is None else [dockerfile.with_name(dockerfile.name + ".dockerignore")]
    for path in (*own, root / ".dockerignore"):
        if path.is_file():
            try:
                return IgnoreRules(read_ignore_file(path.read_text(errors="surrogateescape")))
            except InvalidParameter as error:
                raise click.ClickException(f"error checking context: {path}: {error}") from error
    return IgnoreRules([])


def _with_text(root: Path, text: bytes, rules: IgnoreRules) -> LocalContext:
    """A context with a Dockerfile that is not in it, under a name that nobody has."""
    name = f".dockerfile.{secrets.token_hex(10)}"
    # The daemon reads the rules too, and must not leave this file out.
    return LocalContext(pieces=_pack(root, rules, {".dockerignore"}, {name: text}), dockerfile=name)


def _pack(root: Path, rules: IgnoreRules, kept: set[str], texts: dict[str, bytes]) -> Iterator[bytes]:
    for name, text in texts.items():
        yield _member(name, text)

    def keeps(path: str, is_directory: bool) -> bool:
        if path in kept or not rules.ignores(path):
            return True
        return is_directory and (rules.has_exceptions or any(name.startswith(f"{path}/") for name in kept))

    yield from pack_tree(root, keeps)


def _from_stdin(dockerfile: str | None) -> LocalContext:
    if dockerfile == "-":
        raise click.ClickException("invalid argument: can't use stdin for both build context and dockerfile")
    stdin = sys.stdin.buffer
    head = stdin.read(512)
    if not head:
        raise click.ClickException("unable to prepare context: standard input is empty")
    if head.startswith(_ARCHIVES) or head[257:262] == b"ustar":
        return LocalContext(pieces=_chain(head), dockerfile=posixpath.normpath(dockerfile or "Dockerfile"))
    if dockerfile is not None:
        raise click.ClickException("ambiguous Dockerfile source: both stdin and flag name Dockerfiles")
    tar = _member("Dockerfile", head + stdin.read()) + bytes(2 * tarfile.BLOCKSIZE)
    return LocalContext(pieces=iter([tar]), dockerfile="Dockerfile")


def _chain(head: bytes) -> Iterator[bytes]:
    yield head
    while piece := sys.stdin.buffer.read(_PIECE):
        yield piece


def _member(name: str, text: bytes) -> bytes:
    buffer = io.BytesIO()
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(text), 0o600
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(info, io.BytesIO(text))
        end = tar.offset
    return buffer.getvalue()[:end]

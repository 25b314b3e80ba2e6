# SPDX-License-Identifier: Apache-2.0
"""COPY and ADD: from an instruction to the plan by which the confined child writes a layer, and its digest.

Source: Dockerfile reference, COPY, ADD; Docker Engine, the words of the errors.
"""

from __future__ import annotations

import hashlib
import posixpath
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import anyio.to_thread

from proa.build.ignore import IgnoreRules, compile_pattern
from proa.build.lexer import find_heredocs
from proa.build.parser import Instruction
from proa.image.shellwords import expand, expand_text, split_words
from proa.model.errors import EngineError, InvalidParameter, NotFound
from proa.storage.files.gather import Gathered, Gatherer

Item = tuple[str, int, str, str, str, bool]
"""Kind, tree, path, destination, name, inside; see ``storage.files.assemble``."""


class CopyFailed(InvalidParameter):
    """A COPY or ADD names what is not there, or makes no sense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Where sources are: a root directory. Of a build's context owners do not count, and files may be left
    out."""

    root: int
    keeps: Callable[[str], bool] = lambda _: True
    is_context: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A source that came from an address: a file, open, with its name and digest."""

    fd: int
    name: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyWords:
    """An instruction's arguments, expanded. ``texts`` are its here-documents: name and content."""

    sources: tuple[str, ...]
    destination: str
    texts: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True, kw_only=True)
class CopyPlan:
    """``digest`` covers all that is read; ``kind`` is file, dir or multi, for the history."""

    kind: str
    digest: str
    items: list[Item] = field(default_factory=list)
    trees: set[int] = field(default_factory=set)


def read_words(instruction: Instruction, variables: dict[str, str], escape: str, workdir: str) -> CopyWords:
    """Expand the arguments. The destination is absolute, and ends with a slash when it must be a directory.

    Raises InvalidParameter.
    """
    docs = {doc.name: doc for doc in instruction.heredocs}
    texts: list[tuple[str, str]] = []
    words: list[str] = []
    raw = instruction.words if instruction.words is not None else split_words(instruction.rest, escape)
    for word in raw:
        begun = find_heredocs(f"COPY {word}", escape) if docs else []
        if begun:
            doc = docs[begun[0][0]]
            content = expand_text(doc.content, variables, escape=escape) if doc.expands else doc.content
            texts.append((doc.name, content))
        else:
            words.append(expand(word, variables, escape=escape))
    *sources, destination = words
    if not destination:
        raise InvalidParameter(f"{instruction.name} failed: the destination is empty")
    for source in sources:
        if not source:
            raise InvalidParameter(f"{instruction.name} failed: a source is empty")
    is_directory = destination.endswith(("/", "/.")) or destination in (".", "..")
    path = posixpath.normpath(posixpath.join("/", workdir, destination)).replace("//", "/")
    return CopyWords(
        sources=tuple(sources),
        destination=path.rstrip("/") + "/" if is_directory or path == "/" else path,
        texts=tuple(texts),
    )


async def plan_copy(
    instruction: Instruction,
    words: CopyWords,
    tree: Tree,
    downloads: Sequence[Download],
    excludes: Sequence[str],
) -> CopyPlan:
    """Find and digest the sources. Raises CopyFailed, InvalidParameter."""
    return await anyio.to_thread.run_sync(
        _plan, instruction, words, tree, downloads, IgnoreRules(excludes), abandon_on_cancel=False
    )


def _plan(
    instruction: Instruction,
    words: CopyWords,
    tree: Tree,
    downloads: Sequence[Download],
    excludes: IgnoreRules,
) -> CopyPlan:
    name, parents = instruction.name, instruction.switch("parents")
    plan = CopyPlan(kind="multi", digest="")
    digest = hashlib.sha256()
    found: list[tuple[Gathered, str]] = []
    remote = {download.name for download in downloads}
    for source in words.sources:
        if _is_remote(source) and remote:
            continue
        found += _match(name, source, tree, excludes, digest, parents=parents)
    inside = words.destination.endswith("/")
    count = len(found) + len(downloads) + len(words.texts)
    if count > 1 and not inside:
        raise CopyFailed(
            f"When using {name} with more than one source file, the destination must be a directory and end "
            "with a /"
        )
    if not count:
        raise CopyFailed(f"{name} failed: no source files were specified")
    destination = words.destination
    for gathered, below in found:
        _add_items(plan, gathered, tree.root, destination, below, unpacks=_unpacks(instruction))
    for download in downloads:
        plan.trees.add(download.fd)
        plan.items.append(("source", download.fd, "", destination, download.name, inside))
        digest.update(f"url {len(download.name)} {download.name} {download.digest}".encode())
    for text_name, content in words.texts:
        plan.items.append(("text", -1, content, destination, text_name, inside))
        data = content.encode(errors="surrogateescape")
        digest.update(f"text {len(text_name)} {text_name} {len(data)} ".encode() + data)
    if count == 1:
        plan.kind = "dir" if found and found[0][0].is_directory else "file"
    plan.digest = digest.hexdigest()
    return plan


def _match(
    name: str,
    source: str,
    tree: Tree,
    excludes: IgnoreRules,
    digest: hashlib._Hash,
    *,
    parents: bool,
) -> list[tuple[Gathered, str]]:
    """Return what a source matches, each with the directory below the destination where it goes."""
    if tree.is_context and posixpath.normpath(source).startswith(".."):
        raise CopyFailed(f"{name} failed: forbidden path outside the build context: {source} ()")
    pivot = ""
    if parents and "/./" in source:
        pivot = posixpath.normpath("/" + source.partition("/./")[0]).lstrip("/")

    def keeps(path: str) -> bool:
        return tree.keeps(path)

    gatherer = Gatherer(tree.root, kept=keeps, with_owners=not tree.is_context)
    try:
        paths = gatherer.match(source, compile_pattern)
    except NotFound:
        where = "file not found in build context or excluded by .dockerignore: " if tree.is_context else ""
        raise CopyFailed(f"{name} failed: {where}stat {source}: file does not exist") from None
    found: list[tuple[Gathered, str]] = []
    for path in paths:
        filtered = Gatherer(
            tree.root,
            kept=_without(keeps, excludes, path) if excludes else keeps,
            with_owners=not tree.is_context,
        )
        if excludes and excludes.ignores(posixpath.basename(path)):
            continue
        below = ""
        if parents:
            below = path.removeprefix(pivot).strip("/")
            digest.update(f"at {len(below)} {below}".encode(errors="surrogateescape"))
        try:
            gathered = filtered.gather(path, digest)
        except EngineError:
            raise
        except OSError as error:
            raise CopyFailed(f"{name} failed: {source}: {(error.strerror or '').lower()}") from error
        if path and len(gathered.items) == 1 and not keeps(path):  # a directory, and all in it is left out
            raise CopyFailed(
                f"{name} failed: file not found in build context or excluded by .dockerignore: "
                f"stat {source}: file does not exist"
            )
        if not gathered.is_directory:
            base = posixpath.basename(path).encode(errors="surrogateescape")
            digest.update(b"as %d " % len(base) + base)
        found.append((gathered, below))
    return found


def _without(keeps: Callable[[str], bool], excludes: IgnoreRules, source: str) -> Callable[[str], bool]:
    def kept(path: str) -> bool:
        inner = path.removeprefix(source).lstrip("/") if source else path
        return keeps(path) and not (inner and excludes.ignores(inner)) and not excludes.ignores(path)

    return kept


def _add_items(
    plan: CopyPlan, gathered: Gathered, root: int, destination: str, below: str, *, unpacks: bool
) -> None:
    plan.trees.add(root)
    inside = destination.endswith("/")
    if not gathered.is_directory:
        if below:  # --parents: the name is a part of what is kept
            above = PurePosixPath(below).parent
            target = posixpath.join(destination, str(above)) if str(above) != "." else destination
            plan.items.append(("source", root, gathered.path, target, posixpath.basename(below), True))
            return
        kind = "archive" if unpacks else "source"
        name = posixpath.basename(gathered.path)
        plan.items.append((kind, root, gathered.path, destination, name, inside))
        return
    base = posixpath.join(destination, below) if below else destination
    for item in gathered.items:
        target = posixpath.join(base, item.name) if item.name else base
        kind = "top" if not item.name else "directory" if item.is_directory else "file"
        plan.items.append((kind, root, item.path, target, "", False))


def _unpacks(instruction: Instruction) -> bool:
    if instruction.name != "ADD":
        return False
    return instruction.switch("unpack") if instruction.all_flags("unpack") else True


def is_remote(source: str) -> bool:
    """Whether a source of ADD is an address."""
    return _is_remote(source)


def _is_remote(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def make_plan(plan: CopyPlan, *, owner: str, mode: str, clear_owner: bool) -> dict[str, object]:
    """Return the plan as the child reads it."""
    return {
        "time": int(time.time()),
        "owner": owner,
        "mode": mode,
        "clear_owner": clear_owner,
        "items": plan.items,
    }

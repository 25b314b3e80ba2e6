# SPDX-License-Identifier: Apache-2.0
"""Stacks directories with overlayfs: with a writable one on top, or read-only and out of the tree.

Owns the options and the two ways to pass them: one ``lowerdir+`` for each layer where the kernel has it
(6.7), so that neither their number nor their names are limited; else the classic single string, kept within
its page by naming directories by descriptor. Features by which an upper directory would depend on more than
its own layers (redirects, metacopy, index) are off, as Docker has them: the layers come from strangers, and
an upper must survive a remount anywhere.

Source: Linux, Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from proa.host import mount

_OPTIONS = (("index", "off"), ("metacopy", "off"), ("redirect_dir", "nofollow"))
_FIRST_LOWERDIR_PLUS = (6, 7)
_knows_lowerdir_plus = True  # until the kernel says otherwise


def attach_overlay(lowers: Sequence[Path], *, upper: Path, work: Path, target: Path) -> None:
    """Mount at ``target`` what ``lowers`` (topmost first, at least one) and ``upper`` make together.

    :raises OSError: the kernel refuses; the reason it gives is in the text.
    """
    directories = [("upperdir", upper), ("workdir", work)]
    try:
        attached = _assemble(lowers, directories, target)
    except _NoLowerdirPlus:
        _attach_classic(lowers, directories, target)
        return
    try:
        mount.move_mount(attached, target)
    finally:
        os.close(attached)


def attach_merged(lowers: Sequence[Path], *, empty: Path, target: Path) -> None:
    """Mount at ``target`` the read-only stack of ``lowers`` (topmost first, at least one).

    :param empty: an empty directory: overlayfs wants two lowers.
    :raises OSError: the kernel refuses.
    """
    stack = [*lowers, empty]
    try:
        attached = _assemble(stack, [], target)
    except _NoLowerdirPlus:
        _attach_classic(stack, [], target)
        return
    try:
        mount.move_mount(attached, target)
    finally:
        os.close(attached)


@contextlib.contextmanager
def open_merged(lowers: Sequence[Path], *, empty: Path, scratch: Path) -> Iterator[int]:
    """Give a directory descriptor of the read-only stack of ``lowers`` (topmost first, at least one), for the
    span of the block.

    It has no place in the tree, so a process killed meanwhile leaves nothing mounted.

    :param empty: an empty directory: overlayfs wants two lowers.
    :param scratch: a directory to mount at for a moment, on old kernels.
    """
    stack = [*lowers, empty]
    try:
        merged = _assemble(stack, [], scratch)
    except _NoLowerdirPlus:
        _attach_classic(stack, [], scratch)
        try:
            merged = os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            mount.unmount(scratch, mount.Unmount.DETACH)
    try:
        yield merged
    finally:
        os.close(merged)


class _NoLowerdirPlus(Exception):
    """The kernel is older than 6.7."""


def _assemble(lowers: Sequence[Path], directories: Sequence[tuple[str, Path]], name: Path) -> int:
    global _knows_lowerdir_plus
    if not _knows_lowerdir_plus:
        raise _NoLowerdirPlus
    with contextlib.ExitStack() as stack:
        context = mount.fsopen("overlay")
        stack.callback(os.close, context)
        try:
            for lower in lowers:
                text = stack.enter_context(mount.option_path(lower))
                mount.fsconfig_string(context, "lowerdir+", text)
        except OSError as error:
            if error.errno != errno.EINVAL or "lowerdir+" not in str(error):
                raise
            _knows_lowerdir_plus = False
            raise _NoLowerdirPlus from error
        for key, directory in directories:
            mount.fsconfig_string(context, key, stack.enter_context(mount.option_path(directory)))
        for key, value in _OPTIONS:
            mount.fsconfig_string(context, key, value)
        try:
            mount.fsconfig_create(context, name)
        except OSError as error:
            # Before 6.5 the words are not looked at one by one, but together at the end.
            if error.errno == errno.EINVAL and _kernel_version() < _FIRST_LOWERDIR_PLUS:
                _knows_lowerdir_plus = False
                raise _NoLowerdirPlus from error
            raise
        return mount.fsmount(context)


def _kernel_version() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


def _attach_classic(lowers: Sequence[Path], directories: Sequence[tuple[str, Path]], target: Path) -> None:
    """127 layers, Docker's limit, at 18 bytes each fit a page."""
    with contextlib.ExitStack() as stack:

        def name(directory: Path) -> str:
            descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            return f"/proc/self/fd/{descriptor}"

        options = ["lowerdir=" + ":".join(name(lower) for lower in lowers)]
        options += [f"{key}={name(directory)}" for key, directory in directories]
        options += [f"{key}={value}" for key, value in _OPTIONS]
        mount.mount("overlay", target, "overlay", data=",".join(options))

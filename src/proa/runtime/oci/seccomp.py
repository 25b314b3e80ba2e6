# SPDX-License-Identifier: Apache-2.0
"""Docker's seccomp profiles turned into the runtime's: conditions resolved for one container. Pure.

A profile says for each rule under which architectures, capabilities and kernels it holds; the OCI form has
no conditions. What the profile allows is not judged here.

Source: Docker documentation, "Seccomp security profiles for Docker"; OCI runtime-spec, config-linux.md,
Seccomp; containers-common, seccomp.json(5).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache

import msgspec

from proa.model.errors import InvalidParameter

Json = dict[str, object]


class _Condition(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    caps: list[str] | None = None
    arches: list[str] | None = None
    min_kernel: str = ""


class _Argument(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    index: int
    op: str
    value: int = 0
    value_two: int = 0


class _Rule(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    action: str
    names: list[str] | None = None
    name: str = ""
    args: list[_Argument] | None = None
    errno_ret: int | None = None
    includes: _Condition | None = None
    excludes: _Condition | None = None


class _Architecture(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    architecture: str
    sub_architectures: list[str] | None = None


class Profile(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A profile as it is written."""

    default_action: str
    default_errno_ret: int | None = None
    arch_map: list[_Architecture] | None = None
    architectures: list[str] | None = None
    flags: list[str] | None = None
    listener_path: str = ""
    syscalls: list[_Rule] | None = None


# libseccomp's names of Go's architectures.
_SECCOMP_NAMES = {
    "amd64": "SCMP_ARCH_X86_64",
    "x86": "SCMP_ARCH_X86",
    "arm64": "SCMP_ARCH_AARCH64",
    "arm": "SCMP_ARCH_ARM",
    "ppc64le": "SCMP_ARCH_PPC64LE",
    "s390x": "SCMP_ARCH_S390X",
    "riscv64": "SCMP_ARCH_RISCV64",
}


@lru_cache(maxsize=8)
def parse_profile(text: str | bytes) -> Profile:
    """Read a profile. Raises InvalidParameter with what is wrong in it."""
    try:
        return msgspec.json.decode(text, type=Profile)
    except msgspec.DecodeError as error:
        raise InvalidParameter(f"Decoding seccomp profile failed: {error}") from error


def convert(
    profile: Profile, *, capabilities: Collection[str], architecture: str, kernel: tuple[int, int]
) -> Json:
    """Return ``linux.seccomp`` for a container with these capabilities on this host.

    :raises InvalidParameter: the profile names architectures in both of its ways, or a condition is unclear.
    """
    if profile.arch_map and profile.architectures:
        raise InvalidParameter(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, use either one"
        )
    result: Json = {"defaultAction": profile.default_action}
    if profile.default_errno_ret is not None:
        result["defaultErrnoRet"] = profile.default_errno_ret
    architectures = _architectures(profile, architecture)
    if architectures:
        result["architectures"] = architectures
    if profile.flags:
        result["flags"] = profile.flags
    if profile.listener_path:
        result["listenerPath"] = profile.listener_path
    result["syscalls"] = [
        _entry(rule)
        for rule in profile.syscalls or ()
        if _holds(rule, capabilities=capabilities, architecture=architecture, kernel=kernel)
    ]
    return result


def _architectures(profile: Profile, architecture: str) -> list[str]:
    native = _SECCOMP_NAMES.get(architecture)
    for entry in profile.arch_map or ():
        if entry.architecture == native:
            return [entry.architecture, *(entry.sub_architectures or ())]
    return list(profile.architectures or ())


def _holds(rule: _Rule, *, capabilities: Collection[str], architecture: str, kernel: tuple[int, int]) -> bool:
    included, excluded = rule.includes or _Condition(), rule.excludes or _Condition()
    if included.arches and architecture not in included.arches:
        return False
    if excluded.arches and architecture in excluded.arches:
        return False
    if included.caps and not all(name in capabilities for name in included.caps):
        return False
    if excluded.caps and any(name in capabilities for name in excluded.caps):
        return False
    if included.min_kernel and kernel < _version(included.min_kernel):
        return False
    return not (excluded.min_kernel and kernel >= _version(excluded.min_kernel))


def _version(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)\.(\d+)(?:\..*)?", text)
    if found is None:
        raise InvalidParameter(f"invalid kernel version in seccomp profile: {text!r}")
    return int(found[1]), int(found[2])


def _entry(rule: _Rule) -> Json:
    names = rule.names or ([rule.name] if rule.name else [])
    if not names:
        raise InvalidParameter("a rule of the seccomp profile names no system call")
    entry: Json = {"names": names, "action": rule.action}
    if rule.errno_ret is not None:
        entry["errnoRet"] = rule.errno_ret
    if rule.args:
        entry["args"] = [
            {"index": each.index, "value": each.value, "valueTwo": each.value_two, "op": each.op}
            for each in rule.args
        ]
    return entry

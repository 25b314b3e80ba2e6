# SPDX-License-Identifier: Apache-2.0
"""proa.runtime.oci.seccomp and filters: conditions are resolved, compiled filters kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proa.model.errors import InvalidParameter
from proa.runtime.oci.capabilities import DEFAULT
from proa.runtime.oci.filters import ANNOTATION, FilterCache
from proa.runtime.oci.seccomp import convert, parse_profile

PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "archMap": [
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
    ],
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": None, "comment": "", "includes": {}},
        {"name": "old", "action": "SCMP_ACT_ALLOW"},
        {"names": ["admin"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {
            "names": ["noadmin"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 1,
            "excludes": {"caps": ["CAP_SYS_ADMIN"]},
        },
        {"names": ["arm"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
        {"names": ["notamd"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
        {"names": ["new"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {
            "names": ["personality"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 4294967295, "op": "SCMP_CMP_EQ"}],
        },
    ],
}


def converted(*capabilities: str, kernel: tuple[int, int] = (6, 1), architecture: str = "amd64") -> Any:
    profile = parse_profile(json.dumps(PROFILE))
    return convert(profile, capabilities=capabilities, architecture=architecture, kernel=kernel)


def names(result: Any) -> list[str]:
    return [name for rule in result["syscalls"] for name in rule["names"]]


def test_conditions() -> None:
    assert names(converted()) == ["read", "old", "noadmin", "new", "personality"]
    assert names(converted("CAP_SYS_ADMIN")) == ["read", "old", "admin", "new", "personality"]
    assert "new" not in names(converted(kernel=(4, 7)))
    assert {"arm", "notamd"} <= set(names(converted(architecture="arm64")))


def test_values_are_carried_over() -> None:
    result = converted()
    assert result["defaultErrnoRet"] == 38
    assert result["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert result["syscalls"][2] == {"names": ["noadmin"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    assert result["syscalls"][-1]["args"] == [
        {"index": 0, "value": 4294967295, "valueTwo": 0, "op": "SCMP_CMP_EQ"}
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"defaultAction": 1}',
        '{"defaultAction": "A", "syscalls": [{"action": "A"}]}',
        '{"defaultAction": "A", "architectures": ["X"], "archMap": [{"architecture": "Y"}]}',
        '{"defaultAction": "A", "syscalls": [{"name": "x", "action": "A", "includes": {"minKernel": "x"}}]}',
    ],
)
def test_bad_profiles_are_refused(text: str) -> None:
    with pytest.raises(InvalidParameter):
        convert(parse_profile(text), capabilities=(), architecture="amd64", kernel=(6, 1))


def test_the_distribution_profile_allows_what_programs_need() -> None:
    path = Path("/usr/share/containers/seccomp.json")
    if not path.exists():
        pytest.skip("no containers-common")
    profile = parse_profile(path.read_bytes())
    allowed = {
        name
        for rule in convert(profile, capabilities=DEFAULT, architecture="amd64", kernel=(6, 1))["syscalls"]  # type: ignore[attr-defined]
        if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule
        for name in rule["names"]
    }
    assert {"read", "execve", "clone3", "openat2", "chroot"} <= allowed
    assert not {"init_module", "bpf", "kexec_file_load", "perf_event_open"} & allowed


def config(profile: object, **annotations: str) -> dict[str, object]:
    return {"linux": {"seccomp": profile}, "annotations": annotations}


def test_compiled_filters_are_given_back(tmp_path: Path) -> None:
    cache = FilterCache()
    first = config({"defaultAction": "A"}, note="x")
    key = cache.apply(first)
    assert key
    assert first["annotations"] == {"note": "x"}
    cache.keep(key, tmp_path)  # nothing there: nothing kept
    (tmp_path / "seccomp.bpf").write_bytes(b"\1" * 16)
    cache.keep(key, tmp_path)
    second = config({"defaultAction": "A"}, note="x")
    assert cache.apply(second) == ""
    assert second["annotations"] == {"note": "x", ANNOTATION: "AQEBAQEBAQEBAQEBAQEBAQ=="}
    assert cache.apply(config({"defaultAction": "B"})) not in ("", key)


@pytest.mark.parametrize(
    "made",
    [
        config({"defaultAction": "A", "flags": ["LOG"]}),
        config({"defaultAction": "A"}, **{ANNOTATION: "user's"}),
        {"linux": {}},
    ],
)
def test_what_a_filter_does_not_carry_is_not_kept(made: dict[str, object]) -> None:
    assert FilterCache().apply(made) == ""

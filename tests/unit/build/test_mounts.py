# SPDX-License-Identifier: Apache-2.0
"""RUN --mount, read."""

from __future__ import annotations

import pytest

from proa.build.mounts import RunMount, parse_mount
from proa.model.errors import InvalidParameter


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("target=/x", RunMount(type="bind", target="/x")),
        (
            "type=bind,from=a,src=b,dst=c,rw",
            RunMount(type="bind", origin="a", source="b", target="/w/c", read_only=False),
        ),
        ("type=bind,target=/x,readonly=false", RunMount(type="bind", target="/x", read_only=False)),
        (
            "type=cache,id=i,target=/c,sharing=locked,mode=0700,uid=1,gid=2",
            RunMount(
                type="cache", id="i", target="/c", sharing="locked", mode=0o700, uid=1, gid=2, read_only=False
            ),
        ),
        ("type=cache,target=/c,ro", RunMount(type="cache", target="/c", read_only=True)),
        (
            "type=tmpfs,target=/t,size=2m",
            RunMount(type="tmpfs", target="/t", size_bytes=2 << 20, read_only=False),
        ),
        ("type=secret,id=s,required", RunMount(type="secret", id="s", required=True, read_only=False)),
        ("type=ssh", RunMount(type="ssh", read_only=False)),
    ],
)
def test_parse(text: str, expected: RunMount) -> None:
    assert parse_mount(text, lambda word: word, "/w") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type=foo,target=/x", 'unsupported mount type "foo"'),
        ("type=bind", "target is required"),
        ("type=tmpfs,target=/x,id=1", "unexpected key 'id' for mount type 'tmpfs'"),
        ("type=cache,target=/x,sharing=y", 'unsupported sharing value "y"'),
        ("type=cache,target=/x,mode=9", "invalid value 9 for mode"),
        ("type=cache,target=/x,uid=-1", "invalid value for uid: -1"),
        ("type=tmpfs,target=/x,size=abc", "invalid value for size: abc"),
        ("type=bind,target=/", "root directory"),
        ("type=secret,required=maybe", "invalid value for required: maybe"),
        ("target=/x,,", "empty field"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        parse_mount(text, lambda word: word, "/")

# SPDX-License-Identifier: Apache-2.0
"""The Dockerfile front end's attributes as a request."""

from __future__ import annotations

import pytest

from proa.api.buildkit.frontend import read_attributes
from proa.model.config import Ulimit
from proa.model.errors import InvalidParameter, NotImplementedHere


def test_all_that_a_client_can_ask() -> None:
    wanted = read_attributes(
        {
            "filename": "my.Dockerfile",
            "target": "dev",
            "build-arg:A": "1",
            "label:l": "v",
            "no-cache": "",
            "image-resolve-mode": "pull",
            "platform": "linux/AMD64",
            "force-network-mode": "none",
            "add-hosts": '"a=1.2.3.4","b=::1"',
            "cgroup-parent": "/c",
            "shm-size": "1048576",
            "ulimit": "nofile=10:20,core=5",
        },
        ["x"],
        ["cache"],
    )
    request = wanted.request
    assert (request.dockerfile, request.target, request.tags, request.cache_from) == (
        "my.Dockerfile", "dev", ("x",), ("cache",)
    )  # fmt: skip
    assert (request.build_args, request.labels) == ({"A": "1"}, {"l": "v"})
    assert (request.no_cache, request.pull, request.platform) == (True, True, "linux/amd64")
    host = request.host
    assert (host.network_mode, host.extra_hosts) == ("none", ["a:1.2.3.4", "b:::1"])
    assert (host.cgroup_parent, host.shm_size) == ("/c", 1048576)
    assert host.ulimits == [Ulimit(name="nofile", soft=10, hard=20), Ulimit(name="core", soft=5, hard=5)]
    assert (wanted.context, wanted.dockerfile, wanted.local_dockerfile) == ("context", "dockerfile", True)


def test_where_the_context_is() -> None:
    upload = read_attributes({"context": "http://buildkit-session/abc"}, [], [])
    assert (upload.upload, upload.request.remote, upload.local_dockerfile) == ("/abc", "", False)
    remote = read_attributes({"context": "https://example.org/x.tar", "dockerfilekey": "dockerfile"}, [], [])
    assert (remote.request.remote, remote.local_dockerfile) == ("https://example.org/x.tar", True)


@pytest.mark.parametrize(
    ("attrs", "kind", "message"),
    [
        ({"context:base": "input:base"}, NotImplementedHere, "the build context base is not supported"),
        ({"requestid": "frontend.outline"}, NotImplementedHere, "it only builds"),
        ({"platform": "linux/amd64,linux/arm64"}, InvalidParameter, "one platform at a time"),
        ({"add-hosts": "nonsense"}, InvalidParameter, "invalid key-value pair"),
        ({"shm-size": "-1"}, InvalidParameter, "shm-size"),
        ({"ulimit": "nofile=x"}, InvalidParameter, "invalid ulimit"),
    ],
)
def test_what_is_refused(attrs: dict[str, str], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        read_attributes(attrs, [], [])

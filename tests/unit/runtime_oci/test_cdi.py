# SPDX-License-Identifier: Apache-2.0
"""Devices that vendors describe: which description counts, and what it changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proa.engine.device_requests import requested_devices
from proa.model.config import DeviceRequest, HostConfig
from proa.model.errors import InvalidParameter
from proa.runtime.oci.cdi import DeviceSpecs, Edits, Hook, Mount, Node, inject

YAML = """
cdiVersion: "0.6.0"
kind: acme.com/toy
containerEdits: {env: [ACME=1]}
devices:
  - name: one
    containerEdits: {env: [TOY=one]}
  - name: two
    containerEdits: {env: [TOY=two], additionalGids: [44]}
"""


def write(directory: Path, name: str, **changes: Any) -> None:  # Any: JSON
    directory.mkdir(exist_ok=True)
    spec = {"cdiVersion": "1.0.0", "kind": "acme.com/toy", "devices": [{"name": "one"}], **changes}
    (directory / name).write_text(json.dumps(spec))


def config() -> dict[str, Any]:
    return {
        "process": {"env": ["PATH=/bin", "TOY=mine"], "user": {"uid": 7, "gid": 0, "additionalGids": [7]}},
        "mounts": [{"destination": "/proc"}, {"destination": "/data/deep"}],
        "linux": {"resources": {"devices": []}},
    }


def test_edits_of_a_file_come_once_before_its_devices(tmp_path: Path) -> None:
    (tmp_path / "acme.yaml").write_text(YAML)
    (tmp_path / "notes.txt").write_text("of no meaning")
    specs = DeviceSpecs([tmp_path, tmp_path / "missing"])
    assert specs.names() == ["acme.com/toy=one", "acme.com/toy=two"]
    found = specs.resolve(["acme.com/toy=two", "acme.com/toy=one"])
    assert [edits.env for edits in found] == [["ACME=1"], ["TOY=two"], ["TOY=one"]]
    with pytest.raises(InvalidParameter, match=r"unresolvable CDI devices acme\.com/toy=x, b/c=d$"):
        specs.resolve(["acme.com/toy=x", "acme.com/toy=one", "b/c=d"])


def test_the_later_directory_wins_and_a_name_given_twice_is_nobodys(tmp_path: Path) -> None:
    low, high = tmp_path / "low", tmp_path / "high"
    write(low, "a.json", containerEdits={"env": ["FROM=low"]})
    write(high, "a.json", containerEdits={"env": ["FROM=high"]})
    specs = DeviceSpecs([low, high])
    assert specs.resolve(["acme.com/toy=one"])[0].env == ["FROM=high"]
    write(high, "b.json")
    assert specs.names() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"cdiVersion": "7.0.0"},
        {"kind": "toy"},
        {"devices": [{"name": "a b"}]},
        {"devices": "none"},
        {"containerEdits": {"hooks": [{"hookName": "sometimes", "path": "/x"}]}},
    ],
)
def test_a_bad_file_is_left_out(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path, "bad.json", **changes)
    (tmp_path / "worse.json").write_text("{")
    (tmp_path / "worst.yaml").write_text("a: [")
    write(tmp_path, "good.json", kind="acme.com/other")
    assert DeviceSpecs([tmp_path]).names() == ["acme.com/other=one"]


def test_what_is_not_supported_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.json", containerEdits={"intelRdt": {"closID": "x"}})
    with pytest.raises(InvalidParameter, match="intelRdt is not supported"):
        DeviceSpecs([tmp_path]).resolve(["acme.com/toy=one"])


def test_a_configuration_is_changed() -> None:
    changed = config()
    edits = Edits(
        env=["TOY=one"],
        device_nodes=[
            Node(path="/dev/toy", host_path="/dev/null", permissions="r"),
            Node(path="/dev/made", type="b", major=7, minor=1, file_mode=0o600, uid=3, gid=4),
        ],
        mounts=[Mount(host_path="/srv/toy", container_path="/data", options=["ro"])],
        hooks=[Hook(hook_name="createContainer", path="/bin/true", args=["true"], timeout=5)],
        additional_gids=[44, 7, 0],
    )
    inject(changed, [edits])
    assert changed["process"]["env"] == ["PATH=/bin", "TOY=one"]
    assert changed["process"]["user"]["additionalGids"] == [7, 44]
    toy, made = changed["linux"]["devices"]
    assert (toy["path"], toy["type"], toy["major"], toy["minor"], toy["uid"]) == ("/dev/toy", "c", 1, 3, 7)
    assert (made["major"], made["fileMode"], made["uid"], made["gid"]) == (7, 0o600, 3, 4)
    assert [rule["access"] for rule in changed["linux"]["resources"]["devices"]] == ["r", "rwm"]
    assert [mount["destination"] for mount in changed["mounts"]] == ["/proc", "/data", "/data/deep"]
    assert changed["mounts"][1]["options"] == ["ro", "rbind"]
    assert changed["hooks"] == {"createContainer": [{"path": "/bin/true", "args": ["true"], "timeout": 5}]}


@pytest.mark.parametrize("path", ["/dev/nowhere", "/etc/hostname"])
def test_a_node_that_is_not_there_is_refused(path: str) -> None:
    with pytest.raises(InvalidParameter, match="CDI device injection failed: /"):
        inject(config(), [Edits(device_nodes=[Node(path=path)])])


def test_a_request_that_no_driver_takes() -> None:
    both = [DeviceRequest(driver="cdi", device_ids=[name]) for name in ("a/b=c", "d/e=f")]
    assert requested_devices(HostConfig(device_requests=both)) == ("a/b=c", "d/e=f")
    gpus = HostConfig(device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])])
    with pytest.raises(InvalidParameter) as caught:
        requested_devices(gpus)
    assert caught.value.message == 'could not select device driver "" with capabilities: [[gpu]]'

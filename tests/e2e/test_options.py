# SPDX-License-Identifier: Apache-2.0
"""Options of docker run that reach beyond the container itself: links, and the like."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, Result


@pytest.fixture
def tag(daemon: Daemon) -> Iterator[str]:
    """A prefix for names of containers and networks that are taken away after the test."""
    tag = f"o{uuid.uuid4().hex[:8]}"
    yield tag
    for listing, removal in (("ps -aq", "rm -f -v"), ("network ls -q", "network rm")):
        found = daemon.docker(*listing.split(), "--filter", f"name={tag}").out.split()
        if found:
            daemon.docker(*removal.split(), *found)


def test_a_link_on_the_default_bridge_follows_its_peer(daemon: Daemon, tag: str) -> None:
    peer, web = f"{tag}-peer", f"{tag}-web"
    daemon.docker("run", "-d", "--name", peer, "-e", "MODE=x", "--expose", "80", "busybox", "sleep", "1000")
    daemon.docker("run", "-d", "--name", web, "--link", f"{peer}:db", "busybox", "sleep", "1000")
    env = daemon.docker("exec", web, "env").out
    assert "DB_PORT_80_TCP_PROTO=tcp" in env and "DB_ENV_MODE=x" in env and f"DB_NAME=/{web}/db" in env
    assert daemon.docker("exec", web, "ping", "-c", "1", "-W", "5", "db").status == 0
    shown = json.loads(daemon.docker("inspect", "-f", "{{json .HostConfig.Links}}", web).out)
    assert shown == [f"/{peer}:/{web}/db"]
    daemon.docker("stop", "-t", "0", peer)
    daemon.docker("run", "-d", "--name", f"{tag}-other", "busybox", "sleep", "1000")  # takes its address
    daemon.docker("start", peer)
    address = daemon.docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", peer).out.strip()
    hosts = daemon.docker("exec", web, "cat", "/etc/hosts").out
    assert [line.split()[0] for line in hosts.splitlines() if line.split()[1] == "db"] == [address]
    daemon.docker("stop", "-t", "0", peer, web)
    names = daemon.docker("ps", "-a", "--filter", f"name={peer}", "--format", "{{.Names}}", "--no-trunc").out
    assert names.strip() == f"{peer},{web}/db"
    refused = daemon.docker("start", web, check=False)
    assert f"Cannot link to a non running container: /{peer} AS /{web}/db" in refused.err
    daemon.docker("rm", "--link", f"{web}/db")
    daemon.docker("start", web)
    missing = daemon.docker("run", "--rm", "--link", "nobody:x", "busybox", "true", check=False)
    assert "could not get container for nobody" in missing.err


def test_a_link_on_a_network_is_a_name_for_one_container(daemon: Daemon, tag: str, hull: str) -> None:
    daemon.docker("network", "create", tag)
    daemon.docker("run", "-d", "--name", f"{tag}-peer", "--network", tag, "busybox", "sleep", "1000")
    ask = ("busybox", "nslookup", "-type=a", "db")
    run = ("run", "--rm", "--isolation", hull, "--network", tag)
    address = json.loads(daemon.docker("inspect", f"{tag}-peer").out)[0]["NetworkSettings"]["Networks"][tag]
    answer = daemon.docker(*run, "--link", f"{tag}-peer:db", *ask).out
    assert f"Address: {address['IPAddress']}" in answer
    assert daemon.docker(*run, *ask, check=False).status != 0


def test_a_block_device_is_limited(daemon: Daemon, tag: str) -> None:
    disks = [Path("/dev") / disk.name for disk in Path("/sys/block").iterdir()]
    disk = next((disk for disk in disks if disk.is_block_device()), None)
    if disk is None:
        pytest.skip("this host has no block device")
    numbers = (Path("/sys/block") / disk.name / "dev").read_text().strip()
    rates = ("--device-read-bps", f"{disk}:1mb", "--device-write-iops", f"{disk}:50")
    daemon.docker("run", "-d", "--name", tag, *rates, "busybox", "sleep", "1000")
    pid = daemon.docker("inspect", "-f", "{{.State.Pid}}", tag).out.strip()
    groups = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    v1 = Path(f"/sys/fs/cgroup/blkio{groups.get('blkio', '')}")
    if "blkio" in groups:
        assert f"{numbers} 1048576" in (v1 / "blkio.throttle.read_bps_device").read_text()
        assert f"{numbers} 50" in (v1 / "blkio.throttle.write_iops_device").read_text()
    else:
        found = Path(f"/sys/fs/cgroup{groups['']}/io.max").read_text()
        assert f"{numbers} rbps=1048576 wbps=max riops=max wiops=50" in found
    refused = daemon.docker("run", "--rm", "--device-read-bps", "/dev/null:1mb", "busybox", check=False)
    assert "/dev/null: not a block device" in refused.err


def test_an_image_is_mounted(daemon: Daemon, hull: str) -> None:
    def run(mount: str, script: str, check: bool = True) -> Result:
        options = ("--rm", "--isolation", hull, "--mount", f"type=image,source=busybox,target=/x{mount}")
        return daemon.docker("run", *options, "busybox", "sh", "-c", script, check=check)

    out = run("", "ls -d /x/bin /x/etc && /x/bin/true && touch /x/new || echo refused")
    assert out.out.split() == ["/x/bin", "/x/etc", "refused"]
    assert run(",image-subpath=bin", "test -x /x/busybox && echo there").out == "there\n"
    assert run(",image-subpath=etc/passwd", "head -c 4 /x").out == "root"
    assert "cannot access path" in run(",image-subpath=nothing", "true", check=False).err


def test_a_bind_with_and_without_what_is_mounted_below(daemon: Daemon, tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(below)], check=True)
    try:
        (below / "file").touch()

        def run(options: str, script: str) -> str:
            bind = f"type=bind,source={tmp_path},target=/x{options}"
            return daemon.docker("run", "--rm", "--mount", bind, "busybox", "sh", "-c", script).out.strip()

        write = "touch /x/below/new && echo written || echo refused"
        assert run("", "ls /x/below") == "file"
        assert run(",bind-recursive=disabled", "ls /x/below") == ""
        assert run(",readonly", write) == "refused"
        file = f"{below}/file:/file:ro"
        assert daemon.docker("run", "--rm", "-v", file, "busybox", "cat", "/file").status == 0
        assert run(",readonly,bind-recursive=writable", write) == "written"
        assert run(",readonly,bind-recursive=readonly,bind-propagation=rprivate", write) == "refused"
    finally:
        subprocess.run(["umount", str(below)], check=True)


def test_a_described_device_and_one_that_nobody_knows(daemon: Daemon, tag: str) -> None:
    kind = f"proa.test/{tag}"
    spec = {
        "cdiVersion": "0.6.0",
        "kind": kind,
        "devices": [
            {
                "name": "a",
                "containerEdits": {
                    "env": ["TOY=a"],
                    "deviceNodes": [{"path": "/dev/toy", "hostPath": "/dev/zero"}],
                    "mounts": [{"hostPath": "/etc", "containerPath": "/toy", "options": ["ro", "bind"]}],
                    "hooks": [{"hookName": "createRuntime", "path": "/bin/true"}],
                },
            }
        ],
    }
    file = Path("/etc/cdi") / f"{tag}.json"
    made = [folder for folder in (file.parent,) if not folder.exists()]
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(spec))
    try:
        script = "echo $TOY; head -c 3 /dev/toy | wc -c; test -f /toy/passwd && echo mounted"
        run = daemon.docker("run", "--rm", "--device", f"{kind}=a", "busybox", "sh", "-c", script)
        assert run.out.split() == ["a", "3", "mounted"]
        assert f"{kind}=a" in daemon.docker("info", "-f", "{{json .DiscoveredDevices}}").out
        missing = daemon.docker("run", "--name", tag, "--device", f"{kind}=b", "busybox", check=False)
        assert f"CDI device injection failed: unresolvable CDI devices {kind}=b" in missing.err
        assert daemon.docker("inspect", "-f", "{{.State.Status}}", tag).out.strip() == "created"
    finally:
        file.unlink()
        for folder in made:
            folder.rmdir()
    gpus = daemon.docker("run", "--rm", "--gpus", "all", "busybox", "true", check=False)
    assert 'could not select device driver "" with capabilities: [[gpu]]' in gpus.err
    assert gpus.status == 125


def test_an_interface_is_named_and_set(daemon: Daemon, tag: str, hull: str) -> None:
    daemon.docker("network", "create", tag)
    opt = "driver-opt=com.docker.network.endpoint"
    network = f"name={tag},{opt}.ifname=lan0,{opt}.sysctls=net.ipv4.conf.IFNAME.log_martians=1"
    script = "ip -o -4 address show lan0 && cat /proc/sys/net/ipv4/conf/lan0/log_martians"
    run = ("run", "--rm", "--isolation", hull, "--network")
    out = daemon.docker(*run, network, "busybox", "sh", "-c", script).out
    assert "inet 172." in out and out.endswith("\n1\n")
    bad = daemon.docker(*run, f"name={tag},{opt}.sysctls=net.ipv4.conf.eth0.x=1", "busybox", check=False)
    assert "unrecognised network interface sysctl" in bad.err


def test_link_local_addresses(daemon: Daemon, tag: str) -> None:
    daemon.docker("network", "create", tag)
    run = ("run", "--rm", "--network", tag, "--link-local-ip")
    out = daemon.docker(*run, "169.254.7.7", "busybox", "ip", "-o", "address", "show", "eth0").out
    assert "169.254.7.7/16" in out and "inet 172." in out
    refused = daemon.docker(*run, "10.0.0.1", "busybox", "true", check=False)
    assert "invalid link-local IP address: 10.0.0.1" in refused.err

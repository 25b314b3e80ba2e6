# SPDX-License-Identifier: Apache-2.0
"""What users write, read into values; the sentences of refusals are part of the interface."""

from __future__ import annotations

import pytest

from proa.engine import limits, mounts, ports, signals
from proa.engine.container import Container
from proa.engine.creation import check_config, command_line, merge_config
from proa.model.config import (
    ContainerConfig,
    DeviceMapping,
    Empty,
    HostConfig,
    LogConfig,
    MountSpec,
    PortBinding,
    RestartPolicy,
    TmpfsOptions,
    Ulimit,
)
from proa.model.errors import InvalidParameter, NoSuchContainer
from proa.model.network import PublishedPort


def nobody(ref: str) -> Container:
    raise NoSuchContainer(ref)


class TestLimits:
    def test_no_limits(self) -> None:
        resources = limits.parse_resources(HostConfig())
        assert (resources.memory_bytes, resources.cpus, resources.pids) == (0, 0.0, 0)

    def test_cpus_become_a_quota(self) -> None:
        resources = limits.parse_resources(HostConfig(nano_cpus=500_000_000))
        assert (resources.cpu_period_us, resources.cpu_quota_us, resources.cpus) == (100_000, 50_000, 0.5)

    def test_swap_is_twice_the_memory(self) -> None:
        assert limits.parse_resources(HostConfig(memory=64 << 20)).memory_swap_bytes == 128 << 20

    @pytest.mark.parametrize(
        ("host", "sentence"),
        [
            (HostConfig(memory=1024), "Minimum memory limit allowed is 6MB"),
            (HostConfig(memory=64 << 20, memory_swap=32 << 20), "should be larger than memory limit"),
            (HostConfig(memory_swap=32 << 20), "always set the Memory limit"),
            (HostConfig(nano_cpus=10**15), "range of CPUs is from 0.01 to"),
            (HostConfig(nano_cpus=10**9, cpu_quota=5000), "CPU Quota cannot both be set"),
            (HostConfig(cpu_period=5), "CPU cfs period can not be less than 1ms"),
            (HostConfig(cpuset_cpus="a-b"), "Invalid value a-b for cpuset cpus"),
            (HostConfig(cpuset_cpus="0-4095"), "Requested CPUs are not available"),
            (HostConfig(blkio_weight=5), "Range of blkio weight is from 10 to 1000"),
        ],
    )
    def test_refusals(self, host: HostConfig, sentence: str) -> None:
        with pytest.raises(InvalidParameter, match=sentence):
            limits.parse_resources(host)

    def test_ulimits(self) -> None:
        (limit,) = limits.parse_rlimits(HostConfig(ulimits=[Ulimit(name="nofile", soft=10, hard=20)]))
        assert (limit.name, limit.soft, limit.hard) == ("nofile", 10, 20)
        with pytest.raises(InvalidParameter, match="invalid ulimit type: shoes"):
            limits.parse_rlimits(HostConfig(ulimits=[Ulimit(name="shoes", soft=1, hard=1)]))
        with pytest.raises(InvalidParameter, match="less than or equal to hard limit"):
            limits.parse_rlimits(HostConfig(ulimits=[Ulimit(name="nofile", soft=3, hard=1)]))

    def test_security(self) -> None:
        security = limits.parse_security(
            HostConfig(
                cap_add=["net_admin"],
                cap_drop=["ALL"],
                security_opt=["no-new-privileges", "seccomp=unconfined"],
                devices=[DeviceMapping(path_on_host="/dev/fuse")],
            )
        )
        assert security.cap_add == ("CAP_NET_ADMIN",)
        assert security.cap_drop == ("ALL",)
        assert security.no_new_privileges
        assert security.seccomp == "unconfined"
        assert security.devices[0].container_path == "/dev/fuse"

    def test_a_profile_is_taken_as_it_is(self) -> None:
        profile = '{"defaultAction":"SCMP_ACT_ALLOW"}'
        for separator in "=:":
            security = limits.parse_security(HostConfig(security_opt=[f"seccomp{separator}{profile}"]))
            assert security.seccomp == profile

    @pytest.mark.parametrize(
        ("host", "sentence"),
        [
            (HostConfig(cap_add=["FLY"]), "unknown capability"),
            (HostConfig(security_opt=["seccomp={"]), "Decoding seccomp profile failed"),
            (HostConfig(security_opt=["what"]), "invalid --security-opt"),
            (HostConfig(device_cgroup_rules=["x"]), "invalid device cgroup rule format"),
        ],
    )
    def test_security_refusals(self, host: HostConfig, sentence: str) -> None:
        with pytest.raises(InvalidParameter, match=sentence):
            limits.parse_security(host)


class TestMounts:
    def test_kinds(self) -> None:
        host = HostConfig(
            binds=["/host:/bind:ro", "name:/volume", "/shared:/s:rshared,z"],
            tmpfs={"/t": "size=1m,ro"},
            mounts=[
                MountSpec(type="tmpfs", target="/m", tmpfs_options=TmpfsOptions(size_bytes=5, mode=0o1777))
            ],
        )
        config = ContainerConfig(volumes={"/anonymous": Empty()})
        found = {point.destination: point for point in mounts.parse_mounts(config, host, nobody)}
        assert (found["/bind"].type, found["/bind"].rw, found["/bind"].propagation) == (
            "bind",
            False,
            "rprivate",
        )
        assert (found["/volume"].type, found["/volume"].name) == ("volume", "name")
        assert found["/s"].propagation == "rshared"
        assert (found["/t"].rw, found["/t"].options) == (False, ("size=1m",))
        assert found["/m"].options == ("size=5", "mode=1777")
        assert (found["/anonymous"].type, found["/anonymous"].name) == ("volume", "")

    def test_outer_mounts_come_first(self) -> None:
        host = HostConfig(binds=["/a:/x/y/z", "/b:/x"])
        assert [point.destination for point in mounts.parse_mounts(ContainerConfig(), host, nobody)] == [
            "/x",
            "/x/y/z",
        ]

    def test_a_bind_takes_the_place_of_the_image_volume(self) -> None:
        points = mounts.parse_mounts(
            ContainerConfig(volumes={"/data/": Empty()}), HostConfig(binds=["/h:/data"]), nobody
        )
        assert [(point.type, point.destination) for point in points] == [("bind", "/data")]

    @pytest.mark.parametrize(
        ("host", "sentence"),
        [
            (HostConfig(binds=["a:b:c:d"]), "invalid volume specification: 'a:b:c:d'"),
            (HostConfig(binds=["/a:b"]), "mount path must be absolute"),
            (HostConfig(binds=["/a:/"]), "destination can't be '/'"),
            (HostConfig(binds=["/a:/b:fast"]), "invalid mode: fast"),
            (HostConfig(binds=["b@d:/x"]), "includes invalid characters for a local volume name"),
            (HostConfig(binds=["/a:/x", "/b:/x"]), "Duplicate mount point: /x"),
            (HostConfig(mounts=[MountSpec(type="bind", target="/x")]), "field Source must not be empty"),
            (HostConfig(mounts=[MountSpec(type="npipe", target="/x")]), "mount type unknown"),
            (HostConfig(mounts=[MountSpec(type="bind", source="/x")]), "field Target must not be empty"),
            (
                HostConfig(mounts=[MountSpec(type="tmpfs", source="a", target="/x")]),
                "Source must not be specified",
            ),
        ],
    )
    def test_refusals(self, host: HostConfig, sentence: str) -> None:
        with pytest.raises(InvalidParameter, match=sentence):
            mounts.parse_mounts(ContainerConfig(), host, nobody)


class TestPorts:
    def test_published_and_exposed(self) -> None:
        config = ContainerConfig(exposed_ports={"80/tcp": Empty(), "53/udp": Empty()})
        host = HostConfig(
            port_bindings={"80/tcp": [PortBinding(host_ip="127.0.0.1", host_port="8080")]},
            publish_all_ports=True,
        )
        found = ports.parse_ports(config, host)
        assert [(port.container_port, port.protocol, port.host_port) for port in found] == [
            (80, "tcp", 8080),
            (53, "udp", 0),
        ]

    def test_no_binding_means_any_port(self) -> None:
        assert ports.parse_ports(ContainerConfig(), HostConfig(port_bindings={"80": None})) == (
            PublishedPort(container_port=80, protocol="tcp", any_address=True),
        )

    def test_ranges_and_ipv6_addresses(self) -> None:
        bindings = [PortBinding(host_ip="::1", host_port="8000-8010"), PortBinding(host_port="0")]
        one, other = ports.parse_ports(ContainerConfig(), HostConfig(port_bindings={"80": bindings}))
        assert (str(one.host_ip), one.host_port, one.last_host_port) == ("::1", 8000, 8010)
        assert (one.any_address, other.any_address, other.host_port) == (False, True, 0)
        for text in ("8010-8000", "8000-", "-8000", "8000-x"):
            with pytest.raises(InvalidParameter, match="invalid port"):
                ports.parse_ports(
                    ContainerConfig(), HostConfig(port_bindings={"80": [PortBinding(host_port=text)]})
                )

    @pytest.mark.parametrize("text", ["0", "65536", "x", "80/icmp", "-1", "８０"])
    def test_refusals(self, text: str) -> None:
        with pytest.raises(InvalidParameter, match="invalid port specification"):
            ports.parse_port(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [("KILL", 9), ("SIGTERM", 15), ("9", 9), ("sigusr1", 10), ("RTMIN+3", 37), ("RTMAX", 64)],
)
def test_signals(text: str, number: int) -> None:
    assert signals.parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "FOO", "SIGSIGKILL", "RTMAX+1"])
def test_unknown_signals(text: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid signal"):
        signals.parse_signal(text)


class TestCommand:
    def test_the_image_fills_in(self) -> None:
        image = ContainerConfig(entrypoint=["/init"], cmd=["serve"], env=["A=1", "PATH=/bin"], user="u")
        merged = merge_config(ContainerConfig(env=["A=2"]), image)
        assert command_line(merged) == ("/init", "serve")
        assert merged.env == ["A=2", "PATH=/bin"]
        assert merged.user == "u"

    def test_a_command_of_ones_own_keeps_the_entrypoint(self) -> None:
        image = ContainerConfig(entrypoint=["/init"], cmd=["serve"])
        assert command_line(merge_config(ContainerConfig(cmd=["x"]), image)) == ("/init", "x")

    def test_an_entrypoint_of_ones_own_drops_the_command(self) -> None:
        image = ContainerConfig(entrypoint=["/init"], cmd=["serve"])
        assert command_line(merge_config(ContainerConfig(entrypoint=["/mine"]), image)) == ("/mine",)

    def test_an_empty_entrypoint_clears_the_images(self) -> None:
        image = ContainerConfig(entrypoint=["/init"])
        assert command_line(merge_config(ContainerConfig(entrypoint=[""], cmd=["x"]), image)) == ("x",)

    def test_nothing_to_run(self) -> None:
        with pytest.raises(InvalidParameter, match="no command specified"):
            command_line(merge_config(ContainerConfig(), ContainerConfig()))


@pytest.mark.parametrize(
    ("config", "host", "sentence"),
    [
        (ContainerConfig(working_dir="x"), HostConfig(), "needs to be an absolute path"),
        (ContainerConfig(env=["=x"]), HostConfig(), "invalid environment variable: =x"),
        (ContainerConfig(stop_signal="NOPE"), HostConfig(), "invalid signal: NOPE"),
        (ContainerConfig(), HostConfig(log_config=LogConfig(type="tape")), "no log driver named 'tape'"),
        (ContainerConfig(), HostConfig(restart_policy=RestartPolicy(name="maybe")), "unknown policy 'maybe'"),
        (
            ContainerConfig(),
            HostConfig(restart_policy=RestartPolicy(name="always", maximum_retry_count=3)),
            "maximum retry count can only be used with 'on-failure'",
        ),
        (
            ContainerConfig(),
            HostConfig(auto_remove=True, restart_policy=RestartPolicy(name="always")),
            "can't create 'AutoRemove' container with restart policy",
        ),
        (ContainerConfig(), HostConfig(oom_score_adj=5000), "range for oom score adj"),
    ],
)
def test_configurations_that_could_only_fail(
    config: ContainerConfig, host: HostConfig, sentence: str
) -> None:
    with pytest.raises(InvalidParameter, match=sentence):
        check_config(config, host)

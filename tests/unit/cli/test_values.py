# SPDX-License-Identifier: Apache-2.0
"""Values of flags: what docker users write, and what is refused."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.cli import values
from proa.model.config import DeviceMapping, MountSpec, PortBinding, RestartPolicy, TmpfsOptions, Ulimit


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1024", 1024),
        ("1b", 1),
        ("1k", 1024),
        ("512m", 512 << 20),
        ("512MB", 512 << 20),
        ("512MiB", 512 << 20),
        ("1.5g", 3 << 29),
        ("2T", 2 << 40),
        (" 8 m ", 8 << 20),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert values.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "-1", "1x", "1.2.3", "١m", "9" * 400, "1e9", "nan"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(click.BadParameter, match="invalid size"):
        values.parse_size(text)


def test_swap() -> None:
    assert (values.parse_swap("-1"), values.parse_swap("1g")) == (-1, 1 << 30)


def test_cpus() -> None:
    assert (values.parse_nano_cpus("1.5"), values.parse_nano_cpus(".01")) == (1_500_000_000, 10_000_000)
    for text in ("x", "", "nan", "inf", "1e400"):
        with pytest.raises(click.BadParameter, match="failed to parse"):
            values.parse_nano_cpus(text)


def test_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\nA=1\n\nB=x=y\nHERE\nNOT_HERE\n")
    monkeypatch.setenv("HERE", "yes")
    monkeypatch.delenv("NOT_HERE", raising=False)
    assert values.parse_env(["A=2", "HERE"], [str(file)]) == ["A=1", "B=x=y", "HERE=yes", "A=2", "HERE=yes"]
    with pytest.raises(click.BadParameter, match="No such file"):
        values.parse_env([], ["/nowhere"])
    file.write_bytes(b"A=\xff\xfe")
    with pytest.raises(click.BadParameter, match="invalid utf8 bytes"):
        values.parse_env([], [str(file)])


class TestPorts:
    @pytest.mark.parametrize(
        ("text", "bindings"),
        [
            ("80", {"80/tcp": [("", "")]}),
            ("8080:80", {"80/tcp": [("", "8080")]}),
            ("8080:80/udp", {"80/udp": [("", "8080")]}),
            ("127.0.0.1:8080:80", {"80/tcp": [("127.0.0.1", "8080")]}),
            ("127.0.0.1::80", {"80/tcp": [("127.0.0.1", "")]}),
            ("[::1]:8080:80", {"80/tcp": [("::1", "8080")]}),
            ("8000-8001:80-81", {"80/tcp": [("", "8000")], "81/tcp": [("", "8001")]}),
            ("8000-8009:80", {"80/tcp": [("", "8000-8009")]}),
        ],
    )
    def test_published(self, text: str, bindings: dict[str, list[tuple[str, str]]]) -> None:
        exposed, found = values.parse_ports([text], [])
        assert found == {
            key: [PortBinding(host_ip=ip, host_port=port) for ip, port in pairs]
            for key, pairs in bindings.items()
        }
        assert set(exposed) == set(bindings)

    def test_the_same_port_twice(self) -> None:
        _, found = values.parse_ports(["1:80", "2:80"], [])
        assert [binding.host_port for binding in found["80/tcp"] or ()] == ["1", "2"]

    def test_exposed(self) -> None:
        exposed, bindings = values.parse_ports([], ["80", "53/udp", "90-92"])
        assert set(exposed) == {"80/tcp", "53/udp", "90/tcp", "91/tcp", "92/tcp"}
        assert bindings == {}

    @pytest.mark.parametrize(
        "text", ["", "x", "0", "65536", "80:x", "x:80", "70000:80", "9-8:80", "8000-8003:80-81", "81-80", ":"]
    )
    def test_refused(self, text: str) -> None:
        with pytest.raises(click.BadParameter, match="invalid"):
            values.parse_ports([text], [])


class TestMounts:
    @pytest.mark.parametrize(
        ("text", "kind", "source", "target", "read_only"),
        [
            ("type=bind,src=/a,dst=/b", "bind", "/a", "/b", False),
            ("type=bind,source=/a,target=/b,readonly", "bind", "/a", "/b", True),
            ("source=data,target=/b,ro=true", "volume", "data", "/b", True),
            ("type=volume,destination=/b", "volume", "", "/b", False),
        ],
    )
    def test_kinds(self, text: str, kind: str, source: str, target: str, read_only: bool) -> None:
        spec = values.parse_mount(text)
        assert (spec.type, spec.source, spec.target, spec.read_only) == (kind, source, target, read_only)

    def test_options(self) -> None:
        tmpfs = values.parse_mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770")
        assert tmpfs == MountSpec(
            type="tmpfs", target="/t", tmpfs_options=TmpfsOptions(size_bytes=1 << 20, mode=0o1770)
        )
        bind = values.parse_mount("type=bind,src=/a,dst=/b,bind-propagation=rshared")
        assert bind.bind_options is not None
        assert bind.bind_options.propagation == "rshared"
        volume = values.parse_mount("src=v,dst=/b,volume-nocopy,volume-subpath=x")
        assert volume.volume_options is not None
        assert (volume.volume_options.no_copy, volume.volume_options.subpath) == (True, "x")

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("type=bind,src=/a", "target is required"),
            ("nope=1,target=/b", "unexpected key 'nope'"),
            ("type=tmpfs,target=/t,tmpfs-mode=9", "invalid value for tmpfs-mode"),
            ("type=tmpfs,target=/t,tmpfs-size=x", "invalid size"),
        ],
    )
    def test_refused(self, text: str, sentence: str) -> None:
        with pytest.raises(click.BadParameter, match=sentence):
            values.parse_mount(text)


def test_devices() -> None:
    def device(host: str, inside: str, permissions: str) -> DeviceMapping:
        return DeviceMapping(path_on_host=host, path_in_container=inside, cgroup_permissions=permissions)

    assert values.parse_device("/dev/a") == device("/dev/a", "/dev/a", "rwm")
    assert values.parse_device("/dev/a:/dev/b") == device("/dev/a", "/dev/b", "rwm")
    assert values.parse_device("/dev/a:r") == device("/dev/a", "/dev/a", "r")
    assert values.parse_device("/dev/a:/dev/b:rw") == device("/dev/a", "/dev/b", "rw")


def test_ulimits() -> None:
    assert values.parse_ulimit("nofile=10") == Ulimit(name="nofile", soft=10, hard=10)
    assert values.parse_ulimit("core=0:-1") == Ulimit(name="core", soft=0, hard=-1)
    for text in ("nofile", "nofile=", "nofile=a", "=1"):
        with pytest.raises(click.BadParameter, match="invalid ulimit argument"):
            values.parse_ulimit(text)


def test_restart_policies() -> None:
    assert values.parse_restart("always") == RestartPolicy(name="always")
    assert values.parse_restart("on-failure:3") == RestartPolicy(name="on-failure", maximum_retry_count=3)
    with pytest.raises(click.BadParameter, match="maximum retry count must be an integer"):
        values.parse_restart("on-failure:x")


def test_entrypoint() -> None:
    assert values.parse_entrypoint(None) is None
    assert values.parse_entrypoint("") == [""]
    assert values.parse_entrypoint("/bin/a b") == ["/bin/a b"]  # docker does not split it either


def test_filters_and_labels() -> None:
    assert values.parse_filters(["a=1", "A = 2", "label=x=y"]) == {"a": ["1", "2"], "label": ["x=y"]}
    with pytest.raises(click.BadParameter, match="bad format"):
        values.parse_filters(["a"])
    assert values.parse_labels(["a=1", "b"]) == {"a": "1", "b": ""}


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (
        values.parse_size,
        values.parse_nano_cpus,
        values.parse_mount,
        values.parse_ulimit,
        values.parse_restart,
        lambda entry: values.parse_ports([entry], []),
        lambda entry: values.parse_filters([entry]),
    ):
        try:
            parse(text)
        except click.BadParameter:
            continue

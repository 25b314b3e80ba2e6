# SPDX-License-Identifier: Apache-2.0
"""Builds a create request of the flags of ``run`` and ``create``. Source: docker run reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from proa.cli import values
from proa.cli.health import on_failure, parse_health
from proa.cli.terminal import is_terminal, window_size
from proa.model.config import (
    Empty,
    EndpointIpamConfig,
    EndpointSettings,
    HostConfig,
    LogConfig,
    NetworkingConfig,
    RestartPolicy,
)
from proa.wire.containers import ContainerCreateRequest

Flags = Mapping[str, Any]  # Any: click's values, by flag name


def build_request(
    image: str, command: Sequence[str], flags: Flags, *, attach: bool
) -> ContainerCreateRequest:
    """Return the body of POST /containers/create. Raises click.UsageError for flags that contradict."""
    tty, interactive = bool(flags["tty"]), bool(flags["interactive"])
    if attach and tty and interactive and not is_terminal(0):
        raise click.UsageError("the input device is not a TTY")
    exposed, bindings = values.parse_ports(flags["publish"], flags["expose"])
    stdin, stdout, stderr = _attached(flags["attach"], interactive=interactive, attach=attach)
    named, anonymous = _split_volumes(flags["volume"])
    labels = values.parse_labels([*_file_lines(flags["label_file"]), *flags["label"]])
    return ContainerCreateRequest(
        image=image,
        cmd=list(command) or None,
        entrypoint=values.parse_entrypoint(flags["entrypoint"]),
        hostname=flags["hostname"] or "",
        domainname=flags["domainname"] or "",
        user=flags["user"] or "",
        working_dir=flags["workdir"] or "",
        env=values.parse_env(flags["env"], flags["env_file"]),
        labels=labels,
        tty=tty,
        open_stdin=interactive,
        stdin_once=interactive and stdin,
        attach_stdin=stdin,
        attach_stdout=stdout,
        attach_stderr=stderr,
        exposed_ports=exposed or None,
        volumes=dict.fromkeys(anonymous, Empty()) or None,
        healthcheck=parse_health(flags),
        stop_signal=flags["stop_signal"],
        stop_timeout=flags["stop_timeout"],
        mac_address=flags["mac_address"] or "",
        host_config=_host_config(flags, bindings, named),
        networking_config=_networking(flags),
    )


def _host_config(flags: Flags, bindings: Any, binds: Sequence[str]) -> HostConfig:  # Any: as parse_ports
    size = window_size() if flags["tty"] else None
    networks = flags["networks"]
    return HostConfig(
        binds=list(binds) or None,
        mounts=[values.parse_mount(text) for text in flags["mount"]] or None,
        tmpfs={target: options for target, _, options in (text.partition(":") for text in flags["tmpfs"])}
        or None,
        network_mode=_parse_network(networks[0])[0] if networks else "default",
        port_bindings=bindings or None,
        publish_all_ports=flags["publish_all"],
        restart_policy=values.parse_restart(flags["restart"])
        if flags["restart"]
        else RestartPolicy(name="no"),
        auto_remove=flags["rm"],
        isolation=flags["isolation"] or "",
        runtime=flags["runtime"] or "",
        console_size=list(size) if size else [0, 0],
        memory=values.parse_size(flags["memory"]) if flags["memory"] else 0,
        memory_swap=values.parse_swap(flags["memory_swap"]) if flags["memory_swap"] else 0,
        memory_reservation=values.parse_size(flags["memory_reservation"])
        if flags["memory_reservation"]
        else 0,
        memory_swappiness=flags["memory_swappiness"],
        nano_cpus=values.parse_nano_cpus(flags["cpus"]) if flags["cpus"] else 0,
        cpu_shares=flags["cpu_shares"] or 0,
        cpu_period=flags["cpu_period"] or 0,
        cpu_quota=flags["cpu_quota"] or 0,
        cpuset_cpus=flags["cpuset_cpus"] or "",
        cpuset_mems=flags["cpuset_mems"] or "",
        blkio_weight=flags["blkio_weight"] or 0,
        pids_limit=flags["pids_limit"],
        oom_kill_disable=flags["oom_kill_disable"] or None,
        oom_score_adj=flags["oom_score_adj"] or 0,
        ulimits=[values.parse_ulimit(text) for text in flags["ulimit"]] or None,
        shm_size=values.parse_size(flags["shm_size"]) if flags["shm_size"] else 0,
        cap_add=list(flags["cap_add"]) or None,
        cap_drop=list(flags["cap_drop"]) or None,
        security_opt=[_security_option(text) for text in flags["security_opt"]] or None,
        privileged=flags["privileged"],
        readonly_rootfs=flags["read_only"],
        init=True if flags["init"] else None,
        devices=[values.parse_device(text) for text in flags["device"]] or None,
        device_cgroup_rules=list(flags["device_cgroup_rule"]) or None,
        dns=list(flags["dns"]) or None,
        dns_options=list(flags["dns_option"]) or None,
        dns_search=list(flags["dns_search"]) or None,
        extra_hosts=list(flags["add_host"]) or None,
        group_add=list(flags["group_add"]) or None,
        sysctls=values.parse_labels(flags["sysctl"]) or None,
        annotations={**values.parse_labels(flags["annotation"]), **on_failure(flags), **_kernel(flags)}
        or None,
        storage_opt=values.parse_labels(flags["storage_opt"]) or None,
        volumes_from=list(flags["volumes_from"]) or None,
        volume_driver=flags["volume_driver"] or "",
        log_config=LogConfig(
            type=flags["log_driver"] or "", config=values.parse_labels(flags["log_opt"]) or None
        ),
        pid_mode=flags["pid"] or "",
        ipc_mode=flags["ipc"] or "",
        uts_mode=flags["uts"] or "",
        userns_mode=flags["userns"] or "",
        cgroupns_mode=flags["cgroupns"] or "",
        cgroup_parent=flags["cgroup_parent"] or "",
    )


def _kernel(flags: Flags) -> dict[str, str]:
    asked = {"proa.vm.kernel": flags["kernel"], "proa.vm.kernel-args": flags["kernel_args"]}
    return {name: value for name, value in asked.items() if value}


def _networking(flags: Flags) -> NetworkingConfig | None:
    networks = [_parse_network(text) for text in flags["networks"]]
    address, mac, aliases = flags["ip"], flags["mac_address"], list(flags["network_alias"])
    if not networks and not (address or mac or aliases):
        return None
    endpoints: dict[str, EndpointSettings | None] = {}
    for position, (name, options) in enumerate(networks or [("default", {})]):
        first = position == 0
        wanted = options.get("ip") or (address if first else "")
        wanted6 = options.get("ip6", "")
        addresses = EndpointIpamConfig(i_pv4_address=wanted, i_pv6_address=wanted6)
        endpoints[name] = EndpointSettings(
            ipam_config=addresses if wanted or wanted6 else None,
            gw_priority=_parse_priority(options.get("gw-priority", "0")),
            mac_address=options.get("mac-address") or (mac if first and mac else ""),
            aliases=[*([options["alias"]] if "alias" in options else []), *(aliases if first else [])]
            or None,
        )
    if any(name in ("host", "none") or name.startswith("container:") for name in endpoints):
        return None
    return NetworkingConfig(endpoints_config=endpoints)


def _parse_priority(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"invalid gw-priority: {text}") from None


def _parse_network(text: str) -> tuple[str, dict[str, str]]:
    """Read NAME or name=NAME,ip=…,ip6=…,alias=…,mac-address=…,gw-priority=…"""
    if "=" not in text:
        return text, {}
    fields = dict(word.partition("=")[::2] for word in text.split(","))
    if "name" not in fields:
        raise click.BadParameter(f"network name/id is not specified: {text}")
    return fields.pop("name"), fields


def _attached(streams: Sequence[str], *, interactive: bool, attach: bool) -> tuple[bool, bool, bool]:
    chosen = {stream.lower() for stream in streams}
    unknown = chosen - {"stdin", "stdout", "stderr"}
    if unknown:
        raise click.UsageError("valid streams are STDIN, STDOUT and STDERR")
    if chosen:
        return "stdin" in chosen, "stdout" in chosen, "stderr" in chosen
    return interactive and attach, attach, attach


def _split_volumes(entries: Sequence[str]) -> tuple[list[str], list[str]]:
    named, anonymous = [], []
    for entry in entries:
        if ":" not in entry:
            anonymous.append(entry)
            continue
        source, _, rest = entry.partition(":")
        if source.startswith((".", "~")):
            source = str(Path(source).expanduser().absolute())
        named.append(f"{source}:{rest}")
    return named, anonymous


def _security_option(text: str) -> str:
    """Read a seccomp profile here: the file is the client's, not the daemon's."""
    key, separator, value = text.partition("=")
    if key != "seccomp" or not separator or value in ("unconfined", "builtin"):
        return text
    try:
        return f"seccomp={Path(value).read_text()}"
    except OSError as error:
        raise click.BadParameter(f"opening seccomp profile ({value}) failed: {error.strerror}") from error


def _file_lines(names: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for name in names:
        try:
            lines += [line.strip() for line in Path(name).read_text().splitlines() if line.strip()]
        except OSError as error:
            raise click.BadParameter(f"open {name}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise click.BadParameter(f"label file {name} contains invalid utf8 bytes") from error
    return lines

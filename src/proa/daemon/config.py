# SPDX-License-Identifier: Apache-2.0
"""What the daemon is told on its command line. Names and defaults follow dockerd where it has them."""

from __future__ import annotations

import argparse
import os
import re
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

from proa.api.tls import server_context
from proa.daemon.listening import check_host
from proa.engine.log_options import check_log_config
from proa.engine.userns import MIN_SIZE
from proa.model.config import LogConfig
from proa.model.errors import InvalidParameter
from proa.model.registry import RegistrySettings
from proa.runtime.oci.cdi import DEFAULT_DIRS

DEFAULT_HOST = "unix:///run/proa/proa.sock"
DEFAULT_DATA_ROOT = Path("/var/lib/proa")
DEFAULT_EXEC_ROOT = Path("/run/proa")
DEFAULT_VM_POOL, MAX_VM_POOL = 2, 64
DEFAULT_VM_MEMORY = 512 * 1024 * 1024
_SIZE = re.compile(r"(\d+)([bkmg]?)b?", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """What the daemon shows its TCP clients, and whose certificates it takes from them."""

    ca: Path
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Read the files. Raises InvalidParameter."""
        return server_context(ca=self.ca, certificate=self.certificate, key=self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One daemon's configuration.

    :ivar hosts: where to listen: unix:///path, tcp://address:port, fd://.
    :ivar tls: for TCP; without, only loopback is listened on.
    :ivar data_root: what must not be lost; ``exec_root``: sockets, mounts and pids, gone after a reboot.
    :ivar default_isolation: "container" or "vm", for containers that do not say.
    :ivar default_log: likewise.
    :ivar kernel: a guest kernel of the user's own, None for the installed one.
    :ivar vm_pool: VMs that wait for containers.
    :ivar registries: mirrors, and registries without valid certificates.
    :ivar userns_remap: "default" or user[:group], whose subordinate ids all containers get; "" for none.
    :ivar userns_pool: user[:group] or START:SIZE, what ``--userns auto`` takes from; "" for ``id_ranges``'s.
    :ivar cdi_spec_dirs: where devices are described (CDI); of two the later one wins.
    :ivar lib: where setup/ has put the guest kernel and our own programs.
    """

    hosts: tuple[str, ...] = (DEFAULT_HOST,)
    tls: TlsFiles | None = None
    data_root: Path = DEFAULT_DATA_ROOT
    exec_root: Path = DEFAULT_EXEC_ROOT
    group: str = "proa"
    default_isolation: str = "container"
    default_runtime: str = ""
    kernel: Path | None = None
    vm_memory_bytes: int = DEFAULT_VM_MEMORY
    vm_cpus: int = 1
    vm_pool: int = DEFAULT_VM_POOL
    lib: Path = Path(sys.prefix) / "lib" / "proa"
    default_log: LogConfig = field(default_factory=lambda: LogConfig(type="json-file"))
    registries: RegistrySettings = field(default_factory=RegistrySettings)
    userns_remap: str = ""
    userns_pool: str = ""
    cdi_spec_dirs: tuple[Path, ...] = DEFAULT_DIRS
    debug: bool = False


def parse_config(argv: Sequence[str]) -> Config:
    """Read the command line; prints usage and exits with 2 when it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="proa daemon", description="Run the proa engine until it gets SIGTERM.", allow_abbrev=False
    )
    parser.add_argument(
        "-H",
        "--host",
        action="append",
        metavar="URL",
        help=f"where to listen: unix:///PATH, tcp://ADDRESS:PORT, fd:// [{DEFAULT_HOST}]",
    )
    _add_tls_options(parser)
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR", default=DEFAULT_DATA_ROOT, help="[%(default)s]"
    )
    parser.add_argument(
        "--exec-root", type=Path, metavar="DIR", default=DEFAULT_EXEC_ROOT, help="[%(default)s]"
    )
    parser.add_argument("-G", "--group", default="proa", help="group that may use the socket [%(default)s]")
    parser.add_argument(
        "--default-isolation", choices=("container", "vm"), default="container", help="[%(default)s]"
    )
    parser.add_argument("--default-runtime", choices=("crun", "runc"), default="", help="[crun, else runc]")
    _add_vm_options(parser)
    _add_registry_options(parser)
    _add_container_options(parser)
    parser.add_argument("-D", "--debug", action="store_true", help="log more")
    parsed = parser.parse_args(argv)
    tls = _tls_files(parsed)
    for host in parsed.host or ():
        try:
            check_host(host, tls=tls is not None)
        except InvalidParameter as error:
            parser.error(error.message)
    default_log = LogConfig(type=parsed.log_driver, config=dict(map(_split_option, parsed.log_opt or ())))
    try:
        check_log_config(default_log)
    except InvalidParameter as error:
        parser.error(error.message)
    if parsed.vm_cpus < 1:
        parser.error("--vm-cpus must be at least 1")
    if not 0 <= parsed.pool <= MAX_VM_POOL:
        parser.error(f"--pool must be from 0 to {MAX_VM_POOL}")
    return Config(
        hosts=tuple(parsed.host or (DEFAULT_HOST,)),
        tls=tls,
        data_root=parsed.data_root.absolute(),
        exec_root=parsed.exec_root.absolute(),
        group=parsed.group,
        default_isolation=parsed.default_isolation,
        default_runtime=parsed.default_runtime,
        kernel=parsed.kernel,
        vm_memory_bytes=parsed.vm_memory,
        vm_cpus=parsed.vm_cpus,
        vm_pool=parsed.pool,
        registries=RegistrySettings(
            mirrors=tuple(parsed.registry_mirror or ()), insecure=tuple(parsed.insecure_registry or ())
        ),
        userns_remap=parsed.userns_remap,
        userns_pool=parsed.userns_pool,
        cdi_spec_dirs=tuple(path.absolute() for path in parsed.cdi_spec_dir or DEFAULT_DIRS),
        default_log=default_log,
        debug=parsed.debug,
    )


def _add_container_options(parser: argparse.ArgumentParser) -> None:
    """What containers get: devices, and what those that do not say have for logs and ids."""
    parser.add_argument(
        "--cdi-spec-dir",
        action="append",
        type=Path,
        metavar="DIR",
        help=f"where devices are described, again for more [{', '.join(map(str, DEFAULT_DIRS))}]",
    )
    parser.add_argument(
        "--log-driver", default="json-file", metavar="NAME", help="of containers that name none [%(default)s]"
    )
    parser.add_argument("--log-opt", action="append", metavar="NAME=VALUE", help="an option of that driver")
    parser.add_argument(
        "--userns-remap",
        default="",
        metavar="USER[:GROUP]",
        help='run all containers in a user namespace with the subordinate ids of USER; "default": dockremap',
    )
    parser.add_argument(
        "--userns-pool",
        default="",
        type=_pool,
        metavar="USER[:GROUP]|START:SIZE",
        help="ids for containers with --userns auto [those of containers, else 1879048192:268435456]",
    )


def _add_registry_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--registry-mirror", action="append", type=_mirror, metavar="URL", help="asked before Docker Hub"
    )
    parser.add_argument(
        "--insecure-registry",
        action="append",
        type=_insecure_registry,
        metavar="HOST|CIDR",
        help="needs no valid certificate, may speak plain HTTP",
    )


def _add_vm_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kernel", type=Path, metavar="FILE", help="guest kernel for VMs [the installed one]"
    )
    parser.add_argument(
        "--vm-memory", type=_size, default=DEFAULT_VM_MEMORY, metavar="SIZE", help="of a VM without -m [512m]"
    )
    parser.add_argument(
        "--vm-cpus", type=int, default=1, metavar="N", help="vCPUs of a VM without --cpus [%(default)s]"
    )
    parser.add_argument(
        "--pool",
        type=int,
        default=DEFAULT_VM_POOL,
        metavar="N",
        help="VMs made ahead, of the images lately started; 0: none [%(default)s]",
    )


def _add_tls_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tlsverify", action="store_true", help="use TLS on tcp:// and demand a certificate of every client"
    )
    for option, name, what in (
        ("--tlscacert", "ca.pem", "whose certificates clients must show"),
        ("--tlscert", "cert.pem", "the daemon's certificate"),
        ("--tlskey", "key.pem", "its key"),
    ):
        parser.add_argument(option, type=Path, metavar="FILE", help=f"{what} [~/.docker/{name}]")


def _tls_files(parsed: argparse.Namespace) -> TlsFiles | None:
    """Return the files; their places are dockerd's. Any of the options turns TLS on, never half of it."""
    chosen = (parsed.tlscacert, parsed.tlscert, parsed.tlskey)
    if not parsed.tlsverify and not any(chosen):
        return None
    folder = Path(os.environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker")
    return TlsFiles(
        ca=(parsed.tlscacert or folder / "ca.pem").absolute(),
        certificate=(parsed.tlscert or folder / "cert.pem").absolute(),
        key=(parsed.tlskey or folder / "key.pem").absolute(),
    )


def _mirror(text: str) -> str:
    """Check a base URL. Source: dockerd, ValidateMirror."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"invalid mirror: {text!r} is not an http:// or https:// URL")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise argparse.ArgumentTypeError(f"invalid mirror: {text!r} has a user, a query or a fragment")
    return text.rstrip("/") + "/"


def _insecure_registry(text: str) -> str:
    """Check a host with or without a port, or a network. Source: dockerd, validateHostPort."""
    host = text.lower().removeprefix("http://").removeprefix("https://").rstrip("/")
    try:
        if "/" in host:
            ip_network(host, strict=False)
        elif not host or host.startswith("-") or urlsplit(f"//{host}").port == 0:
            raise ValueError("it has no host or no port")
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"invalid insecure registry {text!r}: {error}") from error
    return host


def _pool(text: str) -> str:
    """Check a range of ids; a user is looked up at the start. The host's root is in no pool."""
    start, colon, size = text.partition(":")
    if not (colon and start.isdecimal() and size.isdecimal()):
        return text
    if not 0 < int(start) <= int(start) + int(size) - 1 < (1 << 32) - 16 or int(size) < MIN_SIZE:
        raise argparse.ArgumentTypeError(f"invalid pool of ids: {text!r}")
    return text


def _split_option(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"invalid size: {text!r}")
    return int(match[1]) * _UNITS[match[2].lower()]

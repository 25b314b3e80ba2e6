# SPDX-License-Identifier: Apache-2.0
"""Debian's docker-registry on the loopback, with TLS and users when wanted; and certificates."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

START_TIMEOUT_S = 20.0
_FETCHED = Path(sys.executable).with_name("docker-registry")  # setup/docker-registry.sh puts it there
BINARY = shutil.which("docker-registry") or (str(_FETCHED) if _FETCHED.exists() else None)
CONFIG = """\
version: 0.1
storage:
  filesystem:
    rootdirectory: {root}
  delete:
    enabled: true
http:
  addr: 127.0.0.1:{port}
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass(slots=True)
class Registry:
    """A registry in ``base``. ``users`` (name to password) makes it ask for them by Basic."""

    base: Path
    is_tls: bool = False
    users: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"localhost:{self.port}"

    @property
    def authority(self) -> Path:
        """The certificate, which is its own authority."""
        return self.base / "ca.crt"

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert BINARY is not None
        self.base.mkdir(parents=True, exist_ok=True)
        text = CONFIG.format(root=self.base / "data", port=self.port)
        if self.is_tls:
            make_certificate(self.authority, self.base / "key.pem")
            text += f"  tls:\n    certificate: {self.authority}\n    key: {self.base}/key.pem\n"
        if self.users:
            lines = [
                subprocess.run(
                    ["htpasswd", "-Bbn", "-C", "4", name, password],
                    capture_output=True,
                    check=True,
                    text=True,
                ).stdout
                for name, password in self.users.items()
            ]
            (self.base / "htpasswd").write_text("".join(lines))
            text += f"auth:\n  htpasswd:\n    realm: tests\n    path: {self.base}/htpasswd\n"
        (self.base / "config.yml").write_text(text)
        with (self.base / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [BINARY, "serve", str(self.base / "config.yml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/bin:/bin", "OTEL_TRACES_EXPORTER": "none"},
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"docker-registry does not answer:\n{self.log()}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            self.process = None

    def log(self) -> str:
        return (self.base / "log").read_text(errors="replace")[-4000:]

    def _answers(self) -> bool:
        scheme = "https" if self.is_tls else "http"
        context = ssl._create_unverified_context() if self.is_tls else None
        try:
            with urllib.request.urlopen(f"{scheme}://127.0.0.1:{self.port}/v2/", context=context, timeout=5):
                return True
        except urllib.error.HTTPError as error:
            return error.code == 401
        except OSError:
            return False


def _htpasswd(name: str, password: str) -> str:
    command = ["htpasswd", "-Bbn", "-C", "4", name, password]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def make_certificate(certificate: Path, key: Path, *, name: str = "localhost") -> None:
    """Make a self-signed certificate."""
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1"]
    subprocess.run(
        ["openssl", *command.split(), *names, "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )

# SPDX-License-Identifier: Apache-2.0
"""Certificates made by openssl, laid out as the docker command expects them: ca.pem, cert.pem, key.pem."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_authority(folder: Path) -> None:
    """Make ca.pem and ca-key.pem."""
    folder.mkdir(parents=True, exist_ok=True)
    _openssl(folder, "req -x509 -nodes -subj /CN=test-ca -days 2 -keyout ca-key.pem -out ca.pem", _CURVE)


def make_certificate(authority: Path, folder: Path, name: str, *, addresses: str = "") -> None:
    """Make cert.pem and key.pem, signed by an authority, with its ca.pem; ``addresses`` are a server's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ca.pem").write_bytes((authority / "ca.pem").read_bytes())
    _openssl(folder, f"req -new -nodes -subj /CN={name} -keyout key.pem -out request.pem", _CURVE)
    usage = "serverAuth" if addresses else "clientAuth"
    extensions = f"extendedKeyUsage={usage}\n"
    if addresses:
        extensions += f"subjectAltName={addresses}\n"
    (folder / "extensions").write_text(extensions)
    sign = f"-CA {authority}/ca.pem -CAkey {authority}/ca-key.pem -CAcreateserial"
    _openssl(folder, f"x509 -req -in request.pem -days 2 -out cert.pem -extfile extensions {sign}")


_CURVE = "-newkey ec -pkeyopt ec_paramgen_curve:P-256"


def _openssl(folder: Path, *arguments: str) -> None:
    words = " ".join(arguments).split()
    done = subprocess.run(["openssl", *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

# SPDX-License-Identifier: Apache-2.0
"""A git server on loopback: ``git http-backend``, and the plain files for what asks in the old way."""

from __future__ import annotations

import gzip
import os
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BACKEND = Path("/usr/lib/git-core/git-http-backend")
_ENV = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@b",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@b",
    "GIT_ALLOW_PROTOCOL": "file:http",
}


def git(directory: Path, *words: str) -> str:
    """Run git; return what it said."""
    done = subprocess.run(
        ["git", "-c", "init.defaultBranch=main", *words], cwd=directory, env=_ENV, check=True,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.stdout.strip()


def commit(directory: Path, files: Mapping[str, str], message: str = "m") -> str:
    """Write files and commit all that is there; return the commit."""
    if not (directory / ".git").exists():
        directory.mkdir(parents=True, exist_ok=True)
        git(directory, "init", "--quiet")
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--allow-empty", "-m", message)
    return git(directory, "rev-parse", "HEAD")


@dataclass(slots=True)
class GitServer:
    """Serves the repositories below ``root``. ``asked`` are the requests so far; with ``token`` others are
    turned away, with ``is_dumb`` there are only files, and with ``holds`` no answers until the end."""

    root: Path
    token: str = ""
    is_dumb: bool = False
    holds: bool = False
    is_asked: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _server: ThreadingHTTPServer | None = None

    def __enter__(self) -> GitServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._answer(self)

            def do_POST(self) -> None:
                outer._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                outer.asked.append(self.path)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_port}"

    def publish(self, source: Path, name: str) -> str:
        """Serve a copy of a repository as it is now; return its address."""
        target = self.root / name
        if target.exists():
            git(source, "push", "--quiet", "--mirror", str(target))
        else:
            git(source, "clone", "--quiet", "--bare", str(source), str(target))
        git(target, "update-server-info")
        return f"{self.url}/{name}"

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        self.is_asked.set()
        if self.holds:
            self._over.wait(60)
            return
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.token and request.headers.get("Authorization", "") != self.token:
            request.send_error(401)
            return
        path, _, query = request.path.partition("?")
        if self.is_dumb:
            self._answer_file(request, self.root / path.lstrip("/"))
            return
        env = {
            **_ENV,
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": request.command,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
        done = subprocess.run([BACKEND], env=env, input=body, capture_output=True, timeout=60, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
        request.send_response(int(fields.pop("Status", "200").split()[0]))
        for key, value in fields.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _answer_file(self, request: BaseHTTPRequestHandler, path: Path) -> None:
        if not path.is_file():
            request.send_error(404)
            return
        request.send_response(200)
        request.send_header("Content-Length", str(path.stat().st_size))
        request.end_headers()
        request.wfile.write(path.read_bytes())

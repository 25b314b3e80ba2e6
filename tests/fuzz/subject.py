# SPDX-License-Identifier: Apache-2.0
"""A daemon to be driven by generated requests: what it always has, and how one request is judged.

It has a network namespace of its own, with loopback alone: networks that requests make, whatever their
addresses, do not touch the host's, and no request reaches a registry of the internet.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Mapping
from typing import Any

from requests import Request as WebRequest

from proa.client.client import Client
from proa.client.errors import ApiError
from proa.model.config import HostConfig, RestartPolicy
from proa.wire import routes
from proa.wire.codec import Json
from proa.wire.containers import ContainerCreateRequest, ContainerInspect
from tests.support.daemon import LIB, Daemon
from tests.support.swagger import check_answer, description, resolve

WRAPPER = ("unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh")
RUNNING, IDLE, NOBODY = "fz-run", "fz-idle", "nobody"
IMAGE, VOLUME, NETWORK = "fuzz:latest", "fz-vol", "fz-net"
PROGRAM = ["sh", "-c", 'trap "exit 0" TERM; sleep 1000 & wait']

HANG_S = 15.0
PATIENT_S = 0.3  # for answers that may go on, or begin late, by their nature
MAX_READ = 256 * 1024

# These wait for something or stream for ever when asked to: their head or silence is answer enough.
_UNENDING = re.compile(
    r"/events|/containers/[^/]+/(attach|attach/ws|logs|stats|wait)|/exec/[^/]+/start|/session|/grpc"
)
_PROGRESS = re.compile(r"/images/(create|load|.+/push)|/build")  # one JSON document a line
_UNREACHABLE = b": no such host"
_ERRORS = frozenset({400, 401, 403, 404, 405, 406, 409, 413, 415, 501, 503})


class Subject:
    """The daemon, its fixtures and one connection's worth of requests."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.client = Client(daemon.host)
        self.exec_id = ""

    def ensure(self) -> None:
        """Make again what a request has taken away."""
        self._ensure_image()
        for name, running in ((RUNNING, True), (IDLE, False)):
            if not self._fits(name, running):
                self._remake(name, running)
        body: Json = {"Cmd": ["cat"], "AttachStdout": True, "AttachStdin": True}
        self.exec_id = self.client.call(routes.CONTAINER_EXEC, body=body, returns=dict[str, str], id=RUNNING)[
            "Id"
        ]
        self.client.do(routes.VOLUME_CREATE, body={"Name": VOLUME})
        try:
            self.client.do(routes.NETWORK_CREATE, body={"Name": NETWORK, "Internal": True})
        except ApiError as error:
            if error.status != 409:
                raise

    def clean(self) -> None:
        """Remove all that requests have made."""
        daemon = self.daemon
        if identifiers := daemon.docker("ps", "-aq").out.split():
            daemon.docker("rm", "-fv", *identifiers)
        daemon.docker("volume", "prune", "-af")
        if networks := daemon.docker("network", "ls", "-q", "--filter", "type=custom").out.split():
            daemon.docker("network", "rm", *networks)
        for image in self.client.call(routes.IMAGE_LIST, returns=list[dict[str, Any]]):
            self.client.do(routes.IMAGE_DELETE, query={"force": True}, name=image["Id"])

    def judge(self, request: Mapping[str, Any]) -> str:
        """Send a request; return what is wrong with the answer, "" when nothing is."""
        prepared = WebRequest(**request).prepare()
        target = prepared.path_url.removeprefix("/")
        path = "/" + target.partition("?")[0]
        method, headers = prepared.method or "GET", dict(prepared.headers)
        content: Any = prepared.body  # Any: bytes, as http.client takes them, but for the stubs of requests
        connection = _Connection(str(self.daemon.socket), PATIENT_S if _UNENDING.fullmatch(path) else HANG_S)
        try:
            connection.request(method, f"/v1.51/{target}", content, headers)
            response = connection.getresponse()
            body = response.read1(MAX_READ) if _UNENDING.fullmatch(path) else response.read()
        except TimeoutError:
            return "" if _UNENDING.fullmatch(path) else f"no answer within {HANG_S} s"
        except (http.client.HTTPException, OSError) as error:
            return f"no answer: {error!r}"
        finally:
            connection.close()
        return _verdict(method, path, response, body)

    def _ensure_image(self) -> None:
        try:
            self.client.do(routes.IMAGE_INSPECT, name=IMAGE)
        except ApiError:
            self.daemon.docker("load", "-i", str(LIB / "busybox.tar"))
            self.client.do(routes.IMAGE_TAG, query={"repo": "fuzz", "tag": "latest"}, name="busybox")

    def _fits(self, name: str, running: bool) -> bool:
        try:
            found = self.client.call(routes.CONTAINER_INSPECT, returns=ContainerInspect, id=name)
        except ApiError:
            return False
        state = found.state
        return state.running == running and not state.paused and found.host_config.restart_policy.name == "no"

    def _remake(self, name: str, running: bool) -> None:
        try:
            self.client.do(routes.CONTAINER_DELETE, query={"force": True, "v": True}, id=name)
        except ApiError as error:
            if error.status != 404:
                raise
        request = ContainerCreateRequest(
            image=IMAGE, cmd=PROGRAM, host_config=HostConfig(restart_policy=RestartPolicy(name="no"))
        )
        self.client.do(routes.CONTAINER_CREATE, query={"name": name}, body=request)
        if running:
            self.client.do(routes.CONTAINER_START, id=name)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("proa", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _verdict(method: str, path: str, response: http.client.HTTPResponse, body: bytes) -> str:
    status = response.status
    if status >= 400:
        if status == 500 and _UNREACHABLE in body:
            return ""  # as dockerd says it: the request is sound, the registry is not to be had from here
        if status not in _ERRORS:
            return f"status {status}: {body!r}"
        if method == "HEAD":
            return ""
        message = json.loads(body).get("message")
        return "" if isinstance(message, str) and message else f"an error without a message: {body!r}"
    if response.headers.get_content_type() != "application/json" or _UNENDING.fullmatch(path):
        return ""
    if not body.strip():
        return ""
    if _PROGRESS.fullmatch(path):
        lines = [json.loads(line) for line in body.splitlines()]
        return "" if all(isinstance(line, dict) for line in lines) else f"progress of no objects: {body!r}"
    return "; ".join(check_answer(method, path, status, json.loads(body)))


# --- what requests are generated from ---


def narrowed_description() -> dict[str, Any]:  # Any: a document of the specification
    """Return the description with names that exist and no keys it does not know, so that requests get far."""
    document: dict[str, Any] = json.loads(json.dumps(description(), default=str))
    for name in document["definitions"]:
        document["definitions"][name] = _close(resolve(document["definitions"][name]))
    for path, methods in document["paths"].items():
        for operation in methods.values():
            operation.pop("consumes", None)
            for parameter in operation.get("parameters", ()):
                _narrow(path, parameter)
    document["consumes"] = ["application/json"]
    return document


FILTERS = [
    *('{"label":["a=b"]}', '{"id":["fz"]}', '{"name":{"fz-run":true}}', '{"dangling":["true"]}'),
    *('{"x":["y"]}', '{"status":["running"]}', '{"until":["1h"]}', '{"type":["custom"]}'),
    *("{", '{"label":"a"}', "[]", ""),
]
_TIMES = {"type": "string", "enum": ["", "0", "1", "1.5", "2030-01-01T00:00:00Z", "-1", "9" * 30, "10m", "x"]}
_NAME = {"pattern": "^[a-z0-9][a-z0-9_.-]{1,12}$"}

# What strings mean is not in the description; without these nearly all requests would end at the first check.
PARAMETERS: dict[str, dict[str, Any]] = {
    "filters": {"enum": FILTERS},
    "t": {"minimum": 0, "maximum": 1},
    "h": {"minimum": -1, "maximum": 70_000},
    "w": {"minimum": -1, "maximum": 70_000},
    "signal": {"enum": ["TERM", "SIGKILL", "9", "0", "USR1", "RTMIN+3", "nope", ""]},
    "detachKeys": {"enum": ["ctrl-p,ctrl-q", "a", "ctrl-", ""]},
    "since": _TIMES,
    "until": _TIMES,
    "tail": {"enum": ["all", "0", "5", "-3", "x", ""]},
    "name": {"pattern": "^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,12}$"},
    "names": {"items": {"type": "string", "enum": [IMAGE, NOBODY, ""]}},
    "repo": {"enum": ["fuzz2", "host:5000/a/b", "A", ""]},
    "tag": {"enum": ["", "x", "y", "-"]},
    "fromSrc": {"enum": ["-", "http://nowhere.invalid/x", ""]},
    "fromImage": {"enum": ["", NOBODY, IMAGE]},
    "condition": {"enum": ["not-running", "next-exit", "removed", "x"]},
}
MEMBERS: dict[str, dict[str, dict[str, Any]]] = {
    "/containers/create": {
        "Image": {"enum": [IMAGE]},
        "WorkingDir": {"enum": ["", "/", "/x/y", "relative"]},
    },
    "/containers/{id}/exec": {"Cmd": {"minItems": 1}, "DetachKeys": {"enum": ["", "ctrl-a"]}},
    "/exec/{id}/start": {"ConsoleSize": {"enum": [[0, 0], [24, 80], [1], [-1, 70_000], None]}},
    "/volumes/create": {"Name": _NAME, "Driver": {"enum": ["local", ""]}},
    "/networks/create": {"Name": _NAME, "Driver": {"enum": ["bridge", "", "macvlan", "x"]}},
    "/networks/{id}/connect": {"Container": {"enum": [RUNNING, IDLE, NOBODY, ""]}},
    "/networks/{id}/disconnect": {"Container": {"enum": [RUNNING, IDLE, NOBODY, ""]}},
}


def _narrow(path: str, parameter: dict[str, Any]) -> None:
    names = {
        "/containers/": [RUNNING, IDLE, NOBODY],
        "/images/": [IMAGE, NOBODY],
        "/volumes/": [VOLUME, NOBODY],
        "/networks/": [NETWORK, "bridge", NOBODY],
        "/exec/": ["EXEC", NOBODY],  # put in when it is sent: each exec can be started once
    }
    if parameter["in"] == "path":
        chosen = next((known for prefix, known in names.items() if path.startswith(prefix)), [NOBODY])
        parameter["enum"] = chosen
    elif parameter["name"] in PARAMETERS and parameter["in"] == "query":
        parameter |= PARAMETERS[parameter["name"]]
    elif parameter["in"] == "body":
        schema = parameter["schema"] = _close(resolve(parameter["schema"]))
        for name, hint in MEMBERS.get(path, {}).items():
            schema["properties"][name] = schema["properties"].get(name, {}) | hint
            schema["required"] = sorted({*schema.get("required", ()), name})


def _close(schema: dict[str, Any]) -> dict[str, Any]:
    """Forbid keys that the description does not know, all the way down."""
    schema = dict(schema)
    schema.pop("x-nullable", None)
    if schema.get("properties"):
        schema["properties"] = {name: _close(one) for name, one in schema["properties"].items()}
        schema.setdefault("additionalProperties", False)
    if isinstance(schema.get("items"), dict):
        schema["items"] = _close(schema["items"])
    return schema


def settled(check: Any, seconds: float = 20.0) -> Any:
    """Call until it returns something false, or the time is over; return its last answer."""
    deadline = time.monotonic() + seconds
    while (found := check()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found

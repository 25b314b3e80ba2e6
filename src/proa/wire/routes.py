# SPDX-License-Identifier: Apache-2.0
"""Every route proa answers, by the operation's name in the API description.

The server registers a handler for each and checks at start that none is missing; the client builds its paths
from them. ``{name:path}`` takes the rest of the path with its slashes (image names have them), up to the
literal that follows.

Source: Engine API 1.51, paths and operationId.
"""

from __future__ import annotations

from urllib.parse import quote

import msgspec

API_VERSION = "1.51"
MIN_API_VERSION = "1.24"


class Route(msgspec.Struct, frozen=True):
    """One method on one path, without the version prefix."""

    method: str
    path: str

    def url(self, **values: str) -> str:
        """Fill in the path's names. Slashes and colons of image names stay as they are."""
        url = self.path
        for name, value in values.items():
            url = url.replace(f"{{{name}}}", quote(value, safe=":")).replace(
                f"{{{name}:path}}", quote(value, safe="/:@")
            )
        return url


# --- system ---
PING = Route("GET", "/_ping")
PING_HEAD = Route("HEAD", "/_ping")
VERSION = Route("GET", "/version")
INFO = Route("GET", "/info")
EVENTS = Route("GET", "/events")
DISK_USAGE = Route("GET", "/system/df")
AUTH = Route("POST", "/auth")

# --- containers ---
CONTAINER_LIST = Route("GET", "/containers/json")
CONTAINER_CREATE = Route("POST", "/containers/create")
CONTAINER_PRUNE = Route("POST", "/containers/prune")
CONTAINER_INSPECT = Route("GET", "/containers/{id}/json")
CONTAINER_TOP = Route("GET", "/containers/{id}/top")
CONTAINER_LOGS = Route("GET", "/containers/{id}/logs")
CONTAINER_CHANGES = Route("GET", "/containers/{id}/changes")
CONTAINER_EXPORT = Route("GET", "/containers/{id}/export")
CONTAINER_STATS = Route("GET", "/containers/{id}/stats")
CONTAINER_RESIZE = Route("POST", "/containers/{id}/resize")
CONTAINER_START = Route("POST", "/containers/{id}/start")
CONTAINER_STOP = Route("POST", "/containers/{id}/stop")
CONTAINER_RESTART = Route("POST", "/containers/{id}/restart")
CONTAINER_KILL = Route("POST", "/containers/{id}/kill")
CONTAINER_UPDATE = Route("POST", "/containers/{id}/update")
CONTAINER_RENAME = Route("POST", "/containers/{id}/rename")
CONTAINER_PAUSE = Route("POST", "/containers/{id}/pause")
CONTAINER_UNPAUSE = Route("POST", "/containers/{id}/unpause")
CONTAINER_ATTACH = Route("POST", "/containers/{id}/attach")
CONTAINER_ATTACH_WEBSOCKET = Route("GET", "/containers/{id}/attach/ws")
CONTAINER_WAIT = Route("POST", "/containers/{id}/wait")
CONTAINER_DELETE = Route("DELETE", "/containers/{id}")
CONTAINER_LINK_DELETE = Route("DELETE", "/containers/{id}/{alias}")
CONTAINER_ARCHIVE_INFO = Route("HEAD", "/containers/{id}/archive")
CONTAINER_ARCHIVE = Route("GET", "/containers/{id}/archive")
PUT_CONTAINER_ARCHIVE = Route("PUT", "/containers/{id}/archive")
CONTAINER_EXEC = Route("POST", "/containers/{id}/exec")

# --- exec ---
EXEC_START = Route("POST", "/exec/{id}/start")
EXEC_RESIZE = Route("POST", "/exec/{id}/resize")
EXEC_INSPECT = Route("GET", "/exec/{id}/json")

# --- images ---
IMAGE_LIST = Route("GET", "/images/json")
IMAGE_CREATE = Route("POST", "/images/create")
IMAGE_LOAD = Route("POST", "/images/load")
IMAGE_GET_ALL = Route("GET", "/images/get")
IMAGE_SEARCH = Route("GET", "/images/search")
IMAGE_PRUNE = Route("POST", "/images/prune")
IMAGE_INSPECT = Route("GET", "/images/{name:path}/json")
IMAGE_HISTORY = Route("GET", "/images/{name:path}/history")
IMAGE_GET = Route("GET", "/images/{name:path}/get")
IMAGE_PUSH = Route("POST", "/images/{name:path}/push")
IMAGE_TAG = Route("POST", "/images/{name:path}/tag")
IMAGE_DELETE = Route("DELETE", "/images/{name:path}")
IMAGE_BUILD = Route("POST", "/build")
BUILD_PRUNE = Route("POST", "/build/prune")
IMAGE_COMMIT = Route("POST", "/commit")
DISTRIBUTION_INSPECT = Route("GET", "/distribution/{name:path}/json")
SESSION = Route("POST", "/session")
GRPC = Route("POST", "/grpc")

# --- volumes ---
VOLUME_LIST = Route("GET", "/volumes")
VOLUME_CREATE = Route("POST", "/volumes/create")
VOLUME_PRUNE = Route("POST", "/volumes/prune")
VOLUME_INSPECT = Route("GET", "/volumes/{name}")
VOLUME_UPDATE = Route("PUT", "/volumes/{name}")
VOLUME_DELETE = Route("DELETE", "/volumes/{name}")

# --- networks ---
NETWORK_LIST = Route("GET", "/networks")
NETWORK_CREATE = Route("POST", "/networks/create")
NETWORK_PRUNE = Route("POST", "/networks/prune")
NETWORK_INSPECT = Route("GET", "/networks/{id}")
NETWORK_DELETE = Route("DELETE", "/networks/{id}")
NETWORK_CONNECT = Route("POST", "/networks/{id}/connect")
NETWORK_DISCONNECT = Route("POST", "/networks/{id}/disconnect")

# --- plugins ---
PLUGIN_LIST = Route("GET", "/plugins")

ROUTES: dict[str, Route] = {name: value for name, value in globals().items() if isinstance(value, Route)}

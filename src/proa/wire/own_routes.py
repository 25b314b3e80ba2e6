# SPDX-License-Identifier: Apache-2.0
"""Routes of containers that are proa's own, which the Docker Engine API does not have.

Source: docs/reference/containers-proa.yaml.
"""

from __future__ import annotations

from proa.wire.routes import Route

CONTAINER_FORK = Route("POST", "/containers/{id}/fork")
SNAPSHOT_CREATE = Route("POST", "/containers/{id}/snapshots")
SNAPSHOT_LIST = Route("GET", "/snapshots")
SNAPSHOT_RESTORE = Route("POST", "/snapshots/{name}/restore")
SNAPSHOT_DELETE = Route("DELETE", "/snapshots/{name}")
SNAPSHOT_EXPORT = Route("GET", "/snapshots/{name}/export")
SNAPSHOT_IMPORT = Route("POST", "/snapshots/import")

ROUTES: dict[str, Route] = {name: value for name, value in globals().items() if isinstance(value, Route)}

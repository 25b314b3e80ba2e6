# SPDX-License-Identifier: Apache-2.0
"""Routes of full machines: proa's own, which the Docker Engine API does not have.

Source: docs/reference/vms.yaml.
"""

from __future__ import annotations

from proa.wire.routes import Route

VM_LIST = Route("GET", "/vms")
VM_CREATE = Route("POST", "/vms/create")
VM_INSPECT = Route("GET", "/vms/{id}")
VM_DELETE = Route("DELETE", "/vms/{id}")
VM_START = Route("POST", "/vms/{id}/start")
VM_STOP = Route("POST", "/vms/{id}/stop")
VM_KILL = Route("POST", "/vms/{id}/kill")
VM_REBOOT = Route("POST", "/vms/{id}/reboot")
VM_PAUSE = Route("POST", "/vms/{id}/pause")
VM_RESUME = Route("POST", "/vms/{id}/resume")
VM_RENAME = Route("POST", "/vms/{id}/rename")
VM_IMAGE = Route("POST", "/vms/{id}/image")
VM_UPDATE = Route("POST", "/vms/{id}/update")
VM_LOGS = Route("GET", "/vms/{id}/logs")
VM_CONSOLE = Route("POST", "/vms/{id}/console")
VM_SCREENSHOT = Route("GET", "/vms/{id}/screenshot")
VM_VNC = Route("POST", "/vms/{id}/vnc")
VM_STATS = Route("GET", "/vms/{id}/stats")
VM_DISK_ADD = Route("POST", "/vms/{id}/disks")
VM_DISK_RESIZE = Route("POST", "/vms/{id}/disks/{disk}/resize")
VM_DISK_DELETE = Route("DELETE", "/vms/{id}/disks/{disk}")
VM_EXEC = Route("POST", "/vms/{id}/exec")
VM_SNAPSHOT_LIST = Route("GET", "/vms/{id}/snapshots")
VM_SNAPSHOT_SAVE = Route("POST", "/vms/{id}/snapshots")
VM_SNAPSHOT_LOAD = Route("POST", "/vms/{id}/snapshots/{snapshot}/restore")
VM_SNAPSHOT_DELETE = Route("DELETE", "/vms/{id}/snapshots/{snapshot}")
VM_CONNECT = Route("POST", "/vms/{id}/networks")
VM_DISCONNECT = Route("DELETE", "/vms/{id}/networks/{network}")
VM_FORK = Route("POST", "/vms/{id}/fork")
VM_EXPORT = Route("GET", "/vms/{id}/export")
VM_ARCHIVE_INFO = Route("HEAD", "/vms/{id}/archive")
VM_ARCHIVE = Route("GET", "/vms/{id}/archive")
VM_PUT_ARCHIVE = Route("PUT", "/vms/{id}/archive")
VM_PRUNE = Route("POST", "/vms/prune")
VM_IMPORT = Route("POST", "/vms/import")

ROUTES: dict[str, Route] = {name: value for name, value in globals().items() if isinstance(value, Route)}

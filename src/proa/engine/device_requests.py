# SPDX-License-Identifier: Apache-2.0
"""Reads which devices a container requests of drivers (``--gpus``, ``--device vendor.com/class=name``). Pure.

There is one driver, ``cdi``. As in the Docker Engine, a request that no driver takes is refused when the
container starts, not before.

Source: Engine API, DeviceRequest; Docker Engine 28, daemon/devices.
"""

from __future__ import annotations

from proa.model.config import DeviceRequest, HostConfig
from proa.model.errors import InvalidParameter

CDI = "cdi"


def requested_devices(host: HostConfig) -> tuple[str, ...]:
    """Return the qualified names of the CDI devices. Raises InvalidParameter: there is no such driver."""
    names: list[str] = []
    for request in host.device_requests or ():
        if request.driver != CDI:
            raise InvalidParameter(
                f'could not select device driver "{request.driver}" with capabilities: '
                f"{_capabilities(request)}"
            )
        names += request.device_ids or ()
    return tuple(names)


def _capabilities(request: DeviceRequest) -> str:
    """As Go prints a list of lists."""
    sets = (" ".join(one) for one in request.capabilities or ())
    return "[" + " ".join(f"[{one}]" for one in sets) + "]"

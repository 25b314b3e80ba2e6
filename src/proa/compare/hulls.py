# SPDX-License-Identifier: Apache-2.0
"""The two hulls, as the Engine API and the table name them."""

from __future__ import annotations

import enum


class Hull(enum.Enum):
    """A way to run an image. The value is HostConfig.Isolation."""

    CONTAINER = "container"
    VM = "vm"

    @property
    def isolation(self) -> str:
        return self.value


HULLS = (Hull.CONTAINER, Hull.VM)

# HostConfig.Annotations: boot this VM from its kernel rather than clone a template.
NO_TEMPLATE = {"proa.vm.template": "off"}

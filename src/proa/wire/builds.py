# SPDX-License-Identifier: Apache-2.0
"""Messages of builds. Source: Engine API, ImageBuild, BuildPrune, BuildCache."""

from __future__ import annotations

import msgspec

from proa.model.config import ApiStruct
from proa.wire.errors import StreamError

REGISTRY_CONFIG_HEADER = "X-Registry-Config"
SECRETS_HEADER = "X-Proa-Build-Secrets"
"""base64 of a JSON object, from an id to base64: what ``proa build --secret`` sends. Docker's classic API has
no way to carry them."""

CONTEXTS_PARAMETER = "contexts"
"""A JSON object from names to sources: what ``proa build --build-context`` sends. With a source of "" the
body has several streams (``wire.sections``): the build's own context, then those, in their order."""


class BuildCacheRecord(ApiStruct, frozen=True, kw_only=True):
    """``size`` is 0 when images share the layer; times are RFC 3339."""

    id: str = msgspec.field(default="", name="ID")
    type: str = ""
    description: str = ""
    in_use: bool = False
    shared: bool = False
    size: int = 0
    created_at: str = ""
    last_used_at: str | None = None
    usage_count: int = 0


class PruneReport(ApiStruct, frozen=True, kw_only=True):
    caches_deleted: list[str] | None = None
    space_reclaimed: int = 0


class Aux(msgspec.Struct, frozen=True, kw_only=True):
    id: str = msgspec.field(default="", name="ID")


class BuildLine(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One line of a build's stream, as a client reads it: text of a step, a pull's progress, or the end."""

    stream: str = ""
    status: str = ""
    id: str = ""
    progress_detail: dict[str, int] | None = None
    aux: Aux | None = None
    error: str = ""
    error_detail: StreamError | None = None

# SPDX-License-Identifier: Apache-2.0
"""What a build is asked for. Source: Engine API, ImageBuild."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from proa.engine.building.attending import Answers, StepWatcher
from proa.model.config import HostConfig
from proa.model.registry import Credentials

Tell = Callable[[Mapping[str, object]], None]
"""Takes messages as the Engine API's stream has them (stream, aux; a pull's)."""


Room = Callable[[], Awaitable[None]]
"""Waits while the client has much to read yet."""


NETWORK_HOST, SECURITY_INSECURE = "network.host", "security.insecure"
ENTITLEMENTS = frozenset({NETWORK_HOST, SECURITY_INSECURE})
"""What a client may allow the steps of its build (``--allow``)."""

TakeFiles = Callable[[AsyncIterator[bytes]], Awaitable[None]]
"""Takes the tar of what was built: names without a leading slash, each directory before what is in it."""

ContextSource = str | Callable[[], AsyncIterator[bytes]]
"""Of a named context: what ``--build-context`` says, or gives the stream of a tar when it is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """POST /build, decoded.

    :ivar build_args: None for a value that the client did not have.
    :ivar host: limits, network and the like of the containers that run steps.
    :ivar credentials: by registry, as the client wrote it.
    :ivar no_cache_stages: names of stages, in small letters, whose steps are not looked for in the cache.
    :ivar secrets: for ``RUN --mount=type=secret``, by id.
    :ivar contexts: named contexts; streams are taken after the build's own context, in their order.
    :ivar entitlements: of ENTITLEMENTS, those the client allows.
    :ivar remote: the address of the context, "" when it is in the request's body.
    :ivar dockerfile_text: the Dockerfile, when it does not come with the context, from which the client has
        left out already what ``.dockerignore`` says.
    :ivar context_key: contexts with the same key are the same, so the second need not be read; "" has none.
    :ivar answers: a client that can be asked, in place of ``credentials`` and beside ``secrets``.
    :ivar watcher: is told of each step.
    :ivar keeps_image: what was built becomes an image; else it is in the cache only.
    :ivar take_files: gets the files of what was built.
    """

    dockerfile: str = "Dockerfile"
    tags: tuple[str, ...] = ()
    remote: str = ""
    build_args: Mapping[str, str | None] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    no_cache: bool = False
    no_cache_stages: frozenset[str] = frozenset()
    cache_from: tuple[str, ...] = ()
    pull: bool = False
    remove: bool = True
    quiet: bool = False
    squash: bool = False
    platform: str = ""
    host: HostConfig = field(default_factory=HostConfig)
    credentials: Mapping[str, Credentials] = field(default_factory=dict)
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    contexts: Mapping[str, ContextSource] = field(default_factory=dict)
    entitlements: frozenset[str] = frozenset()
    dockerfile_text: str | None = None
    context_key: str = ""
    answers: Answers | None = None
    watcher: StepWatcher | None = None
    keeps_image: bool = True
    take_files: TakeFiles | None = None

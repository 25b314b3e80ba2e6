# SPDX-License-Identifier: Apache-2.0
"""What users do with registries: pull, push, log in, search, and look at an image before it is pulled.

Source: Engine API, ImageCreate, ImagePush, SystemAuth, ImageSearch, DistributionInspect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proa.distribution.errors import Refused, RegistryFailed
from proa.distribution.manifests import Index, parse_manifest
from proa.distribution.registries import Registries as RegistryClient
from proa.engine.downloads import Downloads
from proa.engine.events import EventBus
from proa.engine.filters import Filters, check_filters
from proa.engine.progress import OnProgress
from proa.engine.pulling import Pulling, explain
from proa.engine.pushing import Pushing
from proa.image.config import CONFIG_MAX_BYTES, parse_config
from proa.image.images import Images
from proa.image.reference import parse_reference
from proa.model.errors import InvalidParameter, Unauthenticated
from proa.model.registry import Credentials, Descriptor, LoggedIn, RegistrySettings, SearchResult

if TYPE_CHECKING:
    from proa.distribution.repository import Fetched, Repository

SEARCH_LIMIT_MAX = 100
SEARCH_LIMIT = 25
_SEARCH_FILTERS = frozenset({"is-automated", "is-official", "stars"})
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """An image as a registry has it. ``platforms`` are (os, architecture, variant)."""

    descriptor: Descriptor
    platforms: Sequence[tuple[str, str, str]]


class Registries:
    """The use cases of registries."""

    def __init__(self, *, client: RegistryClient, images: Images, events: EventBus) -> None:
        self._client = client
        self._pulling = Pulling(
            images=images,
            registries=client,
            downloads=Downloads(images, client.timings),
            events=events,
        )
        self._pushing = Pushing(images=images, registries=client, events=events)

    @property
    def settings(self) -> RegistrySettings:
        """How registries are reached."""
        return self._client.settings

    @property
    def proxies(self) -> Sequence[str]:
        """HTTP proxy, HTTPS proxy and exempted hosts."""
        return self._client.proxies()

    async def pull(
        self, name: str, tag: str, *, platform: str, credentials: Credentials, on_progress: OnProgress
    ) -> None:
        """Bring in an image; see ``Pulling.pull``."""
        await self._pulling.pull(
            name, tag, platform=platform, credentials=credentials, on_progress=on_progress
        )

    async def push(
        self, name: str, tag: str, *, platform: str, credentials: Credentials, on_progress: OnProgress
    ) -> None:
        """Send an image; see ``Pushing.push``."""
        await self._pushing.push(
            name, tag, platform=platform, credentials=credentials, on_progress=on_progress
        )

    async def log_in(self, credentials: Credentials) -> LoggedIn:
        """Ask a registry whether it knows a user. Raises Unauthenticated, RegistryFailed."""
        return await self._client.log_in(credentials)

    async def search(
        self, term: str, *, limit: int | None, filters: Filters, credentials: Credentials
    ) -> Sequence[SearchResult]:
        """Return repositories of an index that fit.

        :raises InvalidParameter: the limit or a filter makes no sense.
        :raises RegistryFailed: the index cannot be asked.
        """
        check_filters(filters, _SEARCH_FILTERS)
        stars = _stars(filters)
        wanted = {name: _truth(filters, name) for name in ("is-official", "is-automated")}
        limit = limit or SEARCH_LIMIT
        if not 1 <= limit <= SEARCH_LIMIT_MAX:
            raise InvalidParameter(f"limit {limit} is outside the range of [1, {SEARCH_LIMIT_MAX}]")
        if not term.strip():
            raise InvalidParameter("search term must not be empty")
        found = await self._client.search(term, limit, credentials)
        return [
            result
            for result in found
            if result.stars >= stars
            and wanted["is-official"] in (None, result.is_official)
            and wanted["is-automated"] in (None, result.is_automated)
        ]

    async def inspect(self, name: str, credentials: Credentials) -> Distribution:
        """Return what a registry says of an image. Raises NotFound, RegistryFailed, InvalidParameter."""
        target = parse_reference(name).with_default_tag()
        async with self._client.open(target.domain, target.path, credentials) as repositories:
            repository = repositories[-1]
            try:
                fetched = await repository.get_manifest(target.digest or target.tag)
                platforms = await _platforms(repository, fetched)
            except RegistryFailed as error:
                if isinstance(error, Refused) and error.refusal.status in (401, 403):
                    raise Unauthenticated(error.message) from error
                raise explain(error, target) from error
        return Distribution(
            descriptor=Descriptor(
                media_type=fetched.media_type, digest=fetched.digest, size=len(fetched.data)
            ),
            platforms=platforms,
        )


async def _platforms(repository: Repository, fetched: Fetched) -> Sequence[tuple[str, str, str]]:
    document = parse_manifest(fetched.data, fetched.media_type)
    if isinstance(document, Index):
        return [entry.platform for entry in document.entries if entry.platform]
    config = document.config
    platform = parse_config(
        await repository.get_document(config.digest, config.size, CONFIG_MAX_BYTES)
    ).platform
    return [(platform.os, platform.architecture, platform.variant)]


def _stars(filters: Filters) -> int:
    numbers = filters.get("stars", ())
    if not all(number.isdecimal() and len(number) < 10 for number in numbers):
        raise InvalidParameter(f"invalid filter 'stars={numbers[0]}'")
    return max((int(number) for number in numbers), default=0)


def _truth(filters: Filters, name: str) -> bool | None:
    values = filters.get(name, ())
    if not values:
        return None
    if values[0].lower() not in _TRUTH:
        raise InvalidParameter(f"invalid filter '{name}={values[0]}'")
    return _TRUTH[values[0].lower()]

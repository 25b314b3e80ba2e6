# SPDX-License-Identifier: Apache-2.0
"""The images that a build begins with: found here, or pulled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import anyio

from proa.engine.building.attending import Answers
from proa.engine.building.request import Tell
from proa.engine.registries import Registries
from proa.image.catalog import Entry
from proa.image.images import Images
from proa.image.platform import Platform, parse_platform
from proa.image.reference import Reference, parse_any
from proa.image.store import Session
from proa.model.errors import InvalidParameter, NoSuchImage
from proa.model.registry import ANONYMOUS, Credentials


class Bases:
    """Looks images up for builds; each is pulled once, whoever asks."""

    def __init__(self, images: Images, registries: Registries) -> None:
        self._images = images
        self._registries = registries
        self._locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    async def find(
        self,
        name: str,
        *,
        platform: str,
        pull: bool,
        credentials: Mapping[str, Credentials],
        answers: Answers | None = None,
        session: Session,
        tell: Tell,
    ) -> Entry:
        """Return an image, kept until the session ends.

        :param pull: ask the registry even when it is here.
        :raises NoSuchImage, InvalidParameter: and what a pull raises.
        """
        wanted = parse_any(name)
        async with self._locks[name]:
            entry = self._local(name, platform)
            if (entry is None or pull) and isinstance(wanted, Reference):
                reference = wanted.with_default_tag()
                await self._registries.pull(
                    reference.familiar_name,
                    reference.digest or reference.tag,
                    platform=platform,
                    credentials=await answers.credentials(reference.domain)
                    if answers
                    else _for(reference.domain, credentials),
                    on_progress=tell,
                )
                entry = self._local(name, platform)
        if entry is None:
            raise NoSuchImage(name)
        await session.pin(entry)
        return entry

    def _local(self, name: str, platform: str) -> Entry | None:
        try:
            entry = self._images.store.catalog.get(name)
        except NoSuchImage:
            return None
        image = entry.image
        made_for = Platform(os=image.os, architecture=image.architecture, variant=image.variant)
        if platform and image.architecture and not parse_platform(platform).rank(made_for):
            return None
        return entry


def _for(domain: str, credentials: Mapping[str, Credentials]) -> Credentials:
    """Return the credentials for a registry, which clients name by its host or by an URL."""
    hub = ("docker.io", "index.docker.io", "registry-1.docker.io")
    for server, found in credentials.items():
        host = server.partition("://")[2] or server
        host = host.partition("/")[0]
        if host == domain or (host in hub and domain in hub):
            return found
    return ANONYMOUS


def check_platform(text: str) -> None:
    """Raise InvalidParameter for a platform that nothing is built for."""
    if text and parse_platform(text).os != "linux":
        raise InvalidParameter(f"operating system is not supported: {text}")

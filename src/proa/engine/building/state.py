# SPDX-License-Identifier: Apache-2.0
"""What a stage has become so far: layers, configuration, history; and the image it is at each step. Pure."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from proa.build.cache import step_key
from proa.build.scope import StageScope
from proa.image.catalog import LayerRecord
from proa.image.config import CONFIG_MAX_BYTES, MAX_HISTORY, MAX_LAYERS, ImageConfig, encode_config
from proa.image.content import digest_of
from proa.image.platform import Platform
from proa.model.config import ContainerConfig
from proa.model.errors import InvalidParameter
from proa.model.ids import Digest
from proa.model.image import HistoryEntry

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(slots=True, kw_only=True)
class StageState:
    """``key`` stands for everything that came before; ``image_id`` is the base's, "" of scratch."""

    scope: StageScope
    platform: Platform
    image_id: str = ""
    key: str = ""
    layers: list[LayerRecord] = field(default_factory=list)
    config: ContainerConfig = field(default_factory=ContainerConfig)
    history: list[HistoryEntry] = field(default_factory=list)
    author: str = ""
    created: str = ""
    cmd_is_set: bool = False
    is_base: bool = True  # no step so far: the image is still the base

    @property
    def diff_ids(self) -> tuple[Digest, ...]:
        return tuple(layer.diff_id for layer in self.layers)

    @property
    def workdir(self) -> str:
        return self.config.working_dir or "/"

    def copy(self, scope: StageScope) -> StageState:
        """Return what a stage that begins with this one begins with."""
        return StageState(
            scope=scope,
            platform=self.platform,
            image_id=self.image_id,
            key=self.key,
            layers=list(self.layers),
            config=self.config,
            history=list(self.history),
            author=self.author,
            created=self.created,
            is_base=self.is_base,
        )

    def add(self, created_by: str, created: str, layer: LayerRecord | None) -> None:
        """Take a step that has been done."""
        self.history.append(
            HistoryEntry(
                created=created, created_by=created_by, author=self.author, empty_layer=layer is None
            )
        )
        self.created = created
        self.is_base = False
        if layer is not None:
            self.layers.append(layer)
        self.key = step_key(self.key, created_by, layer.diff_id if layer else "")

    def image(self) -> ImageConfig:
        """Return the image that the stage is now."""
        return ImageConfig(
            diff_ids=self.diff_ids,
            config=self.config,
            platform=self.platform,
            created=self.created,
            author=self.author,
            history=tuple(self.history),
        )

    def short_id(self) -> str:
        """Return the twelve digits by which messages name that image, "" when there is nothing yet.

        Raises InvalidParameter when no image could be like that.
        """
        if self.is_base:
            return self.image_id.removeprefix("sha256:")[:12]
        if len(self.history) > MAX_HISTORY or len(self.layers) > MAX_LAYERS:
            raise InvalidParameter(
                f"max depth exceeded: an image has {MAX_LAYERS} layers and {MAX_HISTORY} steps at most"
            )
        document = encode_config(self.image())
        if len(document) > CONFIG_MAX_BYTES:
            raise InvalidParameter(f"the image's configuration has more than {CONFIG_MAX_BYTES} bytes")
        return digest_of(document).removeprefix("sha256:")[:12]


def now_text() -> str:
    """Return the time as images have it."""
    now_ns = time.time_ns()
    moment = datetime.fromtimestamp(now_ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{now_ns % 1_000_000_000:09d}Z"

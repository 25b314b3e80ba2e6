# SPDX-License-Identifier: Apache-2.0
"""Images as Docker shows them. Source: Engine API, ImageInspect and ImageSummary."""

from __future__ import annotations

from proa.model.config import ContainerConfig
from proa.model.image import Image
from proa.wire import images as wire
from proa.wire.times import NS, ZERO_TIME, format_time, parse_time

STORAGE_DRIVER = "erofs"


def inspect(image: Image) -> wire.ImageInspect:
    """Return all about one image.

    docker-compose 1.29 asks for the newest version of the API, and then cannot recreate a container without
    the ContainerConfig that was taken out of it (with dockerd 25 and later it fails); no client minds it.
    """
    config = _config(image.config)
    return wire.ImageInspect(
        id=image.id,
        repo_tags=list(image.references),
        repo_digests=list(image.repo_digests),
        parent=image.parent,
        comment=image.comment,
        created=image.created or ZERO_TIME,
        author=image.author,
        config=config,
        container_config=config,
        architecture=image.architecture,
        variant=image.variant,
        os=image.os,
        size=image.size,
        graph_driver=wire.GraphDriver(name=STORAGE_DRIVER),
        root_fs=wire.RootFs(layers=list(image.layers)),
        metadata=wire.ImageMetadata(last_tag_time=format_time(image.last_tagged_at_ns)),
    )


def summary(image: Image, *, shared_size: int = -1, containers: int = -1) -> wire.ImageSummary:
    """Return one line of a list; -1 for what was not counted."""
    return wire.ImageSummary(
        id=image.id,
        parent_id=image.parent,
        repo_tags=list(image.references),
        repo_digests=list(image.repo_digests),
        created=_seconds(image.created),
        size=image.size,
        shared_size=shared_size,
        labels=image.config.labels,
        containers=containers,
    )


def _seconds(created: str) -> int:
    """Return Unix seconds; an image may carry anything as its time, and then it has none."""
    try:
        return parse_time(created) // NS
    except ValueError:
        return 0


def _config(config: ContainerConfig) -> wire.ImageConfig:
    return wire.ImageConfig(
        user=config.user,
        exposed_ports=config.exposed_ports,
        env=config.env,
        cmd=[config.cmd] if isinstance(config.cmd, str) else config.cmd,
        healthcheck=config.healthcheck,
        args_escaped=config.args_escaped,
        volumes=config.volumes,
        working_dir=config.working_dir,
        entrypoint=[config.entrypoint] if isinstance(config.entrypoint, str) else config.entrypoint,
        on_build=config.on_build,
        labels=config.labels,
        stop_signal=config.stop_signal or "",
        shell=config.shell,
    )

# SPDX-License-Identifier: Apache-2.0
"""``proa build --output``: the files of what was built, in a directory or an archive here.

They come from a container that is made for it and never started. Source: docker buildx build reference,
``--output``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click

from proa.cli.local_tar import unpack
from proa.client.client import Client
from proa.model.config import ContainerConfig, HostConfig, NetworkingConfig
from proa.wire import routes
from proa.wire.containers import ContainerCreated, ContainerCreateRequest
from proa.wire.images import ImageInspect


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """``type`` is image, local or tar; ``destination`` a path, "-" for standard output."""

    type: str = "image"
    destination: str = ""


def parse_output(text: str) -> Output:
    """Read the option: a path, or ``type=…,dest=…``. Raises ClickException."""
    if not text:
        return Output()
    if "=" not in text:
        return Output(type="tar" if text == "-" else "local", destination=text)
    fields = dict(part.strip().partition("=")[::2] for part in text.split(","))
    kind, destination = fields.pop("type", ""), fields.pop("dest", "")
    if fields:
        raise click.ClickException(f"--output: unknown key {sorted(fields)[0]} in '{text}'")
    if kind in ("image", "docker", "moby") and not destination:
        return Output()
    if kind not in ("local", "tar"):
        raise click.ClickException(f"--output: type={kind} is not supported; proa save writes images out")
    if not destination and kind == "tar":
        destination = "-"
    if not destination or (kind == "local" and destination == "-"):
        raise click.ClickException(f"--output: dest is required for type={kind}")
    if destination == "-" and sys.stdout.isatty():
        raise click.ClickException("--output: dest file is required for tar, standard output is a terminal")
    return Output(type=kind, destination=destination)


def write_output(client: Client, image_id: str, output: Output) -> None:
    """Write an image's files out; an image that nobody has named is removed then. Raises ClickException."""
    request = ContainerCreateRequest.of(
        ContainerConfig(image=image_id, cmd=["-"]), HostConfig(network_mode="none"), NetworkingConfig()
    )
    created = client.call(routes.CONTAINER_CREATE, body=request, returns=ContainerCreated)
    try:
        with client.stream(routes.CONTAINER_EXPORT, id=created.id) as response:
            _write(response.iter_bytes(), output)
    except OSError as error:
        raise click.ClickException(f"--output: {error}") from error
    finally:
        client.do(routes.CONTAINER_DELETE, query={"force": True, "v": True}, id=created.id)
    if not client.call(routes.IMAGE_INSPECT, returns=ImageInspect, name=image_id).repo_tags:
        client.do(routes.IMAGE_DELETE, query={"noprune": True}, name=image_id)


def _write(pieces: Iterable[bytes], output: Output) -> None:
    if output.type == "local":
        directory = Path(output.destination)
        directory.mkdir(parents=True, exist_ok=True)
        unpack(pieces, directory, lambda name: name, keep_owner=False)
    elif output.destination == "-":
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    else:
        partial = Path(f"{output.destination}.part-{os.getpid()}")
        try:
            with partial.open("wb") as file:
                for piece in pieces:
                    file.write(piece)
            partial.replace(output.destination)
        finally:
            partial.unlink(missing_ok=True)

# SPDX-License-Identifier: Apache-2.0
"""What becomes of what was built: an image of proa's, files that travel to the client, or nothing.

Source: BuildKit, exporter (names and attributes), client/solve.go; buildx, build/opt.go.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import BinaryIO

from proa.api.buildkit.board import Board
from proa.api.buildkit.filesend import spool
from proa.api.buildkit.proto import buildkit_pb2 as pb
from proa.api.buildkit.sessions import Session
from proa.engine.building.request import TakeFiles
from proa.image.reference import parse_reference
from proa.model.errors import NotImplementedHere
from proa.model.ids import Digest

IMAGES = ("moby", "image")  # "image" is how some clients call the first; both end among proa's images
DIRECTORY, TAR = "local", "tar"


class Output:
    """The one output of a build."""

    def __init__(self, request: pb.SolveRequest) -> None:
        """Raises NotImplementedHere for what proa does not write, InvalidParameter for a name."""
        exporters = list(request.exporters)
        if not exporters and request.exporter_old:
            exporters = [pb.Exporter(type=request.exporter_old, attrs=request.exporter_attrs_old)]
        if len(exporters) > 1:
            raise NotImplementedHere("proa has one output for a build")
        self.type = exporters[0].type if exporters else ""
        if self.type not in ("", DIRECTORY, TAR, *IMAGES):
            raise NotImplementedHere(
                f"proa has no exporter {self.type!r}: build an image, and take it with docker save"
            )
        names = exporters[0].attrs.get("name", "") if self.is_image else ""
        self.names = [name for name in names.split(",") if name]
        for name in self.names:
            parse_reference(name)

    @property
    def is_image(self) -> bool:
        return self.type in IMAGES

    def taker(self, session: Session, board: Board, make_file: Callable[[], BinaryIO]) -> TakeFiles | None:
        """Return who takes the files of what was built; None when they stay where they are."""
        if self.type not in (DIRECTORY, TAR):
            return None

        async def take(pieces: AsyncIterator[bytes]) -> None:
            kind = "client directory" if self.type == DIRECTORY else "client tarball"
            with board.step(f"exporting to {kind}") as key:
                counted = _counted(pieces, board, key)
                async with aclosing(counted):
                    if self.type == TAR:
                        await session.take_tar(counted)
                        return
                    with make_file() as file:
                        await spool(counted, file)
                        await session.take_directory(file)

        return take

    def show(self, board: Board, image_id: Digest) -> dict[str, str]:
        """Show the naming of the image, which is done; return what the client may want to know of it."""
        if not self.is_image:
            return {}
        names = [parse_reference(name).with_default_tag() for name in self.names]
        with board.step("exporting to image") as key:
            board.status(key, f"writing image {image_id}", 0, done=True)
            for name in names:
                board.status(key, f"naming to {name}", 0, done=True)
        found = {"containerimage.digest": str(image_id), "containerimage.config.digest": str(image_id)}
        if names:
            found["image.name"] = ",".join(map(str, names))
        return found


async def _counted(pieces: AsyncIterator[bytes], board: Board, key: str) -> AsyncGenerator[bytes, None]:
    total, label = 0, "copying files"
    async for piece in pieces:
        total += len(piece)
        board.status(key, label, total)
        yield piece
    board.status(key, label, total, done=True)

# SPDX-License-Identifier: Apache-2.0
"""The layers of an image as one read-only disk.

A machine of the microvm kind has room for few devices, so however many layers there are, they lie behind each
other on one disk: a VMDK descriptor names each layer's file as a flat extent. One layer needs no descriptor.

    # Disk DescriptorFile
    RW 67108864 FLAT "/var/lib/proa/layers/….erofs" 0
    RW 67108864 FLAT "/var/lib/proa/layers/….erofs" 0

Each layer lies in a slot of its own, where the template has a partition already; QEMU reads zeros beyond
the end of a file, and erofs reads nothing there. When there are more layers than slots, or one is larger,
they lie without gaps and the guest adds the partitions, at 8 ms each under emulation.

Source: VMware Virtual Disk Format 1.1, The Descriptor; QEMU block/vmdk.c (which extents it takes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from proa.model.errors import DataLoss, InvalidParameter
from proa.model.task import BlockRootfs
from proa.runtime.vm.machine import PLACEHOLDER_BYTES, Disk
from proa.runtime.vm.messages import LayerExtent

SECTOR_BYTES = 512
MAX_LAYERS = 127  # the agent's limit: partitions of one disk
SLOTS, SLOT_BYTES = 32, 32 << 30  # the partitions that the agent makes in a template


@dataclass(frozen=True, slots=True, kw_only=True)
class LayersDisk:
    """The disk, where each layer lies on it, and the text of its descriptor ("" when it needs none)."""

    disk: Disk
    extents: tuple[LayerExtent, ...]
    descriptor: str


def plan_layers(rootfs: BlockRootfs, descriptor_path: Path) -> LayersDisk:
    """Lay out the layers. The descriptor is to be written to ``descriptor_path`` by the caller.

    :raises InvalidParameter: too many layers.
    :raises DataLoss: a layer is missing, or is not what an EROFS file can be.
    """
    sizes = [_size_of(layer) for layer in rootfs.layers]
    if len(sizes) > MAX_LAYERS:
        raise InvalidParameter(f"the image has {len(sizes)} layers, a virtual machine takes {MAX_LAYERS}")
    fits_slots = len(sizes) <= SLOTS and all(size <= SLOT_BYTES for size in sizes)
    spans = [SLOT_BYTES] * len(sizes) if fits_slots else sizes
    extents, offset = [], 0
    for size, span in zip(sizes, spans, strict=True):
        extents.append(LayerExtent(offset=offset, length=size))
        offset += span
    if offset > PLACEHOLDER_BYTES:
        raise InvalidParameter(f"the layers of the image are larger than {PLACEHOLDER_BYTES} bytes")
    if len(sizes) == 0:
        return LayersDisk(disk=Disk(read_only=True), extents=(), descriptor="")
    if len(sizes) == 1:
        disk = Disk(path=rootfs.layers[0], read_only=True)
        return LayersDisk(disk=disk, extents=tuple(extents), descriptor="")
    return LayersDisk(
        disk=Disk(path=descriptor_path, is_vmdk=True, read_only=True),
        extents=tuple(extents),
        descriptor=vmdk_descriptor(rootfs.layers, spans),
    )


def _size_of(layer: Path) -> int:
    try:
        size = layer.stat().st_size
    except OSError as error:
        raise DataLoss(f"a layer of the image cannot be read: {error}") from error
    if size == 0 or size % SECTOR_BYTES:
        raise DataLoss(f"layer {layer} has {size} bytes, which is no whole number of sectors")
    return size


def vmdk_descriptor(layers: Sequence[Path], spans: Sequence[int]) -> str:
    """Return the text that makes one disk of the files, each with room for ``spans`` bytes."""
    if any('"' in str(layer) or "\n" in str(layer) for layer in layers):
        raise InvalidParameter("the path of the data root may not contain quotes or line feeds")
    lines = ["# Disk DescriptorFile", "version=1", "CID=fffffffe", "parentCID=ffffffff"]
    lines.append('createType="twoGbMaxExtentFlat"')
    for layer, span in zip(layers, spans, strict=True):
        lines.append(f'RW {span // SECTOR_BYTES} FLAT "{layer}" 0')
    return "\n".join(lines) + "\n"

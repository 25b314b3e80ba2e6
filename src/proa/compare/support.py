# SPDX-License-Identifier: Apache-2.0
"""Which systems can run inside, and where an instance can be taken: what follows from whose kernel it is.

The versions are read; what they imply is stated, and says so in its method.
"""

from __future__ import annotations

from collections.abc import Callable

from proa.compare.figures import Cell, Fact, Missing, Row
from proa.compare.hulls import Hull
from proa.compare.isolation import Looks
from proa.compare.probing import Look
from proa.wire.system import Info

OS_SUPPORT = "OS support"
PORTABILITY = "portability"
ACCELERATOR_LABEL = "proa.vm.accelerator"
_STATED = "follows from whose kernel it is; not tried here"


def labels(info: Info) -> dict[str, str]:
    """Return the engine's labels as a mapping."""
    return dict(label.partition("=")[::2] for label in info.labels)


def accelerator(info: Info) -> str:
    """Return kvm or tcg; "" when the engine does not say."""
    return labels(info).get(ACCELERATOR_LABEL, "")


def accelerator_reason(info: Info) -> str:
    """Return why the engine took that one; "" when it does not say."""
    return labels(info).get(f"{ACCELERATOR_LABEL}.reason", "")


def rows(looks: Looks, info: Info, image_architecture: str) -> list[Row]:
    """Return the rows of both topics."""
    container, vm = looks[Hull.CONTAINER], looks[Hull.VM]
    return [
        Row(
            topic=OS_SUPPORT,
            name="runs inside",
            container=_when(container, lambda look: f"what runs on the host's Linux {look.kernel_release}"),
            vm=_when(vm, lambda look: f"what runs on Linux {look.kernel_release}, the engine's choice"),
        ),
        Row(
            topic=OS_SUPPORT,
            name="kernel modules and settings of its own",
            container=Fact(text="no", method=_STATED),
            vm=_when(vm, lambda look: "yes"),
        ),
        Row(
            topic=OS_SUPPORT,
            name="needs of the host",
            container=Fact(
                text=f"Linux, cgroup v{info.cgroup_version}, {info.default_runtime or 'an OCI runtime'}",
                method="GET /info",
            ),
            vm=_acceleration(info),
        ),
        Row(
            topic=PORTABILITY,
            name="image",
            container=_same_image(image_architecture),
            vm=_same_image(image_architecture),
        ),
        Row(
            topic=PORTABILITY,
            name="same behaviour on another host",
            container=Fact(text="depends on that host's kernel", method=_STATED),
            vm=Fact(text="same guest kernel everywhere; speed depends on KVM", method=_STATED),
        ),
        Row(
            topic=PORTABILITY,
            name="other machine architectures",
            container=Fact(text=f"no: {info.architecture} only", method=_STATED),
            vm=Fact(text="not by this engine yet; QEMU can emulate them", method=_STATED),
        ),
    ]


def _when(look: Look | str, text: Callable[[Look], str]) -> Cell:
    if isinstance(look, str):
        return Missing(reason=look)
    return Fact(text=text(look), method="uname inside; " + _STATED)


def _acceleration(info: Info) -> Cell:
    found = accelerator(info)
    if not found:
        return Missing(reason="the engine has no VM hull, or does not say how it accelerates one")
    reason = accelerator_reason(info)
    text = "QEMU with KVM" if found == "kvm" else "QEMU; KVM is not usable here, so it emulates (TCG)"
    return Fact(text=text, method=f"GET /info{': ' if reason else ''}{reason}")


def _same_image(architecture: str) -> Cell:
    return Fact(
        text=f"any OCI image for {architecture or 'this machine'}",
        method="the same image ran in this comparison",
    )

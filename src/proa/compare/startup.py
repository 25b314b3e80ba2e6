# SPDX-License-Identifier: Apache-2.0
"""From the create request to the first line of output: cold, warm, and for a VM without its template."""

from __future__ import annotations

from dataclasses import replace

from proa.client.client import Client
from proa.client.errors import ClientError
from proa.compare.figures import Better, Missing, Row, measured
from proa.compare.hulls import HULLS, NO_TEMPLATE, Hull
from proa.compare.instances import Order, RunFailed, run
from proa.compare.probing import Prober

TOPIC = "start-up"
WARM = "warm start"
COLD_BOOTS = 3  # at most: a cold boot takes seconds under emulation, and varies little
_METHOD = "create request to first line of output, over the API"


class Startup:
    """Collects the times of starts; the caller says when each is made."""

    def __init__(self, client: Client, image: str, prober: Prober) -> None:
        self._client = client
        # The image's own echo, so that nothing is mounted for it; the probe where there is none.
        self._order = Order(
            image=image, hull=Hull.CONTAINER, entrypoint=("/bin/echo",), command=("hello",), user="0"
        )
        self._fallback: Order | None = prober.order(Hull.CONTAINER, "hello")
        self._cold: dict[Hull, float] = {}
        self._warm: dict[Hull, list[float]] = {hull: [] for hull in HULLS}
        self._boots: list[float] = []
        self._failures: dict[Hull, str] = {}
        self._boot_failure = ""

    def cold(self, hull: Hull) -> None:
        """Start for the first time in this comparison."""
        try:
            self._cold[hull] = self._first_line(hull)
        except ClientError as error:
            if self._fallback is None:
                self._failures[hull] = error.message
                return
            self._order, self._fallback = self._fallback, None
            self.cold(hull)

    def warm(self, hull: Hull) -> None:
        """Start once more."""
        if hull in self._failures:
            return
        try:
            self._warm[hull].append(self._first_line(hull))
        except ClientError as error:
            self._failures[hull] = error.message

    def boot(self) -> None:
        """Start a VM from its kernel instead of a template's clone."""
        try:
            self._boots.append(self._first_line(Hull.VM, NO_TEMPLATE))
        except ClientError as error:
            self._boot_failure = error.message

    def failure(self, hull: Hull) -> str:
        """Return why a hull does not start at all; "" when it does."""
        return "" if hull in self._cold else self._failures.get(hull, "not tried")

    def rows(self) -> list[Row]:
        """Return what was found."""
        container, vm = Hull.CONTAINER, Hull.VM
        cold = {
            hull: measured(
                [self._cold[hull]] if hull in self._cold else [],
                "ms",
                f"{_METHOD}; first run of the image in this hull, one value",
                reason=self._failures.get(hull, ""),
            )
            for hull in HULLS
        }
        warm = {
            hull: measured(self._warm[hull], "ms", _METHOD, reason=self._failures.get(hull, ""))
            for hull in HULLS
        }
        boots = measured(
            self._boots,
            "ms",
            f"{_METHOD}; booted without a template",
            reason=self._boot_failure or self._failures.get(vm, ""),
        )
        return [
            Row(topic=TOPIC, name="first start", container=cold[container], vm=cold[vm], better=Better.LOWER),
            Row(topic=TOPIC, name=WARM, container=warm[container], vm=warm[vm], better=Better.LOWER),
            Row(
                topic=TOPIC,
                name="cold boot",
                container=Missing(reason="a container does not boot a kernel"),
                vm=boots,
                better=Better.LOWER,
            ),
        ]

    def _first_line(self, hull: Hull, annotations: dict[str, str] | None = None) -> float:
        outcome = run(self._client, replace(self._order, hull=hull, annotations=annotations or {}))
        if outcome.first_output_s is None:
            raise RunFailed("the program printed nothing")
        return outcome.first_output_s * 1000

# SPDX-License-Identifier: Apache-2.0
"""Every operation of the API description, driven by schemathesis: no 500, no hang, no leak, and answers that
fit the description.

Requests that fit the description and requests that break it, the same on every run. No operation is left out.
What is bounded: a stop waits a second at most (it would wait as long as it is told to), containers that
requests have made are not started (their binds and devices are the host's), and the daemon has no way to the
network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode

from tests.fuzz.subject import WRAPPER, Subject, narrowed_description, settled
from tests.support.daemon import Daemon

REFUSED = ("/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs", "/plugins")
_PHASES = (Phase.explicit, Phase.generate)  # shrinking would repeat what a daemon cannot undo
EXAMPLES, EXAMPLES_OF_REFUSED = 8, 2

SCHEMA = schemathesis.openapi.from_dict(narrowed_description())
_FOUND: list[Any] = list(SCHEMA.get_all_operations())  # Any: schemathesis's; one it cannot read fails here
OPERATIONS = [found.ok() for found in _FOUND]


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    daemon = Daemon(wrapper=WRAPPER)
    daemon.start()
    try:
        yield Subject(daemon)
    finally:
        daemon.clean()


@pytest.fixture(scope="module", autouse=True)
def no_leak(subject: Subject) -> Iterator[None]:
    """After all requests, and after what they made is removed, the daemon holds what it held before."""
    subject.ensure()
    subject.clean()
    before = _held(subject.daemon)
    yield
    subject.clean()

    def more() -> dict[str, set[str]]:
        now = _held(subject.daemon)
        return {kind: now[kind] - before[kind] for kind in before if now[kind] - before[kind]}

    assert settled(more) == {}


def _held(daemon: Daemon) -> dict[str, set[str]]:
    """Return the daemon's mounts, open files, child processes and the files of containers and volumes."""
    assert daemon.process is not None
    proc = Path(f"/proc/{daemon.process.pid}")
    mounts = {line.split()[4] for line in (proc / "mountinfo").read_text().splitlines()}
    children = (proc / "task" / proc.name / "children").read_text().split()
    open_files = len(list((proc / "fd").iterdir()))
    return {
        "mounts": {mount for mount in mounts if str(daemon.base) in mount and "/layers/" not in mount},
        "open files": {str(number) for number in range(open_files)},
        "children": {str(number) for number in range(len(children))},
        "containers": {path.name for path in (daemon.data_root / "containers").iterdir()},
        "volumes": {path.name for path in (daemon.data_root / "volumes").iterdir()},
        "bundles": {path.name for path in (daemon.exec_root / "oci").iterdir()},
    }


def _cases() -> Iterator[Any]:  # Any: pytest's
    for operation in OPERATIONS:
        name = operation.label.replace(" ", "-")
        yield pytest.param(operation, GenerationMode.POSITIVE, id=f"{name}-fits")
        if operation.definition.raw.get("parameters"):  # what takes nothing cannot be given anything wrong
            yield pytest.param(operation, GenerationMode.NEGATIVE, id=f"{name}-breaks")


@pytest.mark.parametrize(("operation", "mode"), list(_cases()))
def test_operation(subject: Subject, operation: Any, mode: GenerationMode) -> None:  # Any: schemathesis's
    count = EXAMPLES_OF_REFUSED if operation.path.startswith(REFUSED) else EXAMPLES

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=_PHASES,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        if not operation.path.startswith(REFUSED):
            subject.ensure()
        if case.path_parameters.get("id") == "EXEC":
            case.path_parameters["id"] = subject.exec_id
        if case.query:
            _bound_waiting(case.query)
        request = case.as_transport_kwargs(base_url="http://proa/")
        request.pop("cookies", None)
        assert not (wrong := subject.judge(request)), f"{wrong}\n{request}"

    run: Callable[[], None] = send
    run()


def _bound_waiting(query: Any) -> None:
    """A stop waits as long as it is told to; with a signal that ends nothing, ten seconds unless told."""
    if "signal" in query:
        query.setdefault("t", 1)
    try:
        query["t"] = max(0, min(1, int(query["t"])))
    except (KeyError, TypeError, ValueError):
        return

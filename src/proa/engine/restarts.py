# SPDX-License-Identifier: Apache-2.0
"""Restart policies. Pure. Source: docker run reference, "Restart policies (--restart)"."""

from __future__ import annotations

from proa.engine.container import Container
from proa.model.task import ExitStatus

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 60.0
STEADY_S = 10.0  # a run this long was no crash loop: the delay begins anew


def wants_restart(container: Container, status: ExitStatus) -> bool:
    """Tell whether the policy restarts a container that ended this way by itself."""
    policy = container.host_config.restart_policy
    if policy.name in ("always", "unless-stopped"):
        return True
    if policy.name == "on-failure" and status.code != 0:
        return not policy.maximum_retry_count or container.restart_count < policy.maximum_retry_count
    return False


def wants_start_at_boot(container: Container, *, was_lost: bool) -> bool:
    """Tell whether the policy starts a container that is found ended when the daemon starts.

    :param was_lost: whether it ran until the host went down: a failure, and nobody's wish.
    """
    policy = container.host_config.restart_policy
    if policy.name == "on-failure":
        return was_lost and not container.stopped_by_user
    if policy.name == "always":
        return container.started_at_ns > 0
    return policy.name == "unless-stopped" and not container.stopped_by_user and container.started_at_ns > 0


def restart_delay_s(container: Container) -> float:
    """Return how long to wait before the next restart: doubled each time, up to a minute."""
    return float(min(FIRST_DELAY_S * 2 ** min(max(container.short_runs - 1, 0), 20), LONGEST_DELAY_S))


def count_short_runs(container: Container, finished_at_ns: int) -> int:
    """Return ``short_runs`` of a container that has ended: a run of 10 s begins the count anew."""
    is_steady = finished_at_ns - container.started_at_ns >= STEADY_S * 1e9
    return 1 if is_steady else container.short_runs + 1

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


def wants_start_at_boot(container: Container) -> bool:
    """Tell whether the policy starts a container that is found ended when the daemon starts."""
    policy = container.host_config.restart_policy
    if policy.name == "always":
        return container.started_at_ns > 0
    return policy.name == "unless-stopped" and not container.stopped_by_user and container.started_at_ns > 0


def restart_delay_s(container: Container) -> float:
    """Return how long to wait before the next restart: doubled each time, up to a minute."""
    ran_s = (container.finished_at_ns - container.started_at_ns) / 1e9
    if ran_s >= STEADY_S:
        return FIRST_DELAY_S
    return float(min(FIRST_DELAY_S * 2 ** min(container.restart_count, 20), LONGEST_DELAY_S))

# SPDX-License-Identifier: Apache-2.0
"""What a container's health check is, when one is due, and what its result means. Pure.

What is to be done about an unhealthy container is a label or an annotation, io.proa.health-on-failure, with
podman's words. ``health_checks`` runs the checks.

Source: Engine API, HealthConfig, ContainerState.Health; Dockerfile reference, HEALTHCHECK; podman-run(1),
--health-on-failure; the texts are the Docker Engine's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from proa.engine.container import Health, HealthResult
from proa.model.config import ContainerConfig, HealthConfig, HostConfig
from proa.model.errors import InvalidParameter

STARTING, HEALTHY, UNHEALTHY = "starting", "healthy", "unhealthy"
ON_FAILURE = "io.proa.health-on-failure"  # an annotation or a label of the container
ON_FAILURE_WORDS = ("none", "kill", "restart", "stop")
KEPT_RESULTS = 5
_INTERVAL_S = 30.0
_TIMEOUT_S = 30.0
_START_INTERVAL_S = 5.0
_RETRIES = 3
_MILLISECOND_NS = 1_000_000
_DEFAULT_SHELL = ("/bin/sh", "-c")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is run, and how often. Times in seconds."""

    args: tuple[str, ...]
    interval_s: float
    timeout_s: float
    start_period_s: float
    start_interval_s: float
    retries: int

    def delay_s(self, health: Health, ran_s: float) -> float:
        """Return how long to wait for the next check of a container that runs since ``ran_s``."""
        is_starting = health.status == STARTING and ran_s < self.start_period_s
        return min(self.start_interval_s, self.interval_s) if is_starting else self.interval_s


def merge_check(asked: HealthConfig | None, image: HealthConfig | None) -> HealthConfig | None:
    """Return the user's check with what the image says in place of what the user leaves open."""
    if asked is None or image is None:
        return asked or image
    return HealthConfig(
        test=asked.test or image.test,
        interval=asked.interval or image.interval,
        timeout=asked.timeout or image.timeout,
        start_period=asked.start_period or image.start_period,
        start_interval=asked.start_interval or image.start_interval,
        retries=asked.retries or image.retries,
    )


def check_health_config(config: ContainerConfig, host: HostConfig) -> None:
    """Raise InvalidParameter for a check that cannot be run, or an unknown action on its failure."""
    check = config.healthcheck
    if check is not None:
        for name, value in (
            ("Interval", check.interval),
            ("Timeout", check.timeout),
            ("StartPeriod", check.start_period),
            ("StartInterval", check.start_interval),
        ):
            if value and value < _MILLISECOND_NS:
                raise InvalidParameter(f"{name} in Healthcheck cannot be less than 1ms")
        if check.retries < 0:
            raise InvalidParameter("Retries in Healthcheck cannot be negative")
        kind, *words = check.test or [""]
        if kind not in ("", "NONE", "CMD", "CMD-SHELL"):
            raise InvalidParameter(f"Unknown healthcheck type '{kind}' (expected 'CMD')")
        if kind in ("CMD", "CMD-SHELL") and not any(words):
            raise InvalidParameter(f"Missing command after HEALTHCHECK {kind}")
    action = find_action(config, host)
    if action not in ON_FAILURE_WORDS:
        raise InvalidParameter(
            f"invalid {ON_FAILURE}: {action!r}: use one of {', '.join(map(repr, ON_FAILURE_WORDS))}"
        )


def find_plan(config: ContainerConfig) -> Plan | None:
    """Return what is to be run; None when nothing is."""
    check = config.healthcheck
    if check is None or not check.test or check.test[0] not in ("CMD", "CMD-SHELL"):
        return None
    args = tuple(check.test[1:])
    if check.test[0] == "CMD-SHELL":
        args = (*(config.shell or _DEFAULT_SHELL), *args)
    return Plan(
        args=args,
        interval_s=check.interval / 1e9 or _INTERVAL_S,
        timeout_s=check.timeout / 1e9 or _TIMEOUT_S,
        start_period_s=check.start_period / 1e9,
        start_interval_s=check.start_interval / 1e9 or _START_INTERVAL_S,
        retries=check.retries or _RETRIES,
    )


def at_start(config: ContainerConfig) -> Health | None:
    """Return the state of a container that has just been started; None without a check."""
    return Health() if find_plan(config) else None


def at_end(health: Health | None) -> Health | None:
    """Return the state of a container that has ended: nobody looks after it, so it is not healthy."""
    return None if health is None else replace(health, status=UNHEALTHY)


def judge(health: Health, result: HealthResult, plan: Plan, *, started_at_ns: int) -> Health:
    """Return the state after a check.

    Failures in the start period do not count; the first success ends it.
    """
    results = (*health.results, result)[-KEPT_RESULTS:]
    if result.exit_code == 0:
        return Health(status=HEALTHY, failing_streak=0, results=results)
    ran_s = (result.start_ns - started_at_ns) / 1e9
    if health.status == STARTING and ran_s < plan.start_period_s:
        return replace(health, results=results)
    streak = health.failing_streak + 1
    status = UNHEALTHY if streak >= plan.retries else health.status
    return Health(status=status, failing_streak=streak, results=results)


def find_action(config: ContainerConfig, host: HostConfig) -> str:
    """Return what is to be done when the container becomes unhealthy."""
    return (host.annotations or {}).get(ON_FAILURE) or (config.labels or {}).get(ON_FAILURE) or "none"

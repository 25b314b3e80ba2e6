# SPDX-License-Identifier: Apache-2.0
"""Words and numbers of docker ps."""

from __future__ import annotations

import pytest

from proa.api.shapes_containers import human_duration, state, status_text
from proa.engine.container import State
from tests.support.fake_engine import BORN_NS, NS, make_container

MINUTE, HOUR, DAY = 60, 3600, 86400


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.5, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (119, "About a minute"),
        (180, "3 minutes"),
        (59 * MINUTE, "59 minutes"),
        (HOUR, "About an hour"),
        (2 * HOUR, "2 hours"),
        (47 * HOUR, "47 hours"),
        (2 * DAY, "2 days"),
        (13 * DAY, "13 days"),
        (14 * DAY, "2 weeks"),
        (59 * DAY, "8 weeks"),
        (60 * DAY, "2 months"),
        (729 * DAY, "24 months"),
        (730 * DAY, "2 years"),
    ],
)
def test_human_duration(seconds: float, words: str) -> None:
    assert human_duration(int(seconds * NS)) == words


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (State.RUNNING, "Up 3 minutes"),
        (State.PAUSED, "Up 3 minutes (Paused)"),
        (State.CREATED, "Created"),
        (State.EXITED, "Exited (3) 2 minutes ago"),
        (State.RESTARTING, "Restarting (3) 2 minutes ago"),
        (State.REMOVING, "Removal In Progress"),
        (State.DEAD, "Dead"),
    ],
)
def test_status_text(now: State, text: str) -> None:
    container = make_container(state=now, exit_code=3, finished_at_ns=BORN_NS + MINUTE * NS)
    assert status_text(container, BORN_NS + 3 * MINUTE * NS) == text


@pytest.mark.parametrize("now", list(State))
def test_flags(now: State) -> None:
    shown = state(make_container(state=now))
    assert shown.status == now.value
    assert shown.running == (now in (State.RUNNING, State.PAUSED, State.RESTARTING))
    assert (shown.paused, shown.dead) == (now is State.PAUSED, now is State.DEAD)

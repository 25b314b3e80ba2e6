# SPDX-License-Identifier: Apache-2.0
"""Names for containers that were given none: a word of the weather and a boat, such as calm_ketch."""

from __future__ import annotations

from collections.abc import Container
from random import Random

_WEATHER = (
    "bright calm clear cool crisp dawn dusky fair fresh gentle golden high hushed keen light lively lofty "
    "low mild misty moonlit open pale quiet rapid rolling salty silver soft starry steady still stormy "
    "sunlit swift tidal trade warm westerly windward"
)
_BOATS = (
    "ark barge bark brig canoe caravel carrack catboat clipper cog coracle curragh cutter dhow dinghy dory "
    "felucca ferry frigate galleon galley gig gondola hoy jangada junk kayak ketch knarr launch longboat "
    "lugger outrigger packet paro pinnace pirogue praam punt sampan schooner skiff sloop smack tender "
    "trawler trimaran tug umiak waka wherry xebec yacht yawl"
)
WEATHER = tuple(_WEATHER.split())
BOATS = tuple(_BOATS.split())


def random_name(taken: Container[str], source: Random) -> str:
    """Return a name that is not taken; with a number behind it when the plain ones run out."""
    for attempt in range(10_000):
        name = f"{source.choice(WEATHER)}_{source.choice(BOATS)}"
        if attempt >= 6:
            name += str(source.randrange(10 ** (1 + attempt // 100)))
        if name not in taken:
            return name
    raise AssertionError("ten thousand names tried, none free")

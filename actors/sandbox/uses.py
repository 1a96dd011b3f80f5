"""Which rooms are worth a zygote: pure, `now` is an argument.

A room is what a call sees besides what all see: files of the host, an environment. To start a zygote for it takes as
much of a core as five calls in tier `cold` (340 ms and 67, measured), each of the calls after that a sixth of one; and
nobody knows whether another comes. So it is started for a room that is in use right now, and where it was of no use,
not again for a while.
"""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

USES: Final = 3
"""Each within AGAIN_S of the one before. If no further call comes, then what was wasted is less than twice what the
calls have cost; and an agent that has asked the same tool three times within minutes does so a fourth time."""
AGAIN_S: Final = 60.0
ROOMS_MOST: Final = 4
"""That have a zygote at once."""
IDLE_S: Final = 60.0
"""A zygote without a call for so long is ended: it holds memory, and keeps what was granted in use."""
KEPT_S: Final = 10.0
"""One that had a call since is not ended for another room: more rooms than there is place for would else take turns,
and each would only ever be started."""
BARRED_S: Final = 60.0
"""After what was granted has changed, or the zygote did not start or died."""
REMEMBERED_MOST: Final = 64
"""Rooms without a zygote of which is known when they were used."""

Key = TypeVar("Key", bound=Hashable)


@dataclass
class _Use:
    count: int = 0
    last: float = 0.0
    barred_until: float = 0.0


class Uses(Generic[Key]):
    """Of rooms that have no zygote. Bounded: the one that was used least recently is forgotten (law 8)."""

    def __init__(self) -> None:
        self._of: OrderedDict[Key, _Use] = OrderedDict()

    def is_again(self, key: Key, now: float) -> bool:
        """Count a use: whether a zygote for the room is worth it from now on."""
        use = self._at(key)
        use.count = use.count + 1 if now - use.last <= AGAIN_S else 1
        use.last = now
        return use.count >= USES and now >= use.barred_until

    def bar(self, key: Key, now: float) -> None:
        """A zygote for it was of no use."""
        use = self._at(key)
        use.count, use.barred_until = 0, now + BARRED_S

    def _at(self, key: Key) -> _Use:
        use = self._of.setdefault(key, _Use())
        self._of.move_to_end(key)
        while len(self._of) > REMEMBERED_MOST:
            self._of.popitem(last=False)
        return use


def gives_way(used_at: Mapping[Key, float], now: float) -> tuple[bool, Key | None]:
    """Whether there is place for one more room, and which has to go for it, if one has to."""
    if len(used_at) < ROOMS_MOST:
        return True, None
    oldest = min(used_at, key=lambda key: used_at[key])
    return (True, oldest) if now - used_at[oldest] >= KEPT_S else (False, None)


def idle(used_at: Mapping[Key, float], now: float) -> list[Key]:
    """Rooms whose zygotes are to be ended."""
    return [key for key, used in used_at.items() if now - used >= IDLE_S]

"""Whose turn it is: runs that have begun get an actor before runs that have not.

A store tells what is due in the order in which it became so. With that alone, a run that was answered, woken or sent a
message would stand behind every run that was started before, however many they are; and a person who has answered
waits for all of them. So whoever left here to wait, or lost its actor, goes first when it is back.
"""

from collections.abc import Sequence

from understudy.actors.store import Store

LOOK_MAX = 10_000
"""So far down the line is looked for those who are back."""
LOOK_EVERY_S = 1.0
AWAY_MAX = 100_000


class Turns:
    """What a supervisor remembers of runs that it has had."""

    def __init__(self) -> None:
        self._returning: dict[str, float] = {}
        """Runs that are back, and when they may be claimed: not before their restart policy says."""
        self._away: dict[str, None] = {}
        """Runs that wait, in the order in which they left."""
        self._looked_at = float("-inf")

    def returns(self, run_id: str, at: float) -> None:
        """A run lost its actor and may be claimed again at this time."""
        self._returning[run_id] = at

    def waits(self, run_id: str) -> None:
        """A run left its actor, until it is answered, woken or sent a message."""
        self._away[run_id] = None
        if len(self._away) > AWAY_MAX:
            del self._away[next(iter(self._away))]

    def takes(self, run_id: str) -> None:
        """A run has had its turn."""
        self._returning.pop(run_id, None)

    def earlier(self, by_s: float) -> None:
        """The clock was set back: what was to be at a time is to be so much earlier."""
        self._returning = {run_id: at - by_s for run_id, at in self._returning.items()}
        self._looked_at = float("-inf")

    async def ready(self, store: Store, due: Sequence[str], limit: int, now: float) -> list[str]:
        """Who may be claimed now, in the order of their turns.

        Args:
            due: what the store says is ready, oldest first, and at most `limit` of them. If there were more, the line
                is looked along from time to time, at most once a second.
        """
        line = due
        if len(due) >= limit and self._away and now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            line = (await store.due(now, LOOK_MAX)).ready
        for run_id in line:
            if run_id in self._away:
                del self._away[run_id]
                self._returning.setdefault(run_id, now)
        back = [run_id for run_id, at in self._returning.items() if at <= now]
        return back + [run_id for run_id in due if run_id not in self._returning]

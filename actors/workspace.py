"""The workspace of a run, in the hands of one attempt of a task: what its calls find, and what they have left."""

import asyncio
from collections.abc import Callable
from typing import Any

from understudy.actors.files import Change, Files, applied, change_between, read


class TaskFiles:
    """The workspace as one attempt of a task sees it: what the checkpoint has, and what its calls have changed since.

    Calls that use it come one after another, in the order of the node's text: so each sees what those before it left,
    and a node that runs again, and is answered by receipts, sees the same.
    """

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text
        self._before: Files | None = None
        self._now: Files = {}
        self.turn = asyncio.Lock()

    @property
    def now(self) -> Files:
        if self._before is None:
            self._before = self._now = read(self._text())
        return self._now

    def take(self, change: Change | None) -> None:
        """What a call, or the node itself, has changed. Raises BadFiles."""
        if change:
            self._now = applied(self.now, change)

    def change(self) -> list[Any]:
        """What the task has changed, all in all."""
        return [] if self._before is None else change_between(self._before, self._now)

"""A bell that rings for whoever waits for work in this process; stores use it for `wait_work`.

It is no `asyncio.Event`, because that belongs to one event loop for ever, and because a ring between two waits of one
supervisor must not be lost: the next wait returns at once.
"""

import asyncio


class Bell:
    def __init__(self) -> None:
        self._rung = False
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Wake all who wait, or the next who will. On the event loop's thread only."""
        self._rung = True
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout_s: float) -> bool:
        """Until it rings, or has rung since the last wait ended, or the time has passed; whether it rang."""
        if not self._rung:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.add(waiter)
            try:
                await asyncio.wait([waiter], timeout=timeout_s)
            finally:
                self._waiting.discard(waiter)
        rang, self._rung = self._rung, False
        return rang

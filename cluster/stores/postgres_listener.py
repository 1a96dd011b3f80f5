"""Hears of work by Postgres' NOTIFY, on a connection that does nothing else.

One of those who wait listens, and rings the bell for the others. What is said while nobody waits stays in the socket
and is heard by the next. A lost connection is no error here: who waits is sent to look, and the next wait connects.
"""

import asyncio

import psycopg

from understudy.actors.bell import Bell
from understudy.cluster.stores.postgres_client import Connection, Connections

AWAY_S = 0.5


class Listener:
    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._connection: Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listening = False
        self._bell = Bell()

    async def wait(self, timeout_s: float) -> None:
        """Until there may be work, or the time has passed."""
        if self._listening and self._loop is asyncio.get_running_loop():
            await self._bell.wait(timeout_s)
            return
        self._listening = True
        try:
            await self._listen(timeout_s)
            self._bell.ring()
        except (psycopg.OperationalError, psycopg.InterfaceError):
            self._drop()
            await asyncio.sleep(min(timeout_s, AWAY_S))
        except asyncio.CancelledError:
            self._drop()  # in the middle of a message, perhaps
            raise
        finally:
            self._listening = False

    async def close(self) -> None:
        self._drop()

    async def _listen(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        if self._connection is None or loop is not self._loop:
            self._drop()
            self._connection = await self._connections.connect()
            self._loop = loop
            await self._connection.execute("LISTEN understudy_work")
            return  # whatever came before has to be looked for
        async for _ in self._connection.notifies(timeout=timeout_s, stop_after=1):
            pass

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.pgconn.finish()
            self._connection = None

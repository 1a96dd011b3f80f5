"""A few connections to Postgres that come back: what fails because the server is away is sent again for a while.

Law 2 allows that: every verb is one transaction of its own, and may be sent twice. A server that is killed and started
again within `PATIENCE_S` is thus no crash of the runs under way; after that it is StoreUnavailable, and whoever called
waits and tries again.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from understudy.actors.errors import CallerError, StoreUnavailable

try:
    import psycopg
    from psycopg import errors
except ImportError as error:
    raise CallerError(f"a postgresql:// store needs psycopg ({error}); pip install 'understudy[postgres]'") from None
from understudy.cluster.stores.postgres_wire import Line

PATIENCE_S = 30.0
"""A crashed server recovers for some seconds after it was started again, and somebody has to start it."""
ATTEMPT_S_MIN = 1.0
"""What a call has at least, however long it waited for its turn: the server may have just come back."""
WATCH_S = 0.25
"""How often it is looked whether a call has waited too long."""
CONNECTIONS_MAX = 4
"""Of one process, besides the one that listens; more verbs at once wait for each other."""

SETTINGS = """
SET search_path TO understudy;
SET plan_cache_mode = force_generic_plan; SET jit = off;
SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
SELECT repeat('x', 1000000) IS NULL
"""
"""Whatever is asked finds its rows by a key, so one plan does for all values; to make one takes as long as ten commits.
(But for threads_sweep, which says so.) And nothing of it is so much work that it pays to compile it. A plan is kept as
long as its connection, and may be made while the tables are nearly empty: it must not be to read them whole, or a load
reads all checkpoints that there are by then, once for each row of its chain (17 ms instead of 8 after ten runs).

The last one is for malloc: a server process that has once freed so much gives less back to the kernel, which it would
else do after each commit, to ask for it again in the next (brk): an eighth of what a commit takes it."""

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
R = TypeVar("R")

ANOTHER_TIME = (errors.DeadlockDetected, errors.SerializationFailure, errors.ReadOnlySqlTransaction)
"""The connection is good, the moment was not (the last one: a standby that is about to be promoted)."""
CANNOT_HOLD = (psycopg.DataError, errors.ProgramLimitExceeded)
"""The same will not fit another time either: text with NUL, a name longer than an index takes. (The second is one of
psycopg's OperationalErrors, and was taken for an outage of 30 s.)"""
NEVER = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied", "permission denied")
"""Parts of libpq's messages about a connection that will not come about by waiting; it gives no codes for them."""


class Connections:
    def __init__(self, url: str, patience_s: float = PATIENCE_S) -> None:
        self.url = url
        self.where = _without_credentials(url)
        self.patience_s = patience_s
        self.closed = False
        self.connects = 0
        """Connections that were tried."""
        self._idle: list[Line] = []
        self._at_work: dict[Line, float] = {}
        """Until when, on the loop's clock."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._turns = asyncio.Semaphore(CONNECTIONS_MAX)

    async def run(self, do: Callable[[Connection], Awaitable[R]], patience_s: float | None = None) -> R:
        """Do something on a connection of its own, again if need be. Raises StoreUnavailable, CallerError."""

        async def plainly(line: Line) -> R:
            line.deafen()
            async with asyncio.timeout_at(self._at_work[line]):
                return await do(line.connection)

        return await self.ask(plainly, patience_s)

    async def ask(self, do: Callable[[Line], Awaitable[R]], patience_s: float | None = None) -> R:
        """As `run`, by prepared statements alone, which is the shorter way."""
        loop = self._come_to_this_loop()
        patience_s = self.patience_s if patience_s is None else patience_s
        until = loop.time() + patience_s
        pause_s = 0.02
        async with self._turns:
            while True:
                try:
                    return await self._once(do, max(until, loop.time() + ATTEMPT_S_MIN))
                except CANNOT_HOLD as error:
                    raise CallerError(f"{self.where} cannot hold this: {_first_line(error)}") from error
                except (psycopg.OperationalError, psycopg.InterfaceError, *ANOTHER_TIME, TimeoutError) as error:
                    if loop.time() + pause_s > until:
                        told = (
                            f"{self.where} did not answer for {patience_s:g} s: {_first_line(error)}; is it running "
                            f"and reachable?"
                        )
                        raise StoreUnavailable(told) from error
                except errors.InsufficientPrivilege as error:
                    raise CallerError(f"{self.where}: {_first_line(error)}; grant it, or use another role") from error
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
                pause_s = min(pause_s * 2, 0.5)

    async def connect(self) -> Connection:
        """A new connection, the caller's own. Raises psycopg.OperationalError, CallerError."""
        if self.closed:
            raise CallerError(f"the store {self.where} is closed; open it again")
        self.connects += 1
        try:
            connection = await psycopg.AsyncConnection.connect(
                self.url,
                autocommit=True,
                connect_timeout=5,
                application_name="understudy",
                keepalives_idle=10,
                tcp_user_timeout=10_000,
            )
        except psycopg.ProgrammingError as error:
            raise CallerError(f"store {self.where}: {_first_line(error)}") from error
        except psycopg.OperationalError as error:
            if any(part in str(error) for part in NEVER):
                raise CallerError(f"cannot connect to {self.where}: {_first_line(error)}") from error
            raise
        await connection.execute(SETTINGS)
        return connection

    async def close(self) -> None:
        self.closed = True
        while self._idle:
            self._idle.pop().finish()

    async def _once(self, do: Callable[[Line], Awaitable[R]], until: float) -> R:
        line = self._idle.pop() if self._idle else await self._new_line(until)
        self._at_work[line] = until
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(WATCH_S, self._look)
        try:
            answer = await do(line)
        except (psycopg.OperationalError, psycopg.InterfaceError):
            self._idle, others = [], [line, *self._idle]  # the others are as old, and as dead
            for other in others:
                other.finish()
            raise
        except psycopg.Error:
            self._idle.append(line)
            raise
        except BaseException:  # cancelled in the middle of an answer, or waited too long for it
            line.finish()
            raise
        finally:
            self._at_work.pop(line, None)
        if self.closed:
            line.finish()
        else:
            self._idle.append(line)
        return answer

    async def _new_line(self, until: float) -> Line:
        async with asyncio.timeout_at(until):
            return Line(await self.connect())

    def _look(self) -> None:
        """Now and then, as long as there is work: a limit for each statement takes a fifth of what one costs here."""
        loop = asyncio.get_running_loop()
        for line, until in self._at_work.items():
            if until <= loop.time():
                line.give_up()
        self._watch = loop.call_later(WATCH_S, self._look) if self._at_work else None

    def _come_to_this_loop(self) -> asyncio.AbstractEventLoop:
        """Verbs may be called from one event loop after another; what waits on a loop belongs to it."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            for line in self._idle:
                line.finish()
            self._idle, self._at_work, self._watch = [], {}, None
            self._loop, self._turns = loop, asyncio.Semaphore(CONNECTIONS_MAX)
        return loop


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""What all parts of the Redis store lean on: calling a script, and knowing where a run lives.

The scripts name no key that they were not given. Some keys bear the name of the thread or the parent, which a run's id
does not tell, so the first `load`, `commit` or `cancel` of a run in a process asks for them once more (`_home_of`).
"""

import asyncio
import itertools
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

from understudy.actors.bell import Bell
from understudy.actors.records import RunRecord
from understudy.actors.refusals import no_run
from understudy.cluster.stores.redis_address import Address
from understudy.cluster.stores.redis_client import RedisClient
from understudy.cluster.stores.redis_codec import Keys, read_run
from understudy.cluster.stores.redis_link import Arg, Link, Opening, pack
from understudy.cluster.stores.redis_scripts import CHANNEL, SCRIPTS

HOMES_REMEMBERED = 10_000
OPENINGS_REMEMBERED = 2_000
PAGE = 200
"""So many rows at a time where an answer may be long: Redis serves nobody else meanwhile."""


class Home(NamedTuple):
    """What of a run never changes, and is part of names of keys and counters. Empty for one that is not there."""

    thread_id: str = ""
    graph: str = ""
    parent: str = ""


class RedisBase:
    def __init__(self, url: str) -> None:
        self._redis = RedisClient(Address.of_url(url), tuple(SCRIPTS.values()))
        self._homes: dict[str, Home] = {}
        self._openings: dict[str, Opening] = {}
        self._calls = (f"{secrets.token_hex(6)}-{n}" for n in itertools.count())
        self._bell = Bell()
        self._news: Link | None = None

    async def run(self, run_id: str) -> RunRecord:
        found = await self._records([run_id])
        if not found:
            raise no_run(run_id)
        return found[0]

    async def wait_work(self, timeout_s: float) -> None:
        news = self._news
        if news is None or news.closed or news.loop is not asyncio.get_running_loop():
            try:
                async with asyncio.timeout(timeout_s):
                    news = await self._redis.subscribe(CHANNEL, self._bell.ring)
                if self._news is not None:
                    self._news.close()
                self._news = news
            except OSError:  # `due` will meet the same trouble, and tell
                await asyncio.sleep(min(timeout_s, 0.1))
            return  # there may have been news before the subscription
        await self._bell.wait(timeout_s)

    async def close(self) -> None:
        if self._news is not None:
            self._news.close()
            self._news = None
        await self._redis.close()

    # --- what they share ---

    async def _call(self, name: str, keys: Sequence[str], args: Sequence[Arg] = ()) -> Any:
        [answer] = await self._redis.ask(SCRIPTS[name].call(keys, args))
        return answer

    def _record(self, run_id: str, found: Sequence[Any]) -> RunRecord:
        record = read_run(run_id, found[0], found[1])
        self._remember(run_id, Home(record.thread_id, record.graph, record.parent))
        return record

    async def _records(self, run_ids: Sequence[str]) -> list[RunRecord]:
        """Those of them that are there."""
        records = []
        for start in range(0, len(run_ids), PAGE):
            some = run_ids[start : start + PAGE]
            calls = [SCRIPTS["run"].call(Keys.of_run(run_id).run("run", "answers"), ()) for run_id in some]
            answers = await self._redis.ask(*calls)
            records += [self._record(i, found[1:]) for i, found in zip(some, answers, strict=True) if found[1]]
        return records

    async def _home_of(self, run_id: str) -> Home:
        """One that is not there has an empty home, which the script then finds out itself."""
        known = self._homes.get(run_id)
        if known is not None:
            return known
        [home] = await self._redis.ask(pack("HMGET", *Keys.of_run(run_id).run("run"), "thread", "graph", "parent"))
        return Home() if home[0] is None else self._remember(run_id, Home(*home))

    def _remember(self, run_id: str, home: Home) -> Home:
        if len(self._homes) >= HOMES_REMEMBERED:
            self._homes.clear()
        return self._homes.setdefault(run_id, home)

    async def _runs_on(self, keys: Keys) -> list[str]:
        """Ids of all runs of a thread, as the scripts compare them (`same_runs`)."""
        [run_ids] = await self._redis.ask(pack("ZRANGE", *keys.thread("runs"), 0, -1))
        return list(run_ids)

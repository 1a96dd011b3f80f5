"""A store in Redis: every verb is one Lua script over the keys of one partition, sent once, refused or applied whole.

Laws kept here: 1 and 2 by the scripts beside this file (each says which), which alone decide; this file only packs and
unpacks. Times and fractions go through as text. Law 8: `sweep` and `delete_thread` know every key of a thread.

The scripts name no key that they were not given. Some keys bear the thread's name, which a run's id does not tell, so
the first `load`, `commit` or `cancel` of a run in a process asks for it once more (`_thread_of`).
"""

import asyncio
import itertools
import secrets
from collections.abc import Sequence
from typing import Any

from understudy.actors.bell import Bell
from understudy.actors.events import sample
from understudy.actors.records import (
    FINAL,
    PARTITIONS,
    STATUSES,
    Begun,
    CheckpointRow,
    Commit,
    Committed,
    Counters,
    Due,
    Event,
    Loaded,
    NewRun,
    Receipt,
    Renewed,
    RunRecord,
    Status,
    partition_of_run,
    partition_of_thread,
)
from understudy.actors.refusals import (
    answer_conflict,
    fenced,
    key_conflict,
    new_record,
    no_blob,
    no_checkpoint,
    no_interrupt,
    no_run,
    not_ready,
    seed_conflict,
    seq_gap,
    thread_in_use,
)
from understudy.actors.store import StoreInfo
from understudy.cluster.stores.redis_client import Address, Arg, Link, RedisClient, pack
from understudy.cluster.stores.redis_codec import (
    BEATS,
    RUN_KEYS,
    THREAD_KEYS,
    Keys,
    all_shared,
    checkpoint_row,
    counted,
    counters_args,
    effect_field,
    event_text,
    events_args,
    interrupts_text,
    pairs,
    pairs_args,
    read_checkpoint,
    read_counters,
    read_event,
    read_receipt,
    read_run,
    receipt_args,
    run_fields,
    to_json,
    token_text,
)
from understudy.cluster.stores.redis_safety import check_safety, read_info
from understudy.cluster.stores.redis_scripts import CHANNEL, SCRIPTS

RETAIN_S = 7 * 86400.0
"""How long the thread of a cancelled or quarantined run is kept."""
MEMBER_SILENT_S = 86400.0
THREADS_REMEMBERED = 10_000
PAGE = 200
"""So many rows at a time where an answer may be long: Redis serves nobody else meanwhile."""

_DUE = tuple(
    # Asked of every partition many times a second: packed once, but for the last five words.
    pack("ZRANGEBYSCORE", key, "-inf").replace(b"*3", b"*8", 1)
    for key in (*all_shared("queue"), *all_shared("leases"))
)


class RedisStore:
    def __init__(self, url: str) -> None:
        self._redis = RedisClient(Address.of_url(url), tuple(SCRIPTS.values()))
        self._threads: dict[str, tuple[str, str]] = {}
        """Thread and graph of runs, which never change."""
        self._calls = (f"{secrets.token_hex(6)}-{n}" for n in itertools.count())
        self._bell = Bell()
        self._news: Link | None = None

    @classmethod
    async def open(cls, url: str, *, allow_volatile: bool = False) -> "RedisStore":
        """Connect, and refuse a Redis that would lose or evict data (UnsafeStore) unless `allow_volatile`."""
        store = cls(url)
        try:
            check_safety(await read_info(store._redis), allow_volatile)
        except BaseException:
            await store.close()
            raise
        return store

    # --- the life of a run -----------------------------------------------------------------------------------------

    async def create(self, run: NewRun, events: Sequence[Event], counters: Counters, now: float) -> RunRecord:
        assert partition_of_run(run.run_id) == partition_of_thread(run.thread_id), f"{run.run_id}: see run_id_on()"
        keys = Keys.of_run(run.run_id, run.thread_id)
        seed = run.seed
        tag, *found = await self._call(
            "create",
            [
                *keys.run("run", "answers", "events"),
                *keys.thread("line", "runs", "keys", "checkpoints", "history"),
                *keys.shared("heads", "queue", "index:queued", "index:all", "expiry", "counters"),
            ],
            [
                run.run_id,
                run.thread_id,
                repr(now),
                run.key,
                run.digest,
                seed.checkpoint_id if seed else "",
                checkpoint_row(seed, run.run_id, now) if seed else "",
                *pairs_args(run_fields(new_record(run, now))),
                *events_args(events),
                *counters_args(counters),
            ],
        )
        if tag == "conflict":
            raise key_conflict(run, found[0])
        if tag == "not new":
            raise seed_conflict(run)
        if tag == "known":
            return await self.run(found[0])
        return self._record(run.run_id, found)

    async def due(self, now: float, limit: int) -> Due:
        until = pack(repr(now), "WITHSCORES", "LIMIT", 0, limit).partition(b"\r\n")[2]
        answers = await self._redis.ask(*[command + until for command in _DUE])
        ready, leases = (
            sorted((float(score), member) for flat in half if flat for member, score in pairs(flat))[:limit]
            for half in (answers[:PARTITIONS], answers[PARTITIONS:])
        )
        overdue = (member.split(" ") for _, member in leases)
        return Due(tuple(run_id for _, run_id in ready), tuple((run_id, int(epoch)) for run_id, epoch in overdue))

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

    async def claim(self, run_id: str, owner: str, lease_s: float, now: float) -> RunRecord:
        keys = Keys.of_run(run_id)
        claimed = to_json({"kind": "claimed", "at": now, "data": {"owner": owner, "epoch": 0}})
        tag, *found = await self._call(
            "claim",
            [
                *keys.run("run", "answers", "events"),
                *keys.shared("queue", "leases", "heads"),
                *keys.index("queued", "waiting", "running"),
            ],
            [run_id, owner, repr(now + lease_s), repr(now), claimed.removesuffix("0}}"), next(self._calls)],
        )
        if tag == "missing":
            raise no_run(run_id)
        if tag == "conflict":
            raise not_ready(self._record(run_id, found))
        return self._record(run_id, found)

    async def load(self, run_id: str) -> Loaded:
        keys = Keys.of_run(run_id, (await self._thread_of(run_id))[0])
        tag, *found = await self._call(
            "load",
            [*keys.run("run", "answers", "writes"), *keys.thread("checkpoints"), *keys.run("receipts", "effects")],
        )
        if tag == "missing":
            raise no_run(run_id)
        run = self._record(run_id, found)
        rows, writes, texts = found[2:]
        receipts = [read_receipt(text) for text in texts]
        return Loaded(
            run,
            tuple(read_checkpoint(row) for row in reversed(rows)),
            dict(pairs(writes)),
            {receipt.key: receipt for receipt in receipts if receipt.checkpoint_id == run.head},
        )

    async def commit(self, commit: Commit) -> Committed:
        run_id, new = commit.run_id, commit.checkpoint
        thread_id = (await self._thread_of(run_id))[0]
        keys = Keys.of_run(run_id, thread_id)
        names = [
            *keys.run("run", "events", "writes", "answers", "effects"),
            *keys.thread("checkpoints", "history"),
            *keys.shared("heads", "counters"),
        ]
        if commit.status != "running":
            names += keys.thread("line")
            names += keys.shared("queue", "leases", "expiry")
            names += keys.index("running", "queued", commit.status)
        args: list[Arg] = [
            run_id,
            commit.epoch,
            commit.seq,
            repr(commit.at),
            commit.status,
            commit.step,
            thread_id,
            new.checkpoint_id if new else "",
            checkpoint_row(new, run_id, commit.at) if new else "",
            commit.result,
            commit.error,
            interrupts_text(commit.interrupts) if commit.interrupts else "[]",
            repr(commit.wake_at) if commit.wake_at else "0",
            repr(commit.at + commit.retain_s) if commit.retain_s >= 0 else "",
            *events_args(commit.events),
            *counters_args(commit.counters),
            *pairs_args({} if new else commit.writes),
            *counted([interrupt.interrupt_id for interrupt in commit.interrupts if not interrupt.settled]),
        ]
        tag, *told = await self._call("commit", names, args)
        if tag == "fenced":
            raise fenced(run_id, commit.epoch, "commit")
        assert tag != "gap", seq_gap(commit, int(told[0]))
        return Committed(duplicate=tag == "duplicate", cancel_asked=told[0] == "1")

    async def renew(self, leases: Sequence[tuple[str, int]], lease_s: float, now: float) -> Renewed:
        by_partition: dict[str, list[int]] = {}
        for place, (run_id, _) in enumerate(leases):
            by_partition.setdefault(Keys.of_run(run_id).tag, []).append(place)
        commands = []
        for places in by_partition.values():
            some = [leases[place] for place in places]
            names = Keys.of_run(some[0][0]).shared("leases", "counters")
            names += [key for run_id, _ in some for key in Keys.of_run(run_id).run("run")]
            args: list[Arg] = [repr(now + lease_s)]
            for lease in some:
                args += lease
            commands.append(SCRIPTS["renew"].call(names, args))
        if not commands:
            return Renewed((), ())
        answers = await self._redis.ask(*commands)
        told = dict(zip(itertools.chain(*by_partition.values()), itertools.chain(*answers), strict=True))
        lost, cancelled = (
            tuple(run_id for place, (run_id, _) in enumerate(leases) if told[place] == tag)
            for tag in ("lost", "cancelled")
        )
        return Renewed(lost, cancelled)

    async def requeue(
        self,
        run_id: str,
        epoch: int,
        now: float,
        not_before: float,
        events: Sequence[Event],
        counters: Counters,
        *,
        crashed: bool = True,
        quarantine: str = "",
    ) -> RunRecord:
        thread_id = (await self._thread_of(run_id))[0] if quarantine else ""
        keys = Keys.of_run(run_id, thread_id)
        names = keys.run("run", "answers", "events") + keys.shared("queue", "leases", "counters")
        names += keys.index("running", "quarantined" if quarantine else "queued")
        if quarantine:
            names += keys.thread("line") + keys.shared("expiry") + keys.run("writes")
        tag, *found = await self._call(
            "requeue",
            names,
            [
                run_id,
                epoch,
                repr(now),
                repr(not_before),
                repr(max(now, not_before)),
                int(crashed),
                quarantine,
                thread_id,
                repr(now + RETAIN_S),
                *events_args(events),
                *counters_args(counters),
            ],
        )
        if tag == "fenced":
            raise fenced(run_id, epoch, "requeue")
        return self._record(run_id, found)

    async def resume(self, run_id: str, interrupt_id: str, answer: str, now: float) -> RunRecord:
        keys = Keys.of_run(run_id)
        tag, *found = await self._call(
            "resume",
            [*keys.run("run", "answers", "events"), *keys.shared("queue"), *keys.index("waiting", "queued")],
            [
                run_id,
                interrupt_id,
                answer,
                repr(now),
                event_text(Event("answered", now, {"interrupt_id": interrupt_id})),
            ],
        )
        if tag == "missing":
            raise no_run(run_id)
        if tag == "conflict":
            raise answer_conflict(run_id, interrupt_id)
        if tag == "not open":
            raise no_interrupt(run_id, interrupt_id)
        return self._record(run_id, found)

    async def cancel(self, run_id: str, now: float) -> RunRecord:
        thread_id, graph = await self._thread_of(run_id)
        keys = Keys.of_run(run_id, thread_id)
        tag, *found = await self._call(
            "cancel",
            [
                *keys.run("run", "answers", "events"),
                *keys.shared("queue"),
                *keys.thread("line"),
                *keys.run("writes"),
                *keys.shared("counters", "expiry"),
                *keys.index("queued", "waiting", "cancelled"),
            ],
            [
                run_id,
                thread_id,
                repr(now),
                repr(now + RETAIN_S),
                event_text(Event("cancel_asked", now)),
                event_text(Event("finished", now, {"status": "cancelled"})),
                sample("runs_finished_total", graph=graph, status="cancelled"),
            ],
        )
        if tag == "missing":
            raise no_run(run_id)
        return self._record(run_id, found)

    # --- effects ---------------------------------------------------------------------------------------------------

    async def begin(
        self, receipt: Receipt, epoch: int, events: Sequence[Event], counters: Counters, now: float
    ) -> Begun:
        keys = Keys.of_run(receipt.run_id)
        tag, *told = await self._call(
            "begin",
            [*keys.run("run", "events", "receipts", "effects"), *keys.shared("counters")],
            [
                epoch,
                effect_field(receipt.key, receipt.checkpoint_id),
                receipt.checkpoint_id,
                *receipt_args(receipt),
                *events_args(events),
                *counters_args(counters),
            ],
        )
        if tag == "fenced":
            raise fenced(receipt.run_id, epoch, "begin")
        return Begun(tag == "fresh", read_receipt(told[0]))

    async def finish(
        self,
        run_id: str,
        key: str,
        checkpoint_id: str,
        token: str,
        outcome: str,
        events: Sequence[Event],
        counters: Counters,
        now: float,
    ) -> bool:
        return await self._end_start(run_id, key, checkpoint_id, token, "done", outcome, events, counters)

    async def forget(
        self, run_id: str, key: str, checkpoint_id: str, token: str, events: Sequence[Event], counters: Counters
    ) -> bool:
        return await self._end_start(run_id, key, checkpoint_id, token, "unknown", "", events, counters)

    async def _end_start(
        self,
        run_id: str,
        key: str,
        checkpoint_id: str,
        token: str,
        state: str,
        outcome: str,
        events: Sequence[Event],
        counters: Counters,
    ) -> bool:
        keys = Keys.of_run(run_id)
        field = effect_field(key, checkpoint_id)
        applied = await self._call(
            "finish",
            [*keys.run("receipts", "events"), *keys.shared("counters")],
            [field, token_text(token), state, outcome, *events_args(events), *counters_args(counters)],
        )
        return bool(applied)

    async def receipt(self, run_id: str, key: str, checkpoint_id: str) -> Receipt | None:
        [name] = Keys.of_run(run_id).run("receipts")
        [text] = await self._redis.ask(pack("HGET", name, effect_field(key, checkpoint_id)))
        return None if text is None else read_receipt(text)

    # --- reading ---------------------------------------------------------------------------------------------------

    async def run(self, run_id: str) -> RunRecord:
        found = await self._records([run_id])
        if not found:
            raise no_run(run_id)
        return found[0]

    async def runs(self, status: Status | None = None, limit: int = 100, thread_id: str = "") -> list[RunRecord]:
        if thread_id:
            return await self._runs_of_thread(thread_id, status, limit)
        names = all_shared(f"index:{status or 'all'}")
        answers = await self._redis.ask(*(pack("ZRANGE", n, 0, limit - 1, "REV", "WITHSCORES") for n in names))
        newest = sorted(((float(at), i) for flat in answers if flat for i, at in pairs(flat)), reverse=True)[:limit]
        # One that went on between the two looks is left out, rather than told with a status that nobody asked for.
        return [r for r in await self._records([i for _, i in newest]) if status in (None, r.status)]

    async def _runs_of_thread(self, thread_id: str, status: Status | None, limit: int) -> list[RunRecord]:
        [name] = Keys.of_thread(thread_id).thread("runs")
        records: list[RunRecord] = []
        for start in itertools.count(0, PAGE):
            [run_ids] = await self._redis.ask(pack("ZRANGE", name, start, start + PAGE - 1, "REV"))
            page = run_ids if status else run_ids[: limit - len(records)]
            records += [record for record in await self._records(page) if status in (None, record.status)]
            if len(run_ids) < PAGE or len(records) >= limit:
                break
        return records[:limit]

    async def events(self, run_id: str, after: int = 0, limit: int = 1000) -> list[Event]:
        run, events = Keys.of_run(run_id).run("run", "events")
        first = max(0, after)
        exists, texts = await self._redis.ask(
            pack("EXISTS", run), pack("LRANGE", events, first, first + max(1, limit) - 1)
        )
        if not exists:
            raise no_run(run_id)
        return [read_event(text, n) for n, text in enumerate(texts[: max(0, limit)], first + 1)]

    async def history(self, thread_id: str, limit: int = 1000) -> list[CheckpointRow]:
        names = Keys.of_thread(thread_id).thread("history", "checkpoints")
        rows: list[CheckpointRow] = []
        while len(rows) < limit:
            size = min(PAGE, limit - len(rows))
            page = await self._call("history", names, [-len(rows) - size, -len(rows) - 1])
            rows += [read_checkpoint(text) for text in reversed(page)]
            if len(page) < size:
                break
        return rows

    async def chain(self, thread_id: str, checkpoint_id: str) -> list[CheckpointRow]:
        rows = await self._call("chain", Keys.of_thread(thread_id).thread("checkpoints"), [checkpoint_id])
        if not rows:
            raise no_checkpoint(thread_id, checkpoint_id)
        return [read_checkpoint(row) for row in reversed(rows)]

    async def counts(self) -> dict[Status, int]:
        names = [name for status in STATUSES for name in all_shared(f"index:{status}")]
        sizes = iter(await self._redis.ask(*(pack("ZCARD", name) for name in names)))
        return {status: sum(itertools.islice(sizes, PARTITIONS)) for status in STATUSES}

    async def counters(self) -> dict[str, float]:
        return read_counters(await self._redis.ask(*(pack("HGETALL", name) for name in all_shared("counters"))))

    # --- around it -------------------------------------------------------------------------------------------------

    async def put_blob(self, digest: str, data: bytes) -> None:
        await self._redis.ask(pack("SET", f"u:blob:{digest}", data, "NX"))

    async def get_blob(self, digest: str) -> bytes:
        [data] = await self._redis.ask(pack("GET", f"u:blob:{digest}"), text=False)
        if data is None:
            raise no_blob(digest)
        assert isinstance(data, bytes)
        return data

    async def beat(self, member: str, data: str, now: float) -> None:
        await self._redis.ask(pack("HSET", BEATS, member, f"{now!r}\n{data}"))

    async def beats(self) -> dict[str, tuple[float, str]]:
        [flat] = await self._redis.ask(pack("HGETALL", BEATS))
        split = {member: text.split("\n", 1) for member, text in pairs(flat)}
        return {member: (float(at), data) for member, (at, data) in split.items()}

    async def sweep(self, now: float) -> int:
        silent = [member for member, (at, _) in (await self.beats()).items() if at < now - MEMBER_SILENT_S]
        if silent:
            await self._redis.ask(pack("HDEL", BEATS, *silent))
        expired = await self._redis.ask(
            *(pack("ZRANGEBYSCORE", name, "-inf", repr(now)) for name in all_shared("expiry"))
        )
        deleted = 0
        for thread_id in itertools.chain(*expired):
            deleted += (await self._delete(thread_id, repr(now)))[0] == "deleted"
        return deleted

    async def delete_thread(self, thread_id: str) -> None:
        tag, *told = await self._delete(thread_id, "")
        if tag == "unfinished":
            raise thread_in_use(thread_id, told[0])

    async def _delete(self, thread_id: str, expired_by: str) -> list[str]:
        keys = Keys.of_thread(thread_id)
        while True:
            [run_ids] = await self._redis.ask(pack("ZRANGE", *keys.thread("runs"), 0, -1))
            names = keys.thread(*THREAD_KEYS) + keys.shared("heads", "expiry") + keys.index("all", *sorted(FINAL))
            for run_id in run_ids:
                names += Keys.of_run(run_id).run(*RUN_KEYS)
                self._threads.pop(run_id, None)
            told: list[str] = await self._call("delete", names, [thread_id, expired_by, *run_ids])
            if told[0] != "changed":
                return told

    async def info(self) -> StoreInfo:
        found = await read_info(self._redis)
        return StoreInfo("redis", self._redis.address.where, found.durable, found.detail())

    async def close(self) -> None:
        if self._news is not None:
            self._news.close()
            self._news = None
        await self._redis.close()

    # --- what they share -------------------------------------------------------------------------------------------

    async def _call(self, name: str, keys: Sequence[str], args: Sequence[Arg] = ()) -> Any:
        [answer] = await self._redis.ask(SCRIPTS[name].call(keys, args))
        return answer

    def _record(self, run_id: str, found: Sequence[Any]) -> RunRecord:
        record = read_run(run_id, found[0], found[1])
        self._remember(run_id, record.thread_id, record.graph)
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

    async def _thread_of(self, run_id: str) -> tuple[str, str]:
        """Thread and graph of a run; empty for a run that is not there, which the script then finds out itself."""
        known = self._threads.get(run_id)
        if known is not None:
            return known
        [(thread_id, graph)] = await self._redis.ask(pack("HMGET", *Keys.of_run(run_id).run("run"), "thread", "graph"))
        if thread_id is None:
            return "", ""
        return self._remember(run_id, thread_id, graph)

    def _remember(self, run_id: str, thread_id: str, graph: str) -> tuple[str, str]:
        if len(self._threads) >= THREADS_REMEMBERED:
            self._threads.clear()
        return self._threads.setdefault(run_id, (thread_id, graph))

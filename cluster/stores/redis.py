"""A store in Redis: every verb is one Lua script over the keys of one partition, sent once, refused or applied whole.

Laws kept here: 1 and 2 by the scripts beside this file (each says which), which alone decide; this file only packs and
unpacks. Times and fractions go through as text. This file has the life of runs, effects and reading; redis_mail.py
messages and streams, redis_upkeep.py blobs and all ends, redis_moves.py dump and adopt, redis_documents.py documents.
"""

import itertools
from collections.abc import Sequence

from understudy.actors.events import sample
from understudy.actors.records import (
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
    RETAIN_S,
    answer_conflict,
    fenced,
    key_conflict,
    new_record,
    no_checkpoint,
    no_interrupt,
    no_run,
    not_ready,
    not_retryable,
    seed_conflict,
    seq_gap,
    thread_busy,
    thread_went_on,
)
from understudy.actors.store import OPENING_S, StoreInfo
from understudy.cluster.stores.redis_base import OPENINGS_REMEMBERED, PAGE, Home
from understudy.cluster.stores.redis_codec import (
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
    read_messages,
    read_receipt,
    receipt_args,
    run_fields,
    to_json,
    token_text,
)
from understudy.cluster.stores.redis_documents import RedisDocuments
from understudy.cluster.stores.redis_link import Arg, Opening, pack
from understudy.cluster.stores.redis_mail import RedisMail
from understudy.cluster.stores.redis_moves import RedisMoves
from understudy.cluster.stores.redis_rights import check_rights
from understudy.cluster.stores.redis_safety import check_safety, read_info
from understudy.cluster.stores.redis_scripts import SCRIPTS
from understudy.cluster.stores.redis_upkeep import RedisUpkeep

_DUE = tuple(
    # Asked of every partition many times a second: packed once, but for the last five words.
    pack("ZRANGEBYSCORE", key, "-inf").replace(b"*3", b"*8", 1)
    for key in (*all_shared("queue"), *all_shared("leases"))
)


class RedisStore(RedisMail, RedisUpkeep, RedisMoves, RedisDocuments):
    # --- the life of a run -----------------------------------------------------------------------------------------

    async def create(self, run: NewRun, events: Sequence[Event], counters: Counters, now: float) -> RunRecord:
        places = {partition_of_run(run.run_id), partition_of_thread(run.thread_id)}
        assert len(places) == 1, f"{run.run_id}: see run_id_on()"
        assert not run.parent or partition_of_run(run.parent) in places, f"{run.run_id}: not where {run.parent} is"
        keys = Keys.of_run(run.run_id, run.thread_id)
        names = [
            *keys.run("run", "answers", "events"),
            *keys.thread("runs", "keys", "checkpoints", "history"),
            *keys.shared("threads", "named", "index:all"),
            *keys.place(),
            *(Keys.of_run(run.parent) if run.parent else keys).run("run"),
        ]
        seed = run.seed
        args: list[Arg] = [
            run.run_id,
            run.thread_id,
            repr(now),
            run.key,
            run.digest,
            seed.checkpoint_id if seed else "",
            checkpoint_row(seed, run.run_id, now) if seed else "",
            run.busy,
            to_json(list(run.blobs)),
            *_cancel_args(now),
            run.parent_epoch,
            *pairs_args(run_fields(new_record(run, now))),
            *events_args(events),
            *counters_args(counters),
        ]
        tag, *found = await self._call("create", names, args)
        while tag == "line":  # these are to be cancelled first
            others = [(run_id, await self._home_of(run_id)) for run_id in found[0]]
            those: list[str] = []
            told: list[Arg] = []
            for run_id, home in others:
                its = Keys.of_run(run_id)
                those += [*its.own(), *its.parents(home.parent)]
                told += [run_id, _cancelled_sample(home.graph)]
            tag, *found = await self._call("create", names + those, args + told)
        if tag == "fenced":
            raise fenced(run.parent, run.parent_epoch, "create")
        if tag == "conflict":
            raise key_conflict(run, found[0])
        if tag == "not new":
            raise seed_conflict(run)
        if tag == "busy":
            raise thread_busy(run, found[0])
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
        keys = Keys.of_run(run_id, (await self._home_of(run_id)).thread_id)
        tag, *found = await self._call(
            "load",
            [
                *keys.run("run", "answers", "writes"),
                *keys.thread("checkpoints"),
                *keys.run("receipts", "effects", "messages"),
            ],
        )
        if tag == "missing":
            raise no_run(run_id)
        run = self._record(run_id, found)
        rows, writes, texts, messages = found[2:]
        if run.head and not rows:
            raise no_checkpoint(run.thread_id, run.head)
        receipts = [read_receipt(text) for text in texts]
        return Loaded(
            run,
            tuple(read_checkpoint(row) for row in reversed(rows)),
            dict(pairs(writes)),
            {receipt.key: receipt for receipt in receipts if receipt.checkpoint_id == run.head},
            read_messages(messages),
        )

    async def commit(self, *commits: Commit) -> Committed:
        run_id = commits[0].run_id
        home = self._homes.get(run_id) or await self._home_of(run_id)
        leaves = any(commit.status != "running" for commit in commits)
        opening = None if leaves else self._openings.get(run_id)
        if opening is None:
            opening = self._opening_of(run_id, home, leaves)
        args: list[Arg] = []
        for commit in commits:
            args += counted(_commit_args(commit))
        [[tag, *told]] = await self._redis.ask(opening.then(args))
        if tag == "fenced":
            raise fenced(run_id, int(told[1]), "commit")
        if tag == "gap":
            refused = next(commit for commit in commits if commit.seq == int(told[0]))
            raise AssertionError(seq_gap(refused, int(told[1])))
        return Committed(duplicate=tag == "duplicate", cancel_asked=told[0] == "1")

    def _opening_of(self, run_id: str, home: Home, leaves: bool) -> Opening:
        """What the commits of a run all begin with; remembered for those after which it goes on."""
        keys = Keys.of_run(run_id, home.thread_id)
        names = [
            *keys.own(),
            *keys.run("effects"),
            *keys.thread("checkpoints", "history"),
            *keys.shared("heads", "counters"),
        ]
        if leaves:
            names += [*keys.parents(home.parent), *keys.place()]
        opening = SCRIPTS["commit"].opening(names, [run_id, home.thread_id])
        if leaves:
            self._openings.pop(run_id, None)
        elif home.thread_id:
            if len(self._openings) >= OPENINGS_REMEMBERED:
                self._openings.clear()
            self._openings[run_id] = opening
        return opening

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
        home = await self._home_of(run_id) if quarantine else Home()
        keys = Keys.of_run(run_id, home.thread_id)
        tag, *found = await self._call(
            "requeue",
            [*keys.own(), *keys.parents(home.parent), *keys.place()],
            [
                run_id,
                epoch,
                repr(now),
                repr(not_before),
                repr(max(now, not_before)),
                int(crashed),
                quarantine,
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
            [*keys.run("run", "events", "answers"), *keys.place()],
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

    async def cancel(self, run_id: str, now: float, parent_epoch: int = 0) -> RunRecord:
        home = await self._home_of(run_id)
        keys = Keys.of_run(run_id, home.thread_id)
        names = [*keys.own(), *keys.parents(home.parent), *keys.place()]
        args: list[Arg] = [run_id, repr(now), *_cancel_args(now), _cancelled_sample(home.graph), parent_epoch]
        tag, *found = await self._call("cancel", names, args)
        if tag == "missing":
            raise no_run(run_id)
        if tag == "fenced":
            raise fenced(run_id, parent_epoch, "cancel")
        return self._record(run_id, found)

    async def retry(self, run_id: str, now: float) -> RunRecord:
        keys = Keys.of_run(run_id, (await self._home_of(run_id)).thread_id)
        names = [*keys.run("run", "events", "answers"), *keys.place()]
        tag, *found = await self._call("retry", names, [run_id, repr(now), event_text(Event("retried", now))])
        if tag == "missing":
            raise no_run(run_id)
        record = self._record(run_id, found)
        if tag == "not retryable":
            raise not_retryable(record)
        if tag == "busy":
            raise thread_went_on(record, f"has the unfinished run {found[2]}")
        if tag == "went on":
            raise thread_went_on(record, f"is at checkpoint {found[2]!r} by now, after another run")
        return record

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

    async def receipts(self, run_id: str) -> list[Receipt]:
        [texts] = await self._redis.ask(pack("HVALS", *Keys.of_run(run_id).run("receipts")))
        return sorted(map(read_receipt, texts), key=lambda r: (r.at, r.key, r.checkpoint_id))

    # --- reading ---------------------------------------------------------------------------------------------------

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

    # --- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    async def open(cls, url: str, *, allow_volatile: bool = False, within_s: float = OPENING_S) -> "RedisStore":
        """Connect, and refuse a Redis that would lose or evict data (UnsafeStore) unless `allow_volatile`, and a user
        who may not do all that the store does (CallerError)."""
        store = cls(url)
        store._redis.give_up_s = within_s
        try:
            for found in await read_info(store._redis):
                check_safety(found, allow_volatile)
            await check_rights(store._redis)
        except BaseException:
            await store.close()
            raise
        store._redis.give_up_s = None
        return store

    async def info(self) -> StoreInfo:
        found = await read_info(self._redis)
        detail = found[0].detail()
        if self._redis.slots is not None:
            detail["cluster_nodes"] = " ".join(map(str, self._redis.slots.nodes))
        return StoreInfo("redis", self._redis.address.where, all(node.durable for node in found), detail)


def _commit_args(commit: Commit) -> list[Arg]:
    new = commit.checkpoint
    return [
        commit.epoch,
        commit.seq,
        repr(commit.at),
        commit.status,
        commit.step,
        new.checkpoint_id if new else "",
        checkpoint_row(new, commit.run_id, commit.at) if new else "",
        commit.result,
        commit.error,
        interrupts_text(commit.interrupts) if commit.interrupts else "[]",
        repr(commit.wake_at) if commit.wake_at else "0",
        repr(commit.at + commit.retain_s) if commit.retain_s >= 0 else "",
        "" if commit.listens_after is None else commit.listens_after,
        *counted(commit.taken),
        *events_args(commit.events),
        *counters_args(commit.counters),
        *pairs_args({} if new else commit.writes),
        *counted([interrupt.interrupt_id for interrupt in commit.interrupts if not interrupt.settled]),
    ]


def _cancel_args(now: float) -> list[str]:
    """Keep until, and the events of one that is asked and of one that has ended, see cancel_run in _shared.lua."""
    finished = Event("finished", now, {"status": "cancelled"})
    return [repr(now + RETAIN_S), event_text(Event("cancel_asked", now)), event_text(finished)]


def _cancelled_sample(graph: str) -> str:
    return sample("runs_finished_total", graph=graph, status="cancelled")

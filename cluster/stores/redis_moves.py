"""Threads from one store to another, for Redis: dumped in one script, adopted whole in one script."""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from understudy.actors.records import Counters, RunDump, ThreadDump
from understudy.actors.refusals import no_thread
from understudy.cluster.stores.redis_base import RedisBase
from understudy.cluster.stores.redis_codec import (
    Keys,
    all_shared,
    counters_args,
    effect_field,
    event_text,
    message_text,
    pairs,
    read_checkpoint,
    read_event,
    read_messages,
    read_receipt,
    read_run,
    receipt_text,
    row_text,
    run_fields,
)
from understudy.cluster.stores.redis_link import Arg, pack

WORDS = 1000
"""So many words of a list are written in one command: Lua's stack ends."""

Write = tuple[str, str, Sequence[Arg]]
"""Command, key, words."""


class RedisMoves(RedisBase):
    async def threads(self, after: str = "", limit: int = 1000) -> list[str]:
        first = f"({after}" if after else "-"
        answers = await self._redis.ask(
            *(pack("ZRANGEBYLEX", name, first, "+", "LIMIT", 0, limit) for name in all_shared("threads"))
        )
        return list(heapq.merge(*answers, key=str.encode))[:limit]

    async def dump(self, thread_id: str) -> ThreadDump:
        keys = Keys.of_thread(thread_id)
        while True:
            run_ids = await self._runs_on(keys)
            if not run_ids:
                raise no_thread(thread_id)
            names = keys.thread("runs", "checkpoints", "history") + keys.shared("heads", "expiry", "queue")
            for run_id in run_ids:
                names += Keys.of_run(run_id).run("run", "answers", "events", "writes", "receipts", "messages", "sent")
            tag, *told = await self._call("dump", names, [thread_id, *run_ids])
            if tag == "ok":
                break
        head, expires_at, rows, found = told
        runs = sorted(_read(run_id, of_run) for run_id, of_run in zip(run_ids, found, strict=True))
        return ThreadDump(
            thread_id,
            head,
            None if expires_at is None else float(expires_at),
            tuple(run for _, _, run in runs),
            tuple(read_checkpoint(row) for row in rows),
        )

    async def adopt(self, dump: ThreadDump) -> bool:
        places: dict[str, int] = {Keys.of_thread(dump.thread_id).thread("runs")[0]: 1}
        args: list[Arg] = []
        for command, key, words in _writes(dump):
            args += (len(words), command, places.setdefault(key, len(places) + 1), *words)
        return bool(await self._call("adopt", list(places), args))

    async def count(self, counters: Counters) -> None:
        await self._call("count", all_shared("counters")[:1], counters_args(counters))


def _read(run_id: str, found: Sequence[Any]) -> tuple[int, str, RunDump]:
    """A run as dump.lua tells it, behind what it is ordered by."""
    flat, answers, due_at, events, writes, receipts, messages, sent = found
    fields = dict(pairs(flat))
    dump = RunDump(
        record=read_run(run_id, flat, answers),
        seq_epoch=int(fields["seq_epoch"]),
        due_at=None if due_at is None else float(due_at),
        events=tuple(read_event(text, n) for n, text in enumerate(events, 1)),
        writes=dict(pairs(writes)),
        receipts=tuple(sorted(map(read_receipt, receipts), key=lambda r: (r.at, r.key, r.checkpoint_id))),
        messages=read_messages(messages),
        sent={message_id: int(n) for message_id, n in pairs(sent)},
        listens_after=int(fields["listens"]) if fields["listens"] else None,
    )
    return int(fields["nth"]), run_id, dump


def _writes(dump: ThreadDump) -> Iterator[Write]:
    """All that makes the thread, in the order of writing."""
    keys = Keys.of_thread(dump.thread_id)
    [line, runs, keyed, checkpoints, history] = keys.thread("line", "runs", "keys", "checkpoints", "history")
    [heads, expiry, threads, named] = keys.shared("heads", "expiry", "threads", "named")
    yield "ZADD", threads, (0, dump.thread_id)
    yield from _hash(checkpoints, {row.checkpoint_id: row_text(row) for row in dump.checkpoints})
    yield from _list(history, [row.checkpoint_id for row in dump.checkpoints])
    if dump.head:
        yield "HSET", heads, (dump.thread_id, dump.head)
    if dump.expires_at is not None:
        yield "ZADD", expiry, (repr(dump.expires_at), dump.thread_id)
    stored = {row.checkpoint_id for row in dump.checkpoints}
    for nth, run in enumerate(dump.runs, 1):
        record, created = run.record, repr(run.record.created_at)
        yield "ZADD", runs, (created, record.run_id)
        if not record.final:
            yield "RPUSH", line, (record.run_id,)
        if record.key:
            yield "HSET", keyed, (record.key, f"{record.digest}\n{record.run_id}")
        for index in keys.index("all", record.status):
            yield "ZADD", index, (created, record.run_id)
        for digest in record.blobs:
            yield "HINCRBY", named, (digest, 1)
        yield from _run_writes(run, nth, stored)


def _run_writes(run: RunDump, nth: int, stored: set[str]) -> Iterator[Write]:
    record = run.record
    keys = Keys.of_run(record.run_id)
    [fields, events, writes, answers] = keys.run("run", "events", "writes", "answers")
    [messages, receipts, effects, sent] = keys.run("messages", "receipts", "effects", "sent")
    [queue, leases] = keys.shared("queue", "leases")
    listens = "" if run.listens_after is None else str(run.listens_after)
    more = {"seq_epoch": str(run.seq_epoch), "listens": listens, "nth": str(nth)}
    yield from _hash(fields, run_fields(record) | more)
    yield from _list(events, [event_text(event) for event in run.events])
    yield from _hash(writes, run.writes)
    yield from _hash(answers, record.answers)
    yield from _hash(receipts, {effect_field(r.key, r.checkpoint_id): receipt_text(r) for r in run.receipts})
    open_ones = [r for r in run.receipts if r.checkpoint_id == record.head or r.checkpoint_id not in stored]
    yield from _hash(effects, {effect_field(r.key, r.checkpoint_id): r.checkpoint_id for r in open_ones})
    yield from _hash(sent, {message_id: str(n) for message_id, n in run.sent.items()})
    for message in run.messages:
        yield "ZADD", messages, (message.n, message_text(message.message_id, message.body, message.at))
    if run.due_at is not None:
        yield "ZADD", queue, (repr(run.due_at), record.run_id)
    if record.status == "running":
        yield "ZADD", leases, (repr(record.lease_until), f"{record.run_id} {record.epoch}")


def _list(key: str, items: Sequence[Arg]) -> Iterator[Write]:
    for start in range(0, len(items), WORDS):
        yield "RPUSH", key, items[start : start + WORDS]


def _hash(key: str, fields: Mapping[str, str]) -> Iterator[Write]:
    words = [word for pair in fields.items() for word in pair]
    for start in range(0, len(words), WORDS):
        yield "HSET", key, words[start : start + WORDS]

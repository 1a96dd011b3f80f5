"""A store in plain dicts, obviously right: what every other store is compared with, and what quick tests run on.

All laws of the protocol but durability: it ends with its process. No verb awaits anything between its first check and
its last change, so each is atomic on an event loop. Whatever reads like the docstring of the verb, in its order.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from understudy.actors.bell import Bell
from understudy.actors.documents import MemoryDocuments
from understudy.actors.errors import Fenced
from understudy.actors.events import sample
from understudy.actors.records import (
    FINAL,
    STATUSES,
    Begun,
    CheckpointRow,
    Chunk,
    Commit,
    Committed,
    Counters,
    Due,
    Event,
    Loaded,
    Message,
    NewCheckpoint,
    NewRun,
    Receipt,
    Renewed,
    RunDump,
    RunRecord,
    Status,
    ThreadDump,
)
from understudy.actors.refusals import (
    CRASHES_MAX,
    MEMBER_SILENT_S,
    RETAIN_S,
    answer_conflict,
    child_answer,
    fenced,
    key_conflict,
    mailbox_full,
    new_record,
    no_blob,
    no_checkpoint,
    no_interrupt,
    no_mailbox,
    no_run,
    no_thread,
    not_ready,
    not_retryable,
    seed_conflict,
    seq_gap,
    thread_busy,
    thread_in_use,
    thread_went_on,
)
from understudy.actors.store import BLOB_KEPT_S, CHUNKS_MAX, MAILBOX_MAX, StoreInfo


@dataclass
class _Run:
    record: RunRecord
    due_at: float | None
    """When it may be claimed; None: not before something else happens (running, behind another run, final)."""
    seq_epoch: int = 0
    """Epoch of the owner that made the last commit."""
    events: list[Event] = field(default_factory=list)
    writes: dict[str, str] = field(default_factory=dict)
    receipts: dict[tuple[str, str], Receipt] = field(default_factory=dict)
    """By checkpoint and key."""
    messages: list[Message] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    """The n of every message ever sent, by message id."""
    listens_after: int | None = None
    chunks: list[Chunk] = field(default_factory=list)
    streamed: int = 0
    """The n of the last chunk."""


@dataclass
class _Thread:
    head: str = ""
    expires_at: float | None = None
    runs: list[_Run] = field(default_factory=list)
    """In the order of `create`."""
    checkpoints: dict[str, CheckpointRow] = field(default_factory=dict)
    """In the order of storing."""


class MemoryStore(MemoryDocuments):
    def __init__(self) -> None:
        super().__init__()
        self._runs: dict[str, _Run] = {}
        self._threads: dict[str, _Thread] = {}
        self._counters: dict[str, float] = {}
        self._blobs: dict[str, tuple[float, bytes]] = {}
        self._beats: dict[str, tuple[float, str]] = {}
        self._bell = Bell()

    # --- the life of a run ---

    async def create(self, run: NewRun, events: Sequence[Event], counters: Counters, now: float) -> RunRecord:
        if run.run_id in self._runs:
            return self._runs[run.run_id].record
        if run.parent_epoch and self._owned(run.parent, run.parent_epoch, "create").record.status != "running":
            raise self._fenced(run.parent, run.parent_epoch, "create")
        thread = self._threads.get(run.thread_id, _Thread())
        for other in thread.runs:
            if run.key and other.record.key == run.key:
                if other.record.digest != run.digest:
                    raise key_conflict(run, other.record.run_id)
                return other.record
        if run.seed and thread.runs:
            raise seed_conflict(run)
        for other in [other for other in thread.runs if not other.record.final]:
            if run.busy == "reject":
                raise thread_busy(run, other.record.run_id)
            if run.busy != "enqueue":
                other.record = replace(other.record, rollback=run.busy == "rollback")
                self._cancel(other, now)
        behind = any(not other.record.final for other in thread.runs)
        made = _Run(new_record(run, now), due_at=None if behind else now)
        thread.runs.append(made)
        thread.expires_at = None
        self._threads[run.thread_id] = thread
        self._runs[run.run_id] = made
        if run.seed:
            self._store_checkpoint(made, run.seed, now)
        self._note(made, events, counters)
        self._bell.ring()
        return made.record

    async def due(self, now: float, limit: int) -> Due:
        ready = sorted((r.due_at, i) for i, r in self._runs.items() if r.due_at is not None and r.due_at <= now)
        running = [r.record for r in self._runs.values() if r.record.status == "running"]
        overdue = sorted((r.lease_until, r.run_id, r.epoch) for r in running if r.lease_until <= now)
        return Due(tuple(i for _, i in ready[:limit]), tuple((i, epoch) for _, i, epoch in overdue[:limit]))

    async def wait_work(self, timeout_s: float) -> None:
        await self._bell.wait(timeout_s)

    async def claim(self, run_id: str, owner: str, lease_s: float, now: float) -> RunRecord:
        run = self._found(run_id)
        if run.due_at is None or run.due_at > now:
            raise not_ready(run.record)
        fresh = run.record.seq == 0
        head = self._threads[run.record.thread_id].head if fresh else run.record.head
        epoch = run.record.epoch + 1
        run.due_at = None
        run.record = replace(
            run.record,
            status="running",
            epoch=epoch,
            owner=owner,
            lease_until=now + lease_s,
            head=head,
            base=head if fresh else run.record.base,
            not_before=0.0,
            updated_at=now,
        )
        self._note(run, [Event("claimed", now, {"owner": owner, "epoch": epoch})])
        return run.record

    async def load(self, run_id: str) -> Loaded:
        run = self._found(run_id)
        head = run.record.head
        chain = self._chain(run.record.thread_id, head) if head else ()
        receipts = {key: receipt for (at, key), receipt in run.receipts.items() if at == head}
        return Loaded(run.record, tuple(chain), dict(run.writes), receipts, tuple(run.messages))

    async def commit(self, *commits: Commit) -> Committed:
        together = {commit.seq for commit in commits}
        *_, last = [self._commit(commit, together) for commit in commits]
        return last

    def _commit(self, commit: Commit, together: set[int]) -> Committed:
        run = self._owned(commit.run_id, commit.epoch, "commit")
        stored = run.record.seq
        if commit.epoch == run.seq_epoch and commit.seq <= stored and stored in together:
            self._count({sample("checkpoint_commits_total", result="duplicate"): 1.0})
            return Committed(duplicate=True, cancel_asked=run.record.cancel_asked)
        if run.record.status != "running":
            raise self._fenced(commit.run_id, commit.epoch, "commit")
        assert commit.seq == run.record.seq + 1, seq_gap(commit, run.record.seq)
        run.seq_epoch = commit.epoch
        run.record = replace(
            run.record,
            seq=commit.seq,
            step=commit.step,
            detected_at=0.0,
            result=commit.result,
            error=commit.error,
            updated_at=commit.at,
        )
        if commit.checkpoint:
            self._store_checkpoint(run, commit.checkpoint, commit.at)
            run.writes = {}
            run.record = replace(run.record, interrupts=(), answers={})
        else:
            run.writes.update(commit.writes)
        run.messages = [message for message in run.messages if message.n not in commit.taken]
        self._note(run, commit.events, commit.counters)
        self._count({sample("checkpoint_commits_total", result="ok"): 1.0})
        if commit.status == "waiting":
            self._sleep(run, commit)
        elif commit.status in FINAL:
            self._end(run, commit.status, commit.at, commit.retain_s)
        return Committed(duplicate=False, cancel_asked=run.record.cancel_asked)

    async def renew(self, leases: Sequence[tuple[str, int]], lease_s: float, now: float) -> Renewed:
        lost, cancelled = [], []
        for run_id, epoch in leases:
            run = self._runs.get(run_id)
            if run is None or run.record.epoch != epoch:
                lost.append(run_id)
                self._fenced(run_id, epoch, "renew")
            elif run.record.status == "running":
                run.record = replace(run.record, lease_until=now + lease_s)
                if run.record.cancel_asked:
                    cancelled.append(run_id)
        return Renewed(tuple(lost), tuple(cancelled))

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
        run = self._owned(run_id, epoch, "requeue")
        if run.record.status != "running":
            raise self._fenced(run_id, epoch, "requeue")
        run.record = replace(run.record, status="queued", epoch=epoch + 1, owner="", lease_until=0.0, updated_at=now)
        if crashed:
            crashes = (*run.record.crashes, now)[-CRASHES_MAX:]
            run.record = replace(run.record, restarts=run.record.restarts + 1, crashes=crashes, detected_at=now)
        self._note(run, events, counters)
        if quarantine:
            run.record = replace(run.record, error=quarantine)
            self._end(run, "quarantined", now, RETAIN_S)
        else:
            run.record = replace(run.record, not_before=not_before)
            self._ready(run, max(now, not_before))
        return run.record

    async def resume(self, run_id: str, interrupt_id: str, answer: str, now: float) -> RunRecord:
        run = self._found(run_id)
        given = run.record.answers.get(interrupt_id)
        if run.record.final:
            raise no_interrupt(run_id, interrupt_id)
        if given is not None:
            if given != answer:
                raise answer_conflict(run_id, interrupt_id)
            return run.record
        if not any(i.interrupt_id == interrupt_id and not i.settled for i in run.record.interrupts):
            raise no_interrupt(run_id, interrupt_id)
        run.record = replace(run.record, answers={**run.record.answers, interrupt_id: answer}, updated_at=now)
        if run.record.status == "waiting":
            self._queue(run, now)
        self._note(run, [Event("answered", now, {"interrupt_id": interrupt_id})])
        return run.record

    async def cancel(self, run_id: str, now: float, parent_epoch: int = 0) -> RunRecord:
        run = self._found(run_id)
        self._check_parent(run, parent_epoch, "cancel")
        self._cancel(run, now)
        return run.record

    async def retry(self, run_id: str, now: float) -> RunRecord:
        run = self._found(run_id)
        record = run.record
        if not record.final:
            return record
        if record.status not in ("failed", "quarantined"):
            raise not_retryable(record)
        thread = self._threads[record.thread_id]
        for other in thread.runs:
            if not other.record.final:
                raise thread_went_on(record, f"has the unfinished run {other.record.run_id}")
        if thread.head != record.head:
            raise thread_went_on(record, f"is at checkpoint {thread.head!r} by now, after another run")
        run.record = replace(record, epoch=record.epoch + 1, error="", crashes=(), detected_at=0.0, updated_at=now)
        thread.expires_at = None
        self._note(run, [Event("retried", now)])
        self._queue(run, now)
        return run.record

    # --- messages and streams ---

    async def send(self, run_id: str, message_id: str, body: str, now: float, parent_epoch: int = 0) -> int:
        run = self._found(run_id)
        self._check_parent(run, parent_epoch, "send")
        if run.record.final:
            raise no_mailbox(run.record)
        if message_id in run.sent:
            return run.sent[message_id]
        if len(run.messages) >= MAILBOX_MAX:
            raise mailbox_full(run_id, len(run.messages))
        n = run.sent[message_id] = len(run.sent) + 1
        run.messages.append(Message(n, message_id, body, now))
        self._note(run, [Event("message", now, {"n": n, "message_id": message_id})])
        if run.record.status == "waiting" and run.listens_after is not None and n > run.listens_after:
            self._queue(run, now)
        return n

    async def stream(self, run_id: str, epoch: int, chunks: Sequence[Chunk]) -> None:
        run = self._runs.get(run_id)
        if run is None or run.record.epoch != epoch or run.record.status != "running":
            raise fenced(run_id, epoch, "stream")
        for chunk in chunks:
            run.streamed += 1
            run.chunks.append(replace(chunk, n=run.streamed))
        del run.chunks[:-CHUNKS_MAX]

    async def chunks(self, run_id: str, after: int = 0, limit: int = 1000) -> list[Chunk]:
        return [chunk for chunk in self._found(run_id).chunks if chunk.n > after][:limit]

    # --- effects ---

    async def begin(
        self, receipt: Receipt, epoch: int, events: Sequence[Event], counters: Counters, now: float
    ) -> Begun:
        run = self._owned(receipt.run_id, epoch, "begin")
        if run.record.status != "running":
            raise self._fenced(receipt.run_id, epoch, "begin")
        place = (receipt.checkpoint_id, receipt.key)
        known = run.receipts.get(place)
        if known and (known.token == receipt.token or known.state != "unknown"):
            return Begun((known.token, known.state) == (receipt.token, receipt.state), known)
        run.receipts[place] = receipt
        self._note(run, events, counters)
        return Begun(True, receipt)

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
        receipt = await self.receipt(run_id, key, checkpoint_id)
        if receipt is None or receipt.token != token or receipt.state == "done":
            return False
        run = self._runs[run_id]
        run.receipts[checkpoint_id, key] = replace(receipt, state="done", outcome=outcome)
        self._note(run, events, counters)
        return True

    async def forget(
        self, run_id: str, key: str, checkpoint_id: str, token: str, events: Sequence[Event], counters: Counters
    ) -> bool:
        receipt = await self.receipt(run_id, key, checkpoint_id)
        if receipt is None or receipt.token != token or receipt.state != "started":
            return False
        run = self._runs[run_id]
        run.receipts[checkpoint_id, key] = replace(receipt, state="unknown")
        self._note(run, events, counters)
        return True

    async def receipt(self, run_id: str, key: str, checkpoint_id: str) -> Receipt | None:
        run = self._runs.get(run_id)
        return run.receipts.get((checkpoint_id, key)) if run else None

    async def receipts(self, run_id: str) -> list[Receipt]:
        run = self._runs.get(run_id)
        return sorted(run.receipts.values(), key=lambda r: (r.at, r.key, r.checkpoint_id)) if run else []

    # --- reading ---

    async def run(self, run_id: str) -> RunRecord:
        return self._found(run_id).record

    async def runs(self, status: Status | None = None, limit: int = 100, thread_id: str = "") -> list[RunRecord]:
        records = [run.record for run in self._runs.values()]
        chosen = [r for r in records if status in (None, r.status) and thread_id in ("", r.thread_id)]
        return sorted(chosen, key=lambda r: (r.created_at, r.run_id), reverse=True)[:limit]

    async def events(self, run_id: str, after: int = 0, limit: int = 1000) -> list[Event]:
        return self._found(run_id).events[max(0, after) :][:limit]

    async def history(self, thread_id: str, limit: int = 1000) -> list[CheckpointRow]:
        thread = self._threads.get(thread_id, _Thread())
        return [replace(row, body="") for row in reversed(thread.checkpoints.values())][:limit]

    async def chain(self, thread_id: str, checkpoint_id: str) -> list[CheckpointRow]:
        return self._chain(thread_id, checkpoint_id)

    async def counts(self) -> dict[Status, int]:
        statuses = [run.record.status for run in self._runs.values()]
        return {status: statuses.count(status) for status in STATUSES}

    async def counters(self) -> dict[str, float]:
        return dict(self._counters)

    # --- around it ---

    async def put_blob(self, digest: str, data: bytes, now: float) -> None:
        self._blobs[digest] = (now, self._blobs[digest][1] if digest in self._blobs else data)

    async def get_blob(self, digest: str) -> bytes:
        if digest not in self._blobs:
            raise no_blob(digest)
        return self._blobs[digest][1]

    async def beat(self, member: str, data: str, now: float) -> None:
        self._beats[member] = (now, data)

    async def beats(self) -> dict[str, tuple[float, str]]:
        return dict(self._beats)

    async def sweep(self, now: float) -> int:
        self._beats = {member: beat for member, beat in self._beats.items() if beat[0] >= now - MEMBER_SILENT_S}
        past = [i for i, t in self._threads.items() if t.expires_at is not None and t.expires_at <= now]
        past = [i for i in past if all(run.record.final for run in self._threads[i].runs)]
        for thread_id in past:
            await self.delete_thread(thread_id)
        named = {digest for run in self._runs.values() for digest in run.record.blobs}
        self._blobs = {d: kept for d, kept in self._blobs.items() if d in named or kept[0] > now - BLOB_KEPT_S}
        return len(past)

    async def prune(self, thread_id: str, checkpoint_ids: Sequence[str]) -> int:
        thread = self._threads.get(thread_id, _Thread())
        kept = {thread.head}
        for run in thread.runs:
            if not run.record.final:
                kept |= {run.record.head, run.record.base}
        gone = {i for i in checkpoint_ids if i in thread.checkpoints and i not in kept}
        for checkpoint_id in gone:
            del thread.checkpoints[checkpoint_id]
        for run in thread.runs:
            run.receipts = {place: r for place, r in run.receipts.items() if place[0] not in gone}
        return len(gone)

    async def delete_thread(self, thread_id: str) -> None:
        for run in self._threads.get(thread_id, _Thread()).runs:
            if not run.record.final:
                raise thread_in_use(thread_id, run.record.run_id)
        for run in self._threads.pop(thread_id, _Thread()).runs:
            del self._runs[run.record.run_id]

    # --- from one store to another ---

    async def threads(self, after: str = "", limit: int = 1000) -> list[str]:
        return sorted((i for i in self._threads if i.encode() > after.encode()), key=str.encode)[:limit]

    async def dump(self, thread_id: str) -> ThreadDump:
        if thread_id not in self._threads:
            raise no_thread(thread_id)
        thread = self._threads[thread_id]
        runs = [
            RunDump(
                record=run.record,
                seq_epoch=run.seq_epoch,
                due_at=run.due_at,
                events=tuple(run.events),
                writes=dict(run.writes),
                receipts=tuple(await self.receipts(run.record.run_id)),
                messages=tuple(run.messages),
                sent=dict(run.sent),
                listens_after=run.listens_after,
            )
            for run in thread.runs
        ]
        return ThreadDump(thread_id, thread.head, thread.expires_at, tuple(runs), tuple(thread.checkpoints.values()))

    async def adopt(self, dump: ThreadDump) -> bool:
        if dump.thread_id in self._threads:
            return False
        thread = _Thread(dump.head, dump.expires_at, [], {row.checkpoint_id: row for row in dump.checkpoints})
        for told in dump.runs:
            run = _Run(
                record=told.record,
                due_at=told.due_at,
                seq_epoch=told.seq_epoch,
                events=list(told.events),
                writes=dict(told.writes),
                receipts={(receipt.checkpoint_id, receipt.key): receipt for receipt in told.receipts},
                messages=list(told.messages),
                sent=dict(told.sent),
                listens_after=told.listens_after,
            )
            thread.runs.append(run)
            self._runs[told.record.run_id] = run
        self._threads[dump.thread_id] = thread
        self._bell.ring()
        return True

    async def blobs(self) -> list[str]:
        return sorted(self._blobs)

    async def count(self, counters: Counters) -> None:
        self._count(counters)

    async def info(self) -> StoreInfo:
        return StoreInfo("memory", "memory://", durable=False, detail={"runs": str(len(self._runs))})

    async def close(self) -> None:
        """Nothing to give back; a closed one may even be used again."""

    # --- what they share ---

    def _found(self, run_id: str) -> _Run:
        if run_id not in self._runs:
            raise no_run(run_id)
        return self._runs[run_id]

    def _owned(self, run_id: str, epoch: int, op: str) -> _Run:
        run = self._runs.get(run_id)
        if run is None or run.record.epoch != epoch:
            raise self._fenced(run_id, epoch, op)
        return run

    def _check_parent(self, run: _Run, epoch: int, op: str) -> None:
        parent = self._runs.get(run.record.parent)
        if epoch and (parent is None or (parent.record.epoch, parent.record.status) != (epoch, "running")):
            raise self._fenced(run.record.run_id, epoch, op)

    def _fenced(self, run_id: str, epoch: int, op: str) -> Fenced:
        self._count({sample("fence_rejections_total", op=op): 1.0})
        return fenced(run_id, epoch, op)

    def _sleep(self, run: _Run, commit: Commit) -> None:
        answered = any(i.interrupt_id in run.record.answers for i in commit.interrupts if not i.settled)
        run.listens_after = commit.listens_after
        heard = commit.listens_after is not None and any(m.n > commit.listens_after for m in run.messages)
        run.record = replace(run.record, status="waiting", owner="", lease_until=0.0, interrupts=commit.interrupts)
        if answered or heard or run.record.cancel_asked:
            self._queue(run, commit.at)
        elif commit.wake_at:
            run.record = replace(run.record, not_before=commit.wake_at)
            self._ready(run, commit.wake_at)

    def _queue(self, run: _Run, at: float) -> None:
        run.record = replace(run.record, status="queued", not_before=0.0)
        self._ready(run, at)

    def _ready(self, run: _Run, at: float) -> None:
        run.due_at = at
        self._bell.ring()

    def _end(self, run: _Run, status: Status, at: float, retain_s: float) -> None:
        run.due_at = None
        run.record = replace(run.record, status=status, owner="", lease_until=0.0, not_before=0.0)
        thread = self._threads[run.record.thread_id]
        if status in ("succeeded", "cancelled"):
            run.writes, run.messages = {}, []
            run.record = replace(run.record, interrupts=(), answers={})
        if status == "cancelled" and run.record.rollback and run.record.head != run.record.base:
            thread.head = run.record.base
        thread.expires_at = None if retain_s < 0 else at + retain_s
        first = next((other for other in thread.runs if not other.record.final), None)
        if first and first.record.status == "queued" and first.due_at is None:
            self._ready(first, at)
        self._tell_parent(run.record, at)

    def _tell_parent(self, child: RunRecord, at: float) -> None:
        parent = self._runs.get(child.parent)
        if parent is None or parent.record.final or child.parent_interrupt in parent.record.answers:
            return
        answer = child_answer(child.status, child.error, child.result)
        parent.record = replace(parent.record, answers={**parent.record.answers, child.parent_interrupt: answer})
        self._note(parent, [Event("answered", at, {"interrupt_id": child.parent_interrupt})])
        is_open = any(i.interrupt_id == child.parent_interrupt and not i.settled for i in parent.record.interrupts)
        if is_open and parent.record.status == "waiting":
            self._queue(parent, at)

    def _cancel(self, run: _Run, now: float) -> None:
        record = run.record
        if record.status == "running":
            if not record.cancel_asked:
                run.record = replace(record, cancel_asked=True, updated_at=now)
                self._note(run, [Event("cancel_asked", now)])
        elif not record.final:
            run.record = replace(record, epoch=record.epoch + 1, cancel_asked=True, updated_at=now)
            counted = sample("runs_finished_total", graph=record.graph, status="cancelled")
            self._note(run, [Event("finished", now, {"status": "cancelled"})], {counted: 1.0})
            self._end(run, "cancelled", now, RETAIN_S)

    def _store_checkpoint(self, run: _Run, new: NewCheckpoint, at: float) -> None:
        thread = self._threads[run.record.thread_id]
        row = CheckpointRow(
            new.checkpoint_id,
            new.parent,
            new.step,
            new.snapshot,
            new.body,
            since=new.since,
            run_id=run.record.run_id,
            at=at,
        )
        thread.checkpoints[new.checkpoint_id] = row
        thread.head = new.checkpoint_id
        run.record = replace(run.record, head=new.checkpoint_id)

    def _chain(self, thread_id: str, checkpoint_id: str) -> list[CheckpointRow]:
        checkpoints = self._threads.get(thread_id, _Thread()).checkpoints
        if checkpoint_id not in checkpoints:
            raise no_checkpoint(thread_id, checkpoint_id)
        rows = [checkpoints[checkpoint_id]]
        while rows[-1].stands_on:
            rows.append(checkpoints[rows[-1].stands_on])
        return rows[::-1]

    def _note(self, run: _Run, events: Sequence[Event], counters: Counters | None = None) -> None:
        for event in events:
            data: Mapping[str, Any] = json.loads(json.dumps(dict(event.data)))  # what cannot be stored elsewhere
            run.events.append(Event(event.kind, event.at, data, len(run.events) + 1))
        self._count(counters or {})

    def _count(self, counters: Counters) -> None:
        for name, amount in counters.items():
            self._counters[name] = self._counters.get(name, 0.0) + amount

"""How runs, checkpoints and receipts look in Redis: the names of the keys, and values as text.

All keys of a thread and its runs carry the hash tag of one partition, `u:{p3f}:...`, so that one script may touch them,
also in a Redis Cluster. The two digits are those in a run's id.

    of a run        run, writes, answers, receipts, effects, sent (hashes; effects: those since the head;
                    sent: numbers of messages by id)   events, chunks (lists)   messages (sorted set)
    of a thread     keys, checkpoints (hashes)   line (list of unfinished runs)   history (list)   runs (sorted set)
    of a partition  queue, leases, expiry, index:<status>, index:all, threads (sorted sets)   heads, counters,
                    named (hashes; named: how many runs name a blob)
    of a digest     blob:<digest>   blobs (sorted set: when each was put last), in a partition of its own
    of a shelf      documents:<shelf> (hash: version, line feed, bytes)   document-names:<shelf> (sorted set), and
                    document-shelves (set), in a partition of its own
    of nobody       beats (hash, in partition 0)

Fractions are written by `repr`, so that a time comes back as it went in.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from understudy.actors.records import (
    PARTITIONS,
    CheckpointRow,
    Chunk,
    Counters,
    Event,
    Interrupt,
    Message,
    NewCheckpoint,
    Receipt,
    ReceiptState,
    RunRecord,
    Status,
    partition_of_run,
    partition_of_thread,
)
from understudy.actors.spelling import compact
from understudy.cluster.stores.redis_link import Arg

to_json = compact
_TAGS = tuple(f"u:{{p{partition:02x}}}:" for partition in range(PARTITIONS))
BEATS = "u:{p00}:beats"
_FRACTION = " (fraction)"

RUN_KEYS = ("run", "events", "writes", "answers", "messages", "receipts", "effects", "sent", "chunks")
THREAD_KEYS = ("line", "runs", "keys", "checkpoints", "history")


class Keys:
    """The keys of one partition, and of one run and one thread in it."""

    __slots__ = ("run_id", "tag", "thread_id")

    def __init__(self, partition: int, run_id: str = "", thread_id: str = "") -> None:
        self.tag = _TAGS[partition]
        self.run_id = run_id
        self.thread_id = thread_id

    @classmethod
    def of_run(cls, run_id: str, thread_id: str = "") -> "Keys":
        # A text that is no run id is looked for in partition 0, and not found there.
        return cls(partition_of_run(run_id) or 0, run_id, thread_id)

    @classmethod
    def of_thread(cls, thread_id: str) -> "Keys":
        return cls(partition_of_thread(thread_id), "", thread_id)

    @classmethod
    def of_blob(cls, digest: str) -> "Keys":
        return cls(zlib.crc32(digest.encode()) % PARTITIONS)

    def own(self) -> list[str]:
        """The first of the blocks that `_shared.lua` reads: what a verb that may end the run moves of it."""
        return self.run("run", "events", "writes", "answers", "messages")

    def parents(self, parent: str) -> list[str]:
        """What the end of a run touches of its parent; names of nothing if it has none."""
        return [f"{self.tag}{name}:{parent}" for name in ("run", "answers", "events")]

    def place(self) -> list[str]:
        return [
            *self.shared("heads", "counters"),
            *self.thread("line"),
            *self.shared("queue", "expiry", "leases"),
            *self.index("queued", "running", "waiting", "succeeded", "failed", "cancelled", "quarantined"),
        ]

    def run(self, *names: str) -> list[str]:
        return [f"{self.tag}{name}:{self.run_id}" for name in names]

    def thread(self, *names: str) -> list[str]:
        return [f"{self.tag}thread-{name}:{self.thread_id}" for name in names]

    def shared(self, *names: str) -> list[str]:
        return [self.tag + name for name in names]

    def index(self, *statuses: str) -> list[str]:
        return [f"{self.tag}index:{status}" for status in statuses]


def all_shared(name: str) -> list[str]:
    """A partition's key, of all partitions."""
    return [tag + name for tag in _TAGS]


# --- values --------------------------------------------------------------------------------------------------------


def counted(items: Sequence[Arg]) -> list[Arg]:
    """A list as the scripts read it: how many, then the items."""
    return [len(items), *items]


def events_args(events: Sequence[Event]) -> list[Arg]:
    return counted([event_text(event) for event in events])


def pairs_args(pairs: Mapping[str, str]) -> list[Arg]:
    return [len(pairs), *(text for pair in pairs.items() for text in pair)]


def counters_args(counters: Counters) -> list[Arg]:
    """Whole numbers under the sample's name, others beside it: each field has one kind of number for ever."""
    args: list[Arg] = [len(counters)]
    for name, amount in counters.items():
        args += (name, int(amount)) if amount == int(amount) else (name + _FRACTION, repr(float(amount)))
    return args


def read_counters(flats: Iterable[Sequence[str]]) -> dict[str, float]:
    """The sums over all partitions."""
    total: dict[str, float] = {}
    for flat in flats:
        for field, amount in pairs(flat):
            name = field.removesuffix(_FRACTION)
            total[name] = total.get(name, 0.0) + float(amount)
    return total


def event_text(event: Event) -> str:
    data = event.data
    return to_json({"kind": event.kind, "at": event.at, "data": data if type(data) is dict else dict(data)})


def read_event(text: str, n: int) -> Event:
    fields = json.loads(text)
    return Event(fields["kind"], fields["at"], fields["data"], n)


def checkpoint_row(new: NewCheckpoint, run_id: str, at: float) -> str:
    """One line of what is known, then the body. The scripts read parent, snapshot and since from the line.

    `since` is left out where it is empty: nobody who does not know of it takes the others for something else.
    """
    known = [new.checkpoint_id, new.parent, int(new.snapshot), new.step, run_id, at, *filter(None, [new.since])]
    return f"{to_json(known)}\n{new.body}"


def row_text(row: CheckpointRow) -> str:
    return checkpoint_row(row, row.run_id, row.at)


def read_checkpoint(text: str) -> CheckpointRow:
    line, _, body = text.partition("\n")
    checkpoint_id, parent, snapshot, step, run_id, at, *since = json.loads(line)
    return CheckpointRow(checkpoint_id, parent, step, bool(snapshot), body, since="".join(since), run_id=run_id, at=at)


def interrupts_text(interrupts: Iterable[Interrupt]) -> str:
    return to_json([asdict(interrupt) for interrupt in interrupts])


def effect_field(key: str, checkpoint_id: str) -> str:
    return f"{checkpoint_id}\n{key}"


def token_text(token: str) -> str:
    return json.dumps(token)  # one line, whatever is in it


def receipt_args(receipt: Receipt) -> list[Arg]:
    """The four lines of a receipt, see begin.lua."""
    known = [
        receipt.key,
        receipt.run_id,
        receipt.checkpoint_id,
        receipt.task_id,
        receipt.tool,
        receipt.digest,
        receipt.sandbox,
        receipt.at,
        receipt.place,
    ]
    return [receipt.state, token_text(receipt.token), to_json(known), receipt.outcome]


def receipt_text(receipt: Receipt) -> str:
    return "\n".join(map(str, receipt_args(receipt)))


def read_receipt(text: str) -> Receipt:
    state, token, line, outcome = text.split("\n", 3)
    key, run_id, checkpoint_id, task_id, tool, digest, sandbox, at, place = json.loads(line)
    return Receipt(
        key=key,
        run_id=run_id,
        checkpoint_id=checkpoint_id,
        task_id=task_id,
        tool=tool,
        digest=digest,
        state=cast(ReceiptState, state),
        sandbox=sandbox,
        token=json.loads(token),
        outcome=outcome,
        at=at,
        place=place,
    )


def message_text(message_id: str, body: str, at: float) -> str:
    return f"{to_json([message_id, at])}\n{body}"


def read_messages(flat: Sequence[str]) -> tuple[Message, ...]:
    """A mailbox, as ZRANGE WITHSCORES tells it: a message's number is its score."""
    messages = []
    for text, n in pairs(flat):
        line, _, body = text.partition("\n")
        message_id, at = json.loads(line)
        messages.append(Message(int(n), message_id, body, at))
    return tuple(messages)


def chunk_text(chunk: Chunk) -> str:
    return f"{to_json([chunk.task_id, chunk.node, chunk.attempt, chunk.at, int(chunk.withdrawn)])}\n{chunk.data}"


def read_chunk(text: str, n: int) -> Chunk:
    line, _, data = text.partition("\n")
    task_id, node, attempt, at, withdrawn = json.loads(line)
    return Chunk(task_id, node, attempt, data, at, bool(withdrawn), n)


def run_fields(record: RunRecord) -> dict[str, str]:
    """A run as it is created. `seq_epoch`: epoch of the last commit; `call`: name of the call that claimed it;
    `listens`: the number behind which a message wakes it; `streamed`: number of its chunks; `nth`: its place on the
    thread."""
    return {
        # What every commit reads and writes comes first: Redis looks through a small hash from its beginning.
        "status": record.status,
        "epoch": str(record.epoch),
        "seq": str(record.seq),
        "seq_epoch": "0",
        "cancel": "01"[record.cancel_asked],
        "created": repr(record.created_at),
        "updated": repr(record.updated_at),
        "step": str(record.step),
        "head": record.head,
        "detected": repr(record.detected_at),
        "interrupts": interrupts_text(record.interrupts),
        "result": record.result,
        "error": record.error,
        "owner": record.owner,
        "lease": repr(record.lease_until),
        "call": "",
        "restarts": str(record.restarts),
        "crashes": " ".join(map(repr, record.crashes)),
        "not_before": repr(record.not_before),
        "thread": record.thread_id,
        "graph": record.graph,
        "version": record.version,
        "code": record.code,
        "input": record.input,
        "digest": record.digest,
        "key": record.key,
        "policy": record.policy,
        "labels": to_json(dict(record.labels)),
        "base": record.base,
        "rollback": "01"[record.rollback],
        "parent": record.parent,
        "parent_interrupt": record.parent_interrupt,
        "blobs": to_json(list(record.blobs)),
        "listens": "",
        "streamed": "0",
        "nth": "1",
    }


def read_run(run_id: str, flat_fields: Sequence[str], flat_answers: Sequence[str]) -> RunRecord:
    fields = dict(pairs(flat_fields))
    return RunRecord(
        run_id=run_id,
        thread_id=fields["thread"],
        graph=fields["graph"],
        version=fields["version"],
        code=fields["code"],
        input=fields["input"],
        digest=fields["digest"],
        key=fields["key"],
        policy=fields["policy"],
        labels=_read(fields["labels"]),
        status=cast(Status, fields["status"]),
        epoch=int(fields["epoch"]),
        owner=fields["owner"],
        lease_until=float(fields["lease"]),
        seq=int(fields["seq"]),
        step=int(fields["step"]),
        head=fields["head"],
        restarts=int(fields["restarts"]),
        crashes=tuple(map(float, fields["crashes"].split())),
        detected_at=float(fields["detected"]),
        not_before=float(fields["not_before"]),
        cancel_asked=fields["cancel"] == "1",
        interrupts=tuple(Interrupt(**interrupt) for interrupt in _read(fields["interrupts"])),
        answers=dict(pairs(flat_answers)),
        created_at=float(fields["created"]),
        updated_at=float(fields["updated"]),
        error=fields["error"],
        result=fields["result"],
        base=fields["base"],
        rollback=fields["rollback"] == "1",
        parent=fields["parent"],
        parent_interrupt=fields["parent_interrupt"],
        blobs=tuple(_read(fields["blobs"])),
    )


def _read(text: str) -> Any:
    """JSON that mostly says nothing: to read that takes longer than all the rest of a field."""
    return {} if text == "{}" else [] if text == "[]" else json.loads(text)


def pairs(flat: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Fields and values of a hash, as HGETALL tells them."""
    return zip(flat[::2], flat[1::2], strict=True)

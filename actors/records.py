"""What a store keeps: runs, checkpoints, pending writes, receipts, and the commit that moves them together.

Pure, frozen values. Bodies (state, inputs, results, outcomes) are JSON text that a store never looks into (law 6).
Times are seconds since the epoch, as floats, and always given by the caller.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from understudy.actors.quick import quick

Status = Literal["queued", "running", "waiting", "succeeded", "failed", "cancelled", "quarantined"]

STATUSES: tuple[Status, ...] = ("queued", "running", "waiting", "succeeded", "failed", "cancelled", "quarantined")
FINAL: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled", "quarantined"})

RETRYABLE: frozenset[Status] = frozenset({"failed", "quarantined"})

PARTITIONS = 64
"""Fixed for the life of a deployment: all keys of a thread share one partition, so that one script may touch them."""


def partition_of_thread(thread_id: str) -> int:
    """The partition (0 to 63) that owns a thread."""
    return zlib.crc32(thread_id.encode()) % PARTITIONS


def run_id_on(thread_id: str, entropy: str) -> str:
    """A run's id says its partition (two hex digits), so that a run is found from its id alone."""
    return f"r{partition_of_thread(thread_id):02x}-{entropy}"


def partition_of_run(run_id: str) -> int | None:
    """The partition named in a run's id; None when the text is no run id (the caller says 'not found')."""
    try:
        partition = int(run_id[1:3], 16)
    except ValueError:
        return None
    return partition if run_id.startswith("r") and run_id[3:4] == "-" and partition < PARTITIONS else None


def thread_of_key(key: str) -> str:
    """A run started with a key and no thread lives on the thread that the key names: same key, same place."""
    return "key-" + hashlib.sha256(key.encode()).hexdigest()[:24]


@quick
@dataclass(frozen=True)
class Event:
    """A fact about a run, in order. `at` is when it happened; `data` holds JSON values."""

    kind: str
    at: float
    data: Mapping[str, Any] = field(default_factory=dict)
    n: int = 0
    """Its cursor: 1 for the first event of a run. Given by the store."""


Counters = Mapping[str, float]
"""Increments of metrics, by full sample name, e.g. `tool_calls_total{tool="pay",outcome="ok"}` (see events.py)."""


@quick
@dataclass(frozen=True)
class NewCheckpoint:
    """All channels at the end of a superstep, as a snapshot or as the difference to an earlier one."""

    checkpoint_id: str
    parent: str
    """Id of the checkpoint before it; empty for the first of a thread."""
    step: int
    snapshot: bool
    body: str
    """JSON. A snapshot stands alone; a delta is applied to what it is a difference to."""
    since: str = field(default="", kw_only=True)
    """Id of the checkpoint that a delta is the difference to, if that is not its parent but one before that."""

    @property
    def stands_on(self) -> str:
        """Id of the checkpoint that this one needs to be restored; empty for a snapshot."""
        return "" if self.snapshot else self.since or self.parent


@quick
@dataclass(frozen=True)
class CheckpointRow(NewCheckpoint):
    """A stored checkpoint, with what the store knows of it."""

    run_id: str = ""
    at: float = 0.0


Busy = Literal["enqueue", "reject", "interrupt", "rollback"]
"""A start on a thread with unfinished runs: it stands behind them; it is refused; it cancels them and keeps what they
committed; it cancels them, and the thread goes back to what it was before them."""


BUSY: tuple[Busy, ...] = ("enqueue", "reject", "interrupt", "rollback")


@dataclass(frozen=True)
class NewRun:
    """What `create` needs. `code` and `policy` name blobs or references; the store does not look into them."""

    run_id: str
    thread_id: str
    graph: str
    version: str
    code: str
    """JSON: where the graph is found, see `understudy.actors.code`."""
    input: str
    """JSON object: the first writes of the run."""
    digest: str
    """Digest of graph name and input: the same key with another digest is a Conflict."""
    key: str = ""
    policy: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    seed: NewCheckpoint | None = None
    """A fork starts its own new thread from this snapshot."""
    busy: "Busy" = "enqueue"
    """What becomes of the thread's unfinished runs, see `Busy`."""
    parent: str = ""
    """Id of the run that started this one as its child (on a thread of the same partition), or empty."""
    parent_interrupt: str = ""
    """The interrupt of the parent that the end of this run answers."""
    parent_epoch: int = 0
    """The parent's epoch, as its owner knows it: nobody else starts a child of it. 0: whoever asks may."""
    blobs: tuple[str, ...] = ()
    """Digests of the blobs that the run needs: they are kept as long as it is."""


InterruptKind = Literal["question", "approval", "timer", "unknown", "repeat", "child", "message"]


@dataclass(frozen=True)
class Interrupt:
    """A durable question. `kind`: `question` (ctx.interrupt), `approval` (policy says ask), `timer` (ctx.sleep),
    `unknown` (an effect whose end is not known), `repeat` (a fork comes to an effect of its origin), `child` (the end
    of a child run), `message` (ctx.receive: any message wakes the run)."""

    interrupt_id: str
    task_id: str
    node: str
    kind: "InterruptKind"
    payload: Any
    digest: str = ""
    """What an approval is bound to: tool, its version and the arguments. An answer is good for this digest only."""
    asked_at: float = 0.0
    deadline: float | None = None
    settled: bool = False
    """A timer that has fired, or a question whose deadline has passed: kept until the superstep ends, so that the node
    that runs again finds it answered by time."""
    schema: Any = None
    """JSON schema that an answer has to fit; None: any."""
    on_timeout: Any = None
    """JSON values: what happens when the deadline passes, for those who look: {"continue": value} or {"escalate":
    payload}; and with `escalated_from` the id of the question that it follows."""


@quick
@dataclass(frozen=True)
class RunRecord:
    """A run as the store knows it."""

    run_id: str
    thread_id: str
    graph: str
    version: str
    code: str
    input: str
    digest: str
    key: str
    policy: str
    labels: Mapping[str, str]
    status: Status
    epoch: int
    """Fencing token: grows at every claim and at every loss; a write with another one is refused (law 1)."""
    owner: str
    lease_until: float
    seq: int
    """Number of the last applied commit of this run; the next one has to be one more (law 2)."""
    step: int
    head: str
    """Id of the newest checkpoint of the run's thread that this run starts from or made; empty if there is none."""
    restarts: int
    crashes: tuple[float, ...]
    """Times of the newest crashes (at most 20), newest last: what restart intensity is decided on."""
    detected_at: float
    """When the newest crash was noticed; 0 once a commit was made after it. Measures recovery."""
    not_before: float
    """A queued run is not claimed before (backoff); a waiting one is woken then (timer, deadline; 0: never)."""
    cancel_asked: bool
    interrupts: tuple[Interrupt, ...]
    answers: Mapping[str, str]
    """JSON answers by interrupt id, kept until the checkpoint that used them."""
    created_at: float
    updated_at: float
    error: str
    result: str
    """JSON; empty until the run has one."""
    base: str = ""
    """The thread's head when the run was first claimed: what a rollback goes back to."""
    rollback: bool = False
    """If the run is cancelled, its thread goes back to `base`."""
    parent: str = ""
    parent_interrupt: str = ""
    blobs: tuple[str, ...] = ()

    @property
    def final(self) -> bool:
        return self.status in FINAL


def open_questions(record: RunRecord) -> list[Interrupt]:
    """What a run waits for a person to say: what time, children or messages answer is left out. None unless it
    waits."""
    if record.status != "waiting":
        return []
    return [
        i
        for i in record.interrupts
        if not i.settled and i.kind not in ("timer", "child", "message") and i.interrupt_id not in record.answers
    ]


@quick
@dataclass(frozen=True)
class Commit:
    """Everything that one node's end changes, moved at once or not at all (law 2)."""

    run_id: str
    epoch: int
    seq: int
    at: float
    status: Status
    """Status after it: running, waiting or a final one. Other than running gives the lease back."""
    step: int
    checkpoint: NewCheckpoint | None = None
    """A finished superstep. Its pending writes, interrupts and answers go in the same move."""
    writes: Mapping[str, str] = field(default_factory=dict)
    """JSON bodies by task id: finished tasks of a superstep that has others still open."""
    interrupts: tuple[Interrupt, ...] = ()
    """With status waiting: the open questions, replacing those before."""
    wake_at: float = 0.0
    """With status waiting: when to wake the run without an answer; 0: never."""
    events: tuple[Event, ...] = ()
    counters: Counters = field(default_factory=dict)
    result: str = ""
    error: str = ""
    retain_s: float = 7 * 86400.0
    """With a final status: how long the thread is kept after it, in seconds; negative: for ever."""
    taken: tuple[int, ...] = ()
    """Messages that the finished tasks have received, by n: they leave the mailbox."""
    listens_after: int | None = None
    """With status waiting: a message with a larger n wakes the run; None: no message does."""


@dataclass(frozen=True)
class Committed:
    duplicate: bool
    """The very commit (run, epoch, seq) was there already; nothing changed."""
    cancel_asked: bool


@dataclass(frozen=True)
class Loaded:
    """What a run actor needs to go on, in one round trip."""

    run: RunRecord
    chain: tuple[CheckpointRow, ...]
    """From the newest snapshot to the head, oldest first; empty on a new thread."""
    writes: Mapping[str, str]
    """Pending writes of the head, by task id."""
    receipts: Mapping[str, "Receipt"]
    """Receipts of effects begun after the head, by effect key."""
    messages: tuple["Message", ...] = ()
    """The mailbox: what was sent and not taken, in order."""


ReceiptState = Literal["started", "done", "unknown"]
Standing = Literal["started", "done", "failed", "unknown"]
"""What people are told of an effect: of those that are `done` for a store, some went well and some failed."""


@dataclass(frozen=True)
class Receipt:
    """The durable record of an effect (law 4). `started` and nobody at work on it means unknown."""

    key: str
    run_id: str
    checkpoint_id: str
    """The head that the call depends on; empty before the first checkpoint of a thread."""
    task_id: str
    tool: str
    digest: str
    """Digest of tool and arguments: a different call in the same place is noticed."""
    state: ReceiptState
    sandbox: str
    """Name of the sandbox actor that has it: whom to ask whether it is still at work."""
    token: str
    """Made anew at every start: only the holder finishes this very start."""
    outcome: str = ""
    """JSON of the Outcome, once done."""
    at: float = 0.0
    place: str = ""
    """Where in the run it stands, in words that hold in a fork too: step/task/node/name/index (see effects.py)."""

    @property
    def standing(self) -> Standing:
        """`done` is an effect that went well; one that was refused, or ended otherwise, has `failed`."""
        if self.state != "done":
            return self.state
        kind = json.loads(self.outcome)["kind"]
        return "done" if kind == "ok" else "unknown" if kind == "unknown" else "failed"


@dataclass(frozen=True)
class Message:
    """What somebody sent to a run. `n` counts from 1 in the order of sending and is given by the store."""

    n: int
    message_id: str
    """Made by the sender: sent again, it is the same message."""
    body: str
    """JSON."""
    at: float


@dataclass(frozen=True)
class Chunk:
    """What a node streamed: shown to whoever follows the run, at once, and part of no commit."""

    task_id: str
    node: str
    attempt: str
    """Names one attempt of the task; chunks of another attempt before it are withdrawn."""
    data: str
    """JSON."""
    at: float
    withdrawn: bool = False
    """Says, instead of data, that what this attempt of the task streamed is not part of the run any more."""
    n: int = 0
    """Its cursor: grows along a run. Given by the store."""


@dataclass(frozen=True)
class RunDump:
    """All that a store has of a run, for another store."""

    record: RunRecord
    seq_epoch: int
    """Epoch of the owner that made its last commit."""
    due_at: float | None
    """When it may be claimed; None: not before something else happens."""
    events: tuple[Event, ...]
    writes: Mapping[str, str]
    receipts: tuple[Receipt, ...]
    messages: tuple[Message, ...]
    sent: Mapping[str, int]
    """The n of every message that was ever sent to it, by message id."""
    listens_after: int | None


@dataclass(frozen=True)
class ThreadDump:
    """All that a store has of a thread, for another store."""

    thread_id: str
    head: str
    expires_at: float | None
    runs: tuple[RunDump, ...]
    """In the order of `create`."""
    checkpoints: tuple[CheckpointRow, ...]
    """In the order of storing."""


@dataclass(frozen=True)
class Begun:
    """Answer of `begin`: `fresh` means go; otherwise `receipt` is what is already on record."""

    fresh: bool
    receipt: Receipt


@dataclass(frozen=True)
class Due:
    """What waits for a supervisor."""

    ready: tuple[str, ...]
    """Runs that may be claimed now, oldest first."""
    overdue: tuple[tuple[str, int], ...]
    """(run id, epoch) of runs whose lease has passed without a sign."""


@dataclass(frozen=True)
class Renewed:
    lost: tuple[str, ...]
    """Runs that belong to somebody else now: stop them."""
    cancelled: tuple[str, ...]
    """Runs that someone asked to cancel."""

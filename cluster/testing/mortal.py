"""Processes that die at one store operation, just before it, just after it, or between two commits of one call.

Everything runs in one real process: a dead one is one whose store and sandboxes answer no more. What a node does to the
world by itself after that moment, in a `finally:` say, is not stopped; the plays of killed.py kill for real.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from understudy.actors.calls import Order, SandboxDied, SandboxPort
from understudy.actors.effects import read_outcome
from understudy.actors.inline_ports import InlineSandboxes
from understudy.actors.outcome import Outcome, ToolCode
from understudy.actors.records import Receipt
from understudy.actors.store import Store
from understudy.actors.tool import Tool

Side = Literal["before", "after", "between"]
T = TypeVar("T")
Role = Literal["run", "sandbox"]

UNCOUNTED = frozenset({"wait_work", "renew", "beats", "beat", "close", "info"})
"""Operations that happen as time passes: a crash there is a crash before the next one."""


class Crash(BaseException):
    """The process is gone: nobody catches this."""


@dataclass(frozen=True)
class Fault:
    """Where a play is disturbed: at the `at`-th operation (from 0) of those whose process is `victim`."""

    victim: Literal["run", "sandbox", "machine", "owner"]
    """`run`: the run's actor dies. `sandbox`: the process that executes tools. `machine`: both. `owner`: nobody dies;
    a second owner takes the run, and the first goes on."""
    at: int
    side: Side = "before"

    def counts(self, role: Role) -> bool:
        return self.victim in (role, "machine") or (self.victim == "owner" and role == "run")


@dataclass(eq=False)
class Process:
    """Something that dies at once and as a whole."""

    role: Role
    dead: bool = False
    death: asyncio.Event = field(default_factory=asyncio.Event)

    def die(self) -> None:
        self.dead = True
        self.death.set()


@dataclass
class Ledger:
    """What really happened to the world: every execution of a tool, and every outcome that somebody wanted to record.

    With a file it survives the process that writes it.
    """

    path: Path | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)

    def note(self, **line: Any) -> None:
        self.lines.append(line)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def read(self) -> list[dict[str, Any]]:
        if self.path is None:
            return self.lines
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def effects(self) -> Counter[tuple[str, str]]:
        """How often each effect (name, digest of its arguments) took place. An idempotent tool that was called again
        under the same key, and an effect of a node itself, count once a key."""
        lines = self.read()
        named = {line["key"]: (line["tool"], line["digest"]) for line in lines if line["what"] == "begun"}
        executed = [line for line in lines if line["what"] == "executed"]
        once = {line["key"] for line in executed if line["idempotent"]}
        ended = {line["key"] for line in lines if line["what"] == "ended"}
        once |= ended - {line["key"] for line in lines if line["what"] in ("executed", "looked")}
        return Counter(named[key] for key in [*once, *(e["key"] for e in executed if not e["idempotent"])])

    def durable(self) -> set[str]:
        """Checkpoints that a living process was told are durable, and that nobody pruned."""
        told: dict[str, set[str]] = {"durable": set(), "pruned": set()}
        for line in self.read():
            if line["what"] in told:
                told[line["what"]] |= set(line["checkpoints"])
        return told["durable"] - told["pruned"]

    def outcome_of(self, key: str) -> Outcome | None:
        """How the effect with this key ended, as an all-knowing person would say."""
        ends = [line for line in self.read() if line["what"] == "ended" and line["key"] == key]
        return read_outcome(ends[-1]["outcome"]) if ends else None


@dataclass
class Stagehand:
    """Counts the operations of a play, and ends a process at one of them."""

    fault: Fault | None = None
    ledger: Ledger = field(default_factory=Ledger)
    names: list[str] = field(default_factory=list)
    """Operations that count for the fault, in order; without a fault, all of them."""
    roles: list[Role] = field(default_factory=list)
    struck: bool = False
    acknowledged: set[str] = field(default_factory=set)
    """Checkpoints that a living process of this play was told are durable."""
    broken: list[str] = field(default_factory=list)
    """Laws that were broken before everybody's eyes, in words."""
    strike: Callable[[Process], Awaitable[None]] | None = None
    """What happens at the fault; default: the process dies."""
    slow: bool = False
    """Let some turns of the loop pass before each commit, so that others gather behind it."""

    def strikes(self, process: Process, name: str) -> bool:
        if name in UNCOUNTED or (self.fault is not None and not self.fault.counts(process.role)):
            return False
        self.names.append(name)
        self.roles.append(process.role)
        return self.fault is not None and not self.struck and len(self.names) - 1 == self.fault.at

    async def end(self, process: Process) -> None:
        self.struck = True
        if self.strike is not None:
            await self.strike(process)
        else:
            process.die()


StoreOf = Callable[[Process], Store]
"""The store as a process sees it."""


class MortalStore:
    """A store as a mortal process sees it."""

    def __init__(self, store: Store, process: Process, hand: Stagehand) -> None:
        self._store = store
        self._process = process
        self._hand = hand

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._store, name)

        async def called(*args: Any, **kwargs: Any) -> Any:
            if self._hand.slow and name == "commit":
                for _ in range(7):
                    await asyncio.sleep(0)
            self._check()
            if name == "begin":
                self._begun(args[0])
            elif name == "finish":
                self._hand.ledger.note(what="ended", key=args[1], outcome=args[4])
            told = f"commit x{len(args)}" if name == "commit" and len(args) > 1 else name
            if not self._hand.strikes(self._process, told):
                return self._seen(name, args, await self._perform(verb, *args, **kwargs))
            side = self._hand.fault.side if self._hand.fault else "before"
            if side == "before":
                await self._hand.end(self._process)
                self._check()
            elif side == "between" and name == "commit" and len(args) > 1:
                self._seen(name, args[:1], await self._perform(verb, args[0]))
                await self._hand.end(self._process)
                self._check()
                args = args[1:]
            answer = await self._perform(verb, *args, **kwargs)
            if side == "after":
                await self._hand.end(self._process)
            return self._seen(name, args, answer)

        return called

    def _begun(self, receipt: Receipt) -> None:
        """Law 3: what an effect stands on is durable before it begins."""
        hand = self._hand
        hand.ledger.note(what="begun", key=receipt.key, tool=receipt.tool, digest=receipt.digest)
        if receipt.checkpoint_id and receipt.checkpoint_id not in hand.acknowledged:
            hand.broken.append(
                f"{receipt.tool!r} was begun before checkpoint {receipt.checkpoint_id} was durable (law 3)"
            )

    async def _perform(self, verb: Any, *args: Any, **kwargs: Any) -> Any:
        return await verb(*args, **kwargs)

    def _check(self) -> None:
        if self._process.dead:
            raise Crash(self._process.role)

    def _seen(self, name: str, args: tuple[Any, ...], answer: Any) -> Any:
        """An answer reaches nobody who is dead."""
        self._check()
        if name == "commit":
            new = [c.checkpoint.checkpoint_id for c in args if c.checkpoint is not None]
            self._hand.acknowledged |= set(new)
            self._hand.ledger.note(what="durable", checkpoints=new)
        elif name == "load":
            self._hand.acknowledged |= {row.checkpoint_id for row in answer.chain}
        elif name == "prune":
            self._hand.ledger.note(what="pruned", checkpoints=list(args[1]))
        return answer


class MortalSandbox(InlineSandboxes):
    """A process that executes tools. It notes what it really does."""

    def __init__(self, store_of: "StoreOf", hand: Stagehand, **how: Any) -> None:
        self.process = Process("sandbox")
        self._hand = hand
        super().__init__(store_of(self.process), **how)

    async def _called(self, order: Order) -> Outcome:
        tool = self._tools[order.call.code.ref]
        if self.process.dead:
            raise Crash("sandbox")
        call = order.call
        if tool.name != tool.judged_as:  # it only asks how a call ended
            self._hand.ledger.note(what="looked", key=order.receipt.key)
        else:
            idempotent = tool.idempotent
            self._hand.ledger.note(what="executed", key=call.key, tool=call.tool, args=call.args, idempotent=idempotent)
        return await super()._called(order)

    def die(self) -> None:
        self.process.die()
        for work in [*self._work.values()]:
            work.cancel()


class MortalSandboxes:
    """`SandboxPort` over sandboxes that die and are replaced."""

    def __init__(self, store_of: "StoreOf", hand: Stagehand, **how: Any) -> None:
        self._made = 0
        self._open: Callable[[str], MortalSandbox] = lambda name: MortalSandbox(store_of, hand, name=name, **how)
        self.current = self._fresh()

    def _fresh(self) -> MortalSandbox:
        self._made += 1
        return self._open(f"sandbox-{self._made}")

    def die(self) -> None:
        self.current.die()

    def seen_by(self, process: Process) -> SandboxPort:
        """As a mortal run actor sees them: it orders nothing any more once it is dead."""
        return cast(SandboxPort, _SeenBy(process, self))

    def pick(self) -> str:
        if self.current.process.dead:
            self.current = self._fresh()
        return self.current.name

    def code_of(self, tool: Tool[Any, Any]) -> ToolCode:
        self.pick()
        return self.current.code_of(tool)

    async def execute(self, order: Order) -> Outcome | Receipt:
        sandbox = self.current
        if sandbox.name != order.receipt.sandbox:
            raise SandboxDied(order.receipt.sandbox)
        try:
            return await _or_dies(sandbox.process, sandbox.execute(order))
        except Crash:
            raise SandboxDied(order.receipt.sandbox) from None

    async def attend(self, receipt: Receipt) -> Outcome | None:
        sandbox = self.current
        if sandbox.name != receipt.sandbox:
            return None
        try:
            return await _or_dies(sandbox.process, sandbox.attend(receipt))
        except Crash:
            return None

    def abort_nowait(self, receipt: Receipt) -> None:
        self.current.abort_nowait(receipt)

    def close(self) -> None:
        self.current.close()


class _SeenBy:
    def __init__(self, process: Process, sandboxes: MortalSandboxes) -> None:
        self._process = process
        self._sandboxes = sandboxes

    def __getattr__(self, name: str) -> Any:
        if self._process.dead:
            raise Crash(self._process.role)
        return getattr(self._sandboxes, name)


async def _or_dies(process: Process, answer: Coroutine[Any, Any, T]) -> T:
    """The answer of a process; Crash once it is dead."""
    asked, death = asyncio.ensure_future(answer), asyncio.ensure_future(process.death.wait())
    try:
        await asyncio.wait([asked, death], return_when=asyncio.FIRST_COMPLETED)
        if process.dead:
            raise Crash(process.role)
        return asked.result()
    finally:
        death.cancel()
        if not asked.cancel() and not asked.cancelled():
            asked.exception()  # seen: nobody is left to hear it

"""What goes wrong between processes: calls and replies that are late, lost, doubled or out of order, and deaths.

`Wire` is a process's connection to the store. The store itself is sound (the model in memory): what is tried here is
everything that stands around it.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, cast

from simulation.virtual import now

from understudy.actors.calls import Order, SandboxDied, SandboxPort
from understudy.actors.errors import StoreUnavailable, UnderstudyError
from understudy.actors.inline_ports import InlineSandboxes
from understudy.actors.outcome import Outcome, ToolCode
from understudy.actors.records import Receipt
from understudy.actors.store import Store
from understudy.actors.tool import Tool

AGAIN = frozenset(("create", "commit", "begin", "finish", "requeue", "resume", "cancel", "send", "adopt"))
"""Verbs that a client may send twice, see actors/store.py."""


class Gone(BaseException):
    """The process is dead: nobody catches this."""


@dataclass
class Weather:
    """How bad it is. All of it ends with `calm`."""

    dice: random.Random
    badness: float
    """0: nothing goes wrong."""
    outage_until: float = 0.0

    def happens(self, share: float) -> bool:
        return self.dice.random() < share * self.badness

    def delay(self) -> float:
        if self.happens(0.03):
            return self.dice.uniform(0.1, 6.0)
        return self.dice.choice((0.0, 0.0, 0.001, 0.002, 0.02)) if self.badness else 0.0

    def calm(self) -> None:
        self.badness, self.outage_until = 0.0, 0.0


@dataclass(eq=False)
class Process:
    """Something that dies at once, or stands still for a while and does not know it."""

    name: str
    dead: bool = False
    paused_until: float = 0.0
    tasks: list["asyncio.Task[Any]"] = field(default_factory=list)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        self.tasks = [task for task in self.tasks if not task.done()]
        task = asyncio.ensure_future(work)
        self.tasks.append(task)
        return task

    def die(self) -> None:
        self.dead = True
        for task in self.tasks:
            task.cancel()

    async def breathe(self) -> None:
        """Go on, once it may. Raises Gone."""
        while not self.dead and self.paused_until > now():  # noqa: ASYNC110 (it is time that passes)
            await asyncio.sleep(self.paused_until - now())
        if self.dead:
            raise Gone(self.name)


class Wire:
    """A store, as a process far away from it sees it."""

    def __init__(self, store: Store, process: Process, weather: Weather, late: Callable[[Any], None]) -> None:
        self._store = store
        self._process = process
        self._weather = weather
        self._late = late
        """Takes a call that is still on its way, from whoever sent it."""

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._store, name)

        async def called(*args: Any, **kwargs: Any) -> Any:
            if name == "wait_work":
                await self._process.breathe()
                return await verb(*args, **kwargs)
            return await self._called(name, verb, args, kwargs)

        return called

    async def _called(self, name: str, verb: Any, args: Any, kwargs: Any) -> Any:
        weather = self._weather
        while True:
            await self._process.breathe()
            await asyncio.sleep(weather.delay())
            await self._process.breathe()
            if weather.outage_until > now() or weather.happens(0.01):
                raise StoreUnavailable("the store does not answer")
            if name in AGAIN and weather.happens(0.04):
                self._late(self._later(verb, args, kwargs))
            try:
                answer, error = await verb(*args, **kwargs), None
            except UnderstudyError as refused:
                answer, error = None, refused
            lost = weather.happens(0.03)
            await asyncio.sleep(weather.delay())
            await self._process.breathe()
            if lost and weather.happens(0.5):
                raise StoreUnavailable("the store did not answer; whether it did it, nobody knows")
            if lost and name in AGAIN:
                continue  # the client sends it again by itself
            if error is not None:
                raise error
            return answer

    async def _later(self, verb: Any, args: Any, kwargs: Any) -> None:
        """The same call arrives again, long after its answer did: nobody reads what it says."""
        await asyncio.sleep(self._weather.dice.uniform(0.0, 20.0))
        try:
            await verb(*args, **kwargs)
        except (UnderstudyError, AssertionError):
            return


class Sandbox(InlineSandboxes):
    """A process that executes tools, and can die while it does."""

    def __init__(self, process: Process, wire: Wire, weather: Weather) -> None:
        super().__init__(cast(Store, wire), clock=now, name=process.name)
        self.process = process
        self._weather = weather

    async def _called(self, order: Order) -> Outcome:
        await asyncio.sleep(self._weather.dice.choice((0.0, 0.01, 0.5)) + self._weather.delay())
        await self.process.breathe()
        outcome = await super()._called(order)
        await asyncio.sleep(self._weather.delay())
        return outcome

    def die(self) -> None:
        self.process.die()
        for work in [*self._work.values()]:
            work.cancel()


class Sandboxes:
    """`SandboxPort`: finds sandboxes by name, and learns of their deaths."""

    def __init__(self, start: Callable[[], Sandbox]) -> None:
        self._start = start
        self._all: dict[str, Sandbox] = {}
        self.current = self._next()

    def _next(self) -> Sandbox:
        sandbox = self._start()
        self._all[sandbox.name] = sandbox
        return sandbox

    def pick(self) -> str:
        if self.current.process.dead:
            self.current = self._next()
        return self.current.name

    def code_of(self, tool: Tool[Any, Any]) -> ToolCode:
        self.pick()
        return self.current.code_of(tool)

    async def execute(self, order: Order) -> Outcome | Receipt:
        sandbox = self._all[order.receipt.sandbox]
        if sandbox.process.dead:
            raise SandboxDied(sandbox.name)
        sandbox._tools |= self.current._tools
        return await _or_gone(sandbox, sandbox.execute(order))

    async def attend(self, receipt: Receipt) -> Outcome | None:
        sandbox = self._all[receipt.sandbox]
        if sandbox.process.dead:
            return None
        try:
            return await _or_gone(sandbox, sandbox.attend(receipt))
        except SandboxDied:
            return None

    def abort_nowait(self, receipt: Receipt) -> None:
        if receipt.sandbox in self._all:  # else it is an effect of a node
            self._all[receipt.sandbox].abort_nowait(receipt)

    def seen_by(self, process: Process) -> SandboxPort:
        return cast(SandboxPort, _SeenBy(process, self))


class _SeenBy:
    """A dead process orders nothing."""

    def __init__(self, process: Process, sandboxes: Sandboxes) -> None:
        self._process = process
        self._sandboxes = sandboxes

    def __getattr__(self, name: str) -> Any:
        if self._process.dead:
            raise Gone(self._process.name)
        return getattr(self._sandboxes, name)


async def _or_gone(sandbox: Sandbox, work: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await work
    except Gone:
        raise SandboxDied(sandbox.name) from None

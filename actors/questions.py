"""The questions and timers of one task: what answers each now, or that it is to be waited for.

Whether somebody has answered, time has, or nobody yet, is read from what is stored. That a deadline has passed is put
on record before the node goes on (see interrupts.py for why).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from pydantic import ValidationError

from understudy.actors.channels import reason_of
from understudy.actors.errors import InterruptExpired, Suspended
from understudy.actors.interrupts import (
    Continue,
    Escalate,
    Question,
    asked_again,
    escalated,
    interrupt_id,
    new_interrupt,
    next_id,
    stored,
    typed,
)
from understudy.actors.ledger import Ledger, Place
from understudy.actors.records import Interrupt


@dataclass(frozen=True)
class Questions:
    """Those of one attempt of a task."""

    place: Place
    ledger: Ledger
    clock: Callable[[], float]
    known: Mapping[str, Interrupt]
    """The task's interrupts as they are stored, by id."""
    keep: Callable[[Interrupt], None]
    """Keeps one that time has answered with the task, as long as its superstep lasts."""

    async def answer(self, asked: Question, index: int) -> Any:
        """What answers a question. Raises Suspended with it if nothing does yet; InterruptExpired."""
        task, answers = self.place.task, self.place.answers
        named, since = interrupt_id(task.task_id, "question", index), ""
        while True:
            known = self.known.get(named)
            answered, answer = named in answers, answers.get(named)
            expired = known is not None and self._is_expired(known)
            if known is not None and not answered and not expired and self._is_due(known):
                expired, answer = await self._expire(named)
                answered = not expired
            if known is not None and expired:
                self.keep(_settled(known))
                match asked.on_timeout:
                    case Continue(value):
                        return typed(asked, stored(asked.adapter, value))
                    case Escalate() as then:
                        asked, since, named = escalated(asked, then), named, next_id(named, "escalated")
                    case None:
                        raise InterruptExpired(f"nobody answered {named} of node {task.node!r} before its deadline")
            elif answered:
                try:
                    return typed(asked, answer)
                except ValidationError as error:
                    asked, named = asked_again(asked, reason_of(error)), next_id(named, json.dumps(answer))
            else:
                raise Suspended(known or new_interrupt(named, task.task_id, task.node, asked, self.clock(), since))

    async def sleep(self, duration: timedelta, index: int) -> None:
        """Return once the time is over. Raises Suspended with the timer until then."""
        task, now = self.place.task, self.clock()
        named = interrupt_id(task.task_id, "timer", index)
        timer = self.known.get(named)
        if timer is not None and self._is_due(timer):
            self.keep(_settled(timer))
            return
        until = now + duration.total_seconds()
        raise Suspended(timer or Interrupt(named, task.task_id, task.node, "timer", {}, "", now, until))

    def _is_due(self, interrupt: Interrupt) -> bool:
        return interrupt.settled or (interrupt.deadline is not None and interrupt.deadline <= self.clock())

    def _is_expired(self, interrupt: Interrupt) -> bool:
        """Whether it is on record that time has answered it."""
        return interrupt.settled or self.ledger.expiry(self.place, interrupt.interrupt_id).key in self.place.receipts

    async def _expire(self, named: str) -> tuple[bool, Any]:
        """Let time answer, unless somebody was faster: then theirs is the answer."""
        faster = await self.ledger.expire(self.ledger.expiry(self.place, named), named)
        return faster is None, None if faster is None else json.loads(faster)


def _settled(interrupt: Interrupt) -> Interrupt:
    return replace(interrupt, settled=True, deadline=None)

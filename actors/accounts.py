"""The accounts of budgets in the store: what several processes change at the same time is changed one after the other.

An account is a document, written over the version that the writer knows; whoever was slower looks again and decides
anew. What arrives while a write is under way goes into the next one, all of it together.
"""

import asyncio
import hashlib
import json
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar
from urllib.parse import quote

from understudy.actors.documents import Document, Overtaken
from understudy.actors.errors import CallerError, StoreUnavailable
from understudy.actors.outcome import Outcome
from understudy.actors.store import Store
from understudy.policies.bill import Bill, cost_of_call
from understudy.policies.budget import Account, Amounts, Title, amounts_in, from_data, release, settle, to_data

SHELF: Final = "budgets"
KNOWN_MAX: Final = 256
"""Documents that are kept at hand. One that is not the newest any more is noticed when it is written."""
TOGETHER_MAX: Final = 200
TURNS_MAX: Final = 10_000
"""Overtaken so often in a row, something is wrong with the store: each time another writer went forward."""
PAUSE_S: Final = 0.1
NAME_MAX: Final = 160

T = TypeVar("T")
Act = Callable[[Account | None], tuple[Account | None, T]]
"""What becomes of an account (None: there is none), and the answer. It may be asked again, of a newer one."""


def name_of(title: Title) -> str:
    """The name of an account's document: all of a run's stand together."""
    parts = [title.scope, title.of, title.layer, title.policy, title.budget, *([title.window] if title.window else [])]
    return "/".join(_short(part) for part in parts)


def account_in(document: Document) -> Account:
    """Raises CallerError: it is none."""
    try:
        return from_data(json.loads(document.data))
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise CallerError(
            f"account {document.name!r} cannot be read ({type(error).__name__}: {error}), so nothing is paid from it; "
            f"`understudy budgets --reset {document.name}` begins it anew"
        ) from None


class Accounts:
    """One process's way to the accounts."""

    def __init__(self, open_store: Callable[[], Awaitable[Store]]) -> None:
        self._open_store = open_store
        self._known: OrderedDict[str, Document] = OrderedDict()
        self._waiting: dict[str, deque[tuple[Act[Any], asyncio.Future[Any]]]] = {}
        self._writing: dict[str, asyncio.Task[None]] = {}

    async def change(self, name: str, act: Act[T]) -> T:
        """Do something to an account; the answer, once the change is durable. Raises StoreUnavailable."""
        answered: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(name, deque()).append((act, answered))
        if name not in self._writing:
            self._writing[name] = asyncio.ensure_future(self._write_on(name))
        return await answered

    async def settle(self, names: Sequence[str], key: str, cost: Amounts | None) -> None:
        """Put what a call did cost in the place of what is held for it, however long the store is away; None: all."""
        await self._until_done(names, lambda account: settle(account, key, cost))

    async def release(self, names: Sequence[str], key: str, epoch: int) -> None:
        """Give back what the run's owner with this epoch holds for a call that will not be made."""
        await self._until_done(names, lambda account: release(account, key, epoch))

    async def _until_done(self, names: Sequence[str], how: Callable[[Account], Account]) -> None:
        def act(account: Account | None) -> tuple[Account | None, None]:
            return (None if account is None else how(account)), None

        async def until_done(name: str) -> None:
            pause_s = PAUSE_S
            while True:
                try:
                    return await self.change(name, act)
                except StoreUnavailable:
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 2, 5.0)

        await asyncio.gather(*map(until_done, names))

    # --- inside ---

    async def _write_on(self, name: str) -> None:
        waiting = self._waiting[name]
        try:
            while waiting:
                some = [waiting.popleft() for _ in range(min(TOGETHER_MAX, len(waiting)))]
                try:
                    answers = await self._write(name, [act for act, _ in some])
                except BaseException as error:
                    for _, answered in some:
                        if not answered.done():
                            answered.set_exception(error)
                    if not isinstance(error, Exception):
                        raise
                    continue
                for (_, answered), answer in zip(some, answers, strict=True):
                    if not answered.done():
                        answered.set_result(answer)
        finally:
            del self._waiting[name], self._writing[name]

    async def _write(self, name: str, acts: Sequence[Act[Any]]) -> list[Any]:
        store = await self._open_store()
        found, fresh = self._known.pop(name, None), False
        if found is None:
            found, fresh = await store.read_document(SHELF, name), True
        for _ in range(TURNS_MAX):
            before = account_in(found) if found else None
            after, answers = before, []
            for act in acts:
                after, answer = act(after)
                answers.append(answer)
            if after is not None and after != before:
                data = json.dumps(to_data(after), sort_keys=True, separators=(",", ":")).encode()
                try:
                    version = await store.write_document(SHELF, name, data, found.version if found else 0)
                except Overtaken as error:
                    found, fresh = error.found, True
                    continue
                self._keep(Document(name, version, data))
                return answers
            if fresh:
                return answers
            # Nothing was written, so nothing has shown that what was known is what there is: a no may be out of date.
            found, fresh = await store.read_document(SHELF, name), True
        raise StoreUnavailable(f"account {name!r} was overtaken {TURNS_MAX} times in a row; is it being rewritten?")

    def _keep(self, document: Document) -> None:
        self._known[document.name] = document
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)


def given(store: Store) -> Callable[[], Awaitable[Store]]:
    """A store that is open already, as `Accounts` and `Budgets` ask for one."""

    async def opened() -> Store:
        return store

    return opened


def charged(outcome: Outcome, bill: Bill) -> Outcome:
    """The outcome of a tool call, with what it did cost. What was refused has not cost anything; what nobody knows the
    end of stays held."""
    if not bill or outcome.kind == "unknown":
        return outcome
    if outcome.kind == "denied":
        return replace(outcome, cost={})
    return replace(outcome, cost=cost_of_call(bill, outcome.duration_s, outcome.value, outcome.printed))


async def settled(accounts: Accounts, bill: Bill, key: str, outcome: Outcome) -> None:
    """Once its receipt is written, a call is charged; a process that dies before leaves that to `budget_sweep`."""
    if bill and outcome.kind != "unknown":
        cost = outcome.cost
        await accounts.settle(bill.accounts, key, None if cost is None else amounts_in(cost))


def _short(part: str) -> str:
    text = quote(part, safe="")
    return text if len(text) <= NAME_MAX else "sha256-" + hashlib.sha256(part.encode(errors="replace")).hexdigest()

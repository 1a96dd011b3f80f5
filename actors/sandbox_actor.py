"""The sandbox actor: checks the grant, puts the call on record, executes it behind walls, and writes the receipt.

Laws kept here:
4. The receipt is durable before the tool starts; its outcome is durable before anyone is told. A call that waits for
   room is not on record yet: whatever happens to it meanwhile, it was never started.
5. A call outlives the run actor that ordered it: it is finished here, and whoever owns the run then attends it.
7. No grant, or one that does not fit this very call: nothing is executed. What came of a grant is in the audit log
   before anything is.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from understudy.actors.accounts import Accounts, charged, settled
from understudy.actors.audit_log import AuditLog
from understudy.actors.calls import Order, finish, finished_event
from understudy.actors.effects import NO_ISOLATION, write_outcome
from understudy.actors.elsewhere import lives
from understudy.actors.entrusted import NOTHING, Entrusted, entrust
from understudy.actors.environment import Environment
from understudy.actors.errors import CallerError, Fenced, NotFound, StoreUnavailable
from understudy.actors.events import counters_of, sample
from understudy.actors.files import left_by
from understudy.actors.lost_calls import mark_lost
from understudy.actors.open import OpenStore
from understudy.actors.outcome import Outcome, ToolCall
from understudy.actors.packed import pack, unpack
from understudy.actors.process import keep_no_core, name_of_this_process
from understudy.actors.records import Begun, Event, Receipt
from understudy.actors.revocations import read_revocations
from understudy.actors.sandbox.backend import IsolationUnavailable, Preflight
from understudy.actors.sandbox.egress.way_out import WayOut
from understudy.actors.sandbox.environments import Environments, EnvironmentUnusable
from understudy.actors.sandbox.real_paths import leads_elsewhere
from understudy.actors.sandbox.tiers import Tiers, all_tiers
from understudy.actors.sandbox.verdict import Seen, seen_by
from understudy.actors.secret_file import SecretFile, SecretsUnusable
from understudy.actors.store import Store
from understudy.policies.bill import FREE, Bill
from understudy.policies.grant import Grant, GrantRefused, check
from understudy.policies.profile import TIERS, Profile, strongest

LOOK_S = 2.0
"""How often a call at work looks whether its run still wants it."""
ENDED_OUTSIDE = "ended from outside: the run was cancelled, or its node gave up on the call"
SPARES_MOST = 16
"""Sandboxes that wait, ready, for a call, in one sandbox actor. Each holds 1.4 MiB."""


class SandboxActor:
    """Ray shell around the tiers of isolation. `at_once`: calls that execute at the same time; others wait."""

    def __init__(
        self,
        name: str,
        open_store: OpenStore,
        secret: bytes,
        at_once: int,
        secrets_path: str | None = None,
        environments_path: str = "/nonexistent",
        preload: Sequence[str] = (),
    ) -> None:
        keep_no_core()
        self._name = name
        self._open_store = open_store
        self._secret = secret
        self._secrets = SecretFile(secrets_path)
        self._environments = Environments(environments_path)
        self._room = asyncio.Semaphore(at_once)
        self._tiers = Tiers(all_tiers(min(at_once, SPARES_MOST), preload))
        self._store: Store | None = None
        self._work: dict[tuple[str, str], asyncio.Task[Outcome | Receipt]] = {}
        self._audit = AuditLog(self._ready, secret)
        self._accounts = Accounts(self._ready)
        self._taken_back: dict[str, str] = {}
        """Why a call is being ended, by the id of its grant."""

    async def execute(self, order: Order) -> Outcome | Receipt:
        """The outcome; or the receipt that is on record under this key already. Raises Fenced."""
        place = (order.receipt.key, order.receipt.token)
        if place in self._work:  # the same order again: its reply was lost
            return await _end_of(self._work[place])
        store = await self._ready()
        now = time.time()
        try:
            grant = check(
                order.token,
                self._secret,
                run_id=order.receipt.run_id,
                key=order.receipt.key,
                tool=order.call.tool,
                digest=order.receipt.digest,
                args=order.call.args,
                code=order.call.code.digest,
                order=order.receipt.token,
                now=now,
            )
            if order.receipt.sandbox != self._name:  # whoever waits for it would not find it here
                raise GrantRefused(
                    "wrong sandbox", f"it was ordered from {order.receipt.sandbox!r}, not {self._name!r}"
                )
        except GrantRefused as error:
            return await self._refuse(store, order, error, now)
        # Known here before it is on record there: whoever reads `started` and asks must find it at work.
        work = asyncio.ensure_future(self._perform(store, order, grant))
        self._work[place] = work
        work.add_done_callback(lambda done: self._over(place, done))
        return await _end_of(work)

    async def execute_packed(self, order: bytes) -> bytes:
        """`execute`, of a packed order; its packed answer. With both goes a word of where the audit log ends."""
        word, unpacked = unpack(order)
        self._audit.hear(word)
        answer = await self.execute(unpacked)
        return pack((self._audit.word(), answer))

    def _over(self, place: tuple[str, str], work: "asyncio.Task[Outcome | Receipt]") -> None:
        self._work.pop(place, None)
        if not work.cancelled():
            work.exception()  # seen, also if whoever ordered it is gone

    async def _refuse(
        self, store: Store, order: Order, error: GrantRefused, now: float, bill: Bill = FREE
    ) -> Outcome | Receipt:
        reason = f"the sandbox refused the grant: {error}"
        await self._audit.append("grant_refused", **_entry(order), refused=error.reason, reason=error.detail)
        outcome = charged(Outcome("denied", error=reason), bill)
        receipt = dataclasses.replace(order.receipt, state="done", outcome=write_outcome(outcome), at=now)
        told = {"decision": "deny", "reason": reason, "refused": error.reason}
        denied = Event("decided", now, {**order.decided.data, **told})
        events = [denied, finished_event(receipt, outcome, now)]
        answer = await store.begin(receipt, order.epoch, events, counters_of(order.graph, events), now)
        if answer.receipt.outcome != receipt.outcome:  # the call is on record, and paid for with what is held
            return answer.receipt
        await settled(self._accounts, bill, receipt.key, outcome)
        return outcome

    async def _perform(self, store: Store, order: Order, grant: Grant) -> Outcome | Receipt:
        """Wait for room, put the call on record (its grant is used up), make it, write its receipt. Raises Fenced."""
        profile = grant.profile
        async with self._room_for(order, grant):
            spoilt = await self._spoilt(store, order, grant)
            if spoilt is not None:
                return await self._refuse(store, order, spoilt, time.time(), grant.bill)
            on_record = await self._begin(store, order, grant)
            if on_record is not None:
                return on_record
            began = time.perf_counter()
            entrusted, refused = self._entrust(order, profile)
            watching = asyncio.ensure_future(self._watch(store, order, grant))
            try:
                outcome = refused or await self._equipped(order, profile, entrusted.way_out)
            except asyncio.CancelledError as error:
                why = self._taken_back.get(grant.id, ENDED_OUTSIDE)
                outcome = _aborted(time.perf_counter() - began, why, seen_by(error))
            finally:
                watching.cancel()
                self._taken_back.pop(grant.id, None)
        outcome = charged(entrusted.told(outcome), grant.bill)
        if profile.network:
            await self._audit_rest(order, entrusted)
        await self._record(store, order, outcome, entrusted)
        await settled(self._accounts, grant.bill, order.receipt.key, outcome)
        return outcome

    async def _spoilt(self, store: Store, order: Order, grant: Grant) -> GrantRefused | None:
        """Why a good grant is none any more, or not here: it was revoked, perhaps while the call waited; or a path that
        was judged leads elsewhere on this machine."""
        reason = await self._revoked(store, grant)
        if reason:
            return GrantRefused("revoked", reason)
        if grant.paths:
            reason = await asyncio.to_thread(leads_elsewhere, grant.paths, order.call.args, grant.profile)
        return GrantRefused("wrong arguments", reason) if reason else None

    @contextlib.asynccontextmanager
    async def _room_for(self, order: Order, grant: Grant) -> AsyncIterator[None]:
        """One that nobody wants any more while it waits never starts, and so costs nothing."""
        try:
            await self._room.acquire()
        except asyncio.CancelledError:
            await self._accounts.release(grant.bill.accounts, order.receipt.key, grant.epoch)
            raise
        try:
            yield
        finally:
            self._room.release()

    def _entrust(self, order: Order, profile: Profile) -> tuple[Entrusted, Outcome | None]:
        """The secrets that the grant names, and the way out; or the end of a call that cannot have them."""

        def tell(connection: Mapping[str, Any]) -> None:
            self._audit.append_nowait("connection", **{**connection, **_entry(order)})

        try:
            return entrust(self._secrets, profile, order.receipt.run_id, tell), None
        except SecretsUnusable as error:
            return NOTHING, Outcome("error", error=str(error), error_type=type(error).__name__)

    async def _audit_rest(self, order: Order, entrusted: Entrusted) -> None:
        """Of a call's connections, those that were not told one by one; and wait until all are durable."""
        log = entrusted.way_out.log
        if log is not None and log.more:
            self._audit.append_nowait("connections", **_entry(order), more=log.more, denied=log.more_denied)
        await self._audit.written()

    async def _watch(self, store: Store, order: Order, grant: Grant) -> None:
        """A call belongs to a run and ends with it, also if the run was cancelled while no actor had it; and with its
        grant."""
        receipt, wanted = order.receipt, True
        while wanted:
            await asyncio.sleep(LOOK_S)
            with contextlib.suppress(StoreUnavailable):
                try:
                    wanted = not (await store.run(receipt.run_id)).final
                except NotFound:
                    wanted = False
                reason = await self._revoked(store, grant)
                if reason:
                    await self._audit.append("grant_ended", **_entry(order), grant=grant.id, reason=reason)
                    self._taken_back[grant.id], wanted = f"its grant was revoked: {reason}", False
        await self.abort(receipt.key, receipt.token)

    async def _revoked(self, store: Store, grant: Grant) -> str:
        """Who took a grant back and why, in words; empty: nobody did. A call that begins in the very moment in which
        that is written down is ended by `_watch`."""
        for revocation, told in await read_revocations(store, self._secret, time.time()):
            if revocation.covers(grant):
                note = f", {told['note']!r}" if told.get("note") else ""
                return f"{told.get('by') or 'somebody'} took it back{note}; ask for a new decision"
        return ""

    async def _begin(self, store: Store, order: Order, grant: Grant) -> Receipt | None:
        """Put the call on record; what is there already, if it is. Aborted just then, it ends as killed."""
        now = time.time()
        events = [order.decided, Event("tool_started", now, _started(order, grant.profile))]
        receipt = dataclasses.replace(order.receipt, at=now)
        begin = asyncio.gather(
            store.begin(receipt, order.epoch, events, counters_of(order.graph, events), now),
            self._audit.append("grant_used", **_entry(order), grant=grant.id),
        )
        try:
            answer, _ = await asyncio.shield(begin)
        except asyncio.CancelledError:
            if _is_begun(receipt, (await begin)[0]):
                outcome = charged(_aborted(0.0), grant.bill)
                await self._record(store, order, outcome)
                await settled(self._accounts, grant.bill, order.receipt.key, outcome)
            raise
        return None if _is_begun(receipt, answer) else answer.receipt

    async def _equipped(self, order: Order, profile: Profile, way_out: WayOut) -> Outcome:
        """The call, with the environment of its tool, where that has one."""
        call, said = _granted(order.call, profile), order.call.code.environment
        if not said:
            return await self._isolated(call, profile, way_out)
        try:
            wanted = Environment.read(said)
            await asyncio.to_thread(self._environments.prepare, wanted)
            with self._environments.lent(wanted) as folder:
                return await self._isolated(dataclasses.replace(call, environment=folder), profile, way_out)
        except CallerError as error:
            return Outcome("error", error=str(error), error_type=EnvironmentUnusable.__name__)

    async def _isolated(self, call: ToolCall, profile: Profile, way_out: WayOut) -> Outcome:
        if call.tier in TIERS:
            profile = dataclasses.replace(profile, tier=strongest([profile.tier, call.tier]))
        for last in (False, False, True):
            try:
                return left_by(call, await self._tiers.execute(call, profile, way_out))
            except IsolationUnavailable as error:
                # The walls did not stand, so nothing was executed: it is safe to try again.
                if last:
                    reason = f"this node cannot isolate, so it runs no untrusted tool: {error}"
                    return Outcome("denied", error=reason, error_type=NO_ISOLATION)
                await asyncio.sleep(0.2)
            except OSError as error:
                reason = f"the sandbox could not start: {error}"
                return Outcome("error", error=reason, error_type=type(error).__name__)
        raise AssertionError("the last try returns")

    async def _record(self, store: Store, order: Order, outcome: Outcome, entrusted: Entrusted = NOTHING) -> None:
        """Write the receipt, however long the store is away: the outcome exists only here until then."""
        pause_s = 0.1
        while True:
            now = time.time()
            connected = entrusted.connected(order.receipt.tool, order.receipt.key, now)
            events = [*connected, finished_event(order.receipt, outcome, now)]
            try:
                await finish(store, order, outcome, events, now)
                return
            except StoreUnavailable:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, 5.0)

    async def attend(self, key: str, token: str) -> Outcome | None:
        """The outcome of a call that is at work here; None if it is not."""
        work = self._work.get((key, token))
        if work is None:
            return None
        try:
            told = await _end_of(work)
        except Fenced:
            return None
        return told if isinstance(told, Outcome) else None

    async def abort(self, key: str, token: str) -> None:
        """End a call that nobody wants any more; its receipt says `killed`. One that waits for room never starts."""
        work = self._work.get((key, token))
        if work is not None:
            work.cancel()

    async def ready(self) -> str:
        """The name of the process."""
        return name_of_this_process()

    async def preflight(self) -> Preflight:
        """Whether this node really isolates: a call is made to find out."""
        with contextlib.suppress(OSError):  # of a folder that is not ours: then it is not ours to tidy, either
            await asyncio.to_thread(self._environments.clean)
        found = await self._tiers.preflight()
        left = dataclasses.asdict(self._tiers.left_over())
        counted = {sample("sandbox_leftovers_total", kind=kind): float(count) for kind, count in left.items() if count}
        with contextlib.suppress(StoreUnavailable):  # it is gone, counted or not
            store = await self._ready()
            if counted:
                await store.count(counted)
            await mark_lost(store, self._is_at_work, time.time())
        return found

    async def _is_at_work(self, receipt: Receipt) -> bool:
        """Here, in what had this name before, or in a sandbox that is spoken for."""
        if receipt.sandbox == self._name:
            return (receipt.key, receipt.token) in self._work
        return await lives(await self._ready(), receipt.sandbox, time.time())

    async def _ready(self) -> Store:
        if self._store is None:
            self._store = await self._open_store()
        return self._store


def _granted(call: ToolCall, profile: Profile) -> ToolCall:
    """The workspace of a call is what its grant says, and its environment what is found here, whatever the one who
    ordered it has sent."""
    call = dataclasses.replace(call, environment="")
    if profile.workspace == "none":
        return dataclasses.replace(call, files=None, keeps=False)
    return dataclasses.replace(call, keeps=call.keeps and profile.workspace == "write")


async def _end_of(work: "asyncio.Task[Outcome | Receipt]") -> Outcome | Receipt:
    """Wait for a call, without ending it if the one who waits is gone. One that was ended before it started: killed."""
    await asyncio.wait([work])
    return _aborted(0.0) if work.cancelled() else work.result()


def _is_begun(receipt: Receipt, answer: Begun) -> bool:
    """Whether it is this very call, of this process, that is on record now.

    The same order may have come to another actor, or to this one before it was started anew: to the store that is the
    same write again, as after a reply that was lost; but the moment in it is another one.
    """
    there = answer.receipt
    return answer.fresh and (there.sandbox, there.at) == (receipt.sandbox, receipt.at)


def _aborted(seconds: float, reason: str = ENDED_OUTSIDE, seen: Seen = Seen()) -> Outcome:  # noqa: B008 (frozen)
    peak = seen.peak_memory_bytes
    return Outcome("killed", error=reason, printed=seen.printed, duration_s=seconds, peak_memory_bytes=peak)


def _entry(order: Order) -> dict[str, Any]:
    """What the audit log has of an order."""
    receipt = order.receipt
    return {
        "run": receipt.run_id,
        "key": receipt.key,
        "tool": receipt.tool,
        "digest": receipt.digest,
        "sandbox": receipt.sandbox,
    }


def _started(order: Order, profile: Profile) -> dict[str, Any]:
    receipt = order.receipt
    return {
        "tool": receipt.tool,
        "key": receipt.key,
        "sandbox": receipt.sandbox,
        "wall_s": profile.limits.wall_s,
    }

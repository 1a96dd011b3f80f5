"""The audit log: nothing in it changes unnoticed, nobody is answered before it is durable, whatever dies or is away."""

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.waiting import run_async
from understudy.actors.audit_log import ANCHOR, ANCHORS, SHELF, AuditLog, anchor_of, head_of
from understudy.actors.documents import Document
from understudy.actors.errors import CallerError, StoreUnavailable
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Event, NewRun, Receipt, run_id_on
from understudy.cluster.auditing import entries_of, prune, verify
from understudy.policies.audit import (
    Head,
    name_of,
    read_segment,
    read_word,
    write_anchor,
    write_segment,
    write_word,
)

SECRET, OTHER = b"s" * 32, b"o" * 32
T = 1_764_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = T

    def __call__(self) -> float:
        self.now += 60.0
        return self.now


def log_to(store: Any, secret: bytes = SECRET, *, strict: bool = False, clock: Clock | None = None) -> AuditLog:
    async def opened() -> Any:
        return store

    return AuditLog(opened, secret, clock or Clock(), strict=strict)


@dataclass
class Gated:
    """A store that answers once the gate is open."""

    store: MemoryStore
    gate: asyncio.Event

    def __getattr__(self, name: str) -> Any:
        async def called(*args: Any, **kwargs: Any) -> Any:
            await self.gate.wait()
            return await getattr(self.store, name)(*args, **kwargs)

        return called


async def written(count: int = 6) -> MemoryStore:
    """A log of so many segments."""
    store = MemoryStore()
    log = log_to(store)
    for n in range(count):
        await log.append("decision", run=f"r{n}", key=f"k{n}", decision="allow")
    return store


async def fault_in(store: MemoryStore, noted: Head | None = None) -> Any:
    return (await verify(store, SECRET, noted=noted)).fault


# --- any change is found -------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Document], random.Random], None]


def flip(shelf: dict[str, Document], dice: random.Random) -> None:
    """One bit of one byte."""
    name = dice.choice([*shelf])
    data = bytearray(shelf[name].data)
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    shelf[name] = Document(name, 1, bytes(data))


def cut_out(shelf: dict[str, Document], dice: random.Random) -> None:
    del shelf[dice.choice([*shelf])]


def swap(shelf: dict[str, Document], dice: random.Random) -> None:
    one, other = dice.sample([*shelf], 2)
    shelf[one], shelf[other] = Document(one, 1, shelf[other].data), Document(other, 1, shelf[one].data)


def copy_over(shelf: dict[str, Document], dice: random.Random) -> None:
    one, other = dice.sample([*shelf], 2)
    shelf[one] = Document(one, 1, shelf[other].data)


def insert(shelf: dict[str, Document], dice: random.Random) -> None:
    """A segment between two others, which all later ones make room for."""
    at = dice.randrange(1, len(shelf) + 1)
    for number in range(len(shelf), at - 1, -1):
        shelf[name_of(number + 1)] = Document(name_of(number + 1), 1, shelf[name_of(number)].data)
    data, _ = write_segment(Head(at - 1, "0" * 64), [{"kind": "decision", "at": 1.0}], 1.0, OTHER)
    shelf[name_of(at)] = Document(name_of(at), 1, data)


def add_behind(shelf: dict[str, Document], dice: random.Random) -> None:
    last = read_segment(shelf[name_of(len(shelf))].data)
    data, head = write_segment(last.head, [{"kind": "decision", "at": 1.0}], 1.0, OTHER)
    shelf[name_of(head.number)] = Document(name_of(head.number), 1, data)


def write_anew(shelf: dict[str, Document], dice: random.Random) -> None:
    """The same content in other bytes, or as another version."""
    name = dice.choice([*shelf])
    data = shelf[name].data
    if dice.random() < 0.5:
        shelf[name] = Document(name, 1, json.dumps(json.loads(data), indent=1).encode())
    else:
        shelf[name] = Document(name, 2, data)


def tell_otherwise(shelf: dict[str, Document], dice: random.Random) -> None:
    name = dice.choice([*shelf])
    content = json.loads(shelf[name].data)
    content["entries"][0]["decision"] = "deny"
    shelf[name] = Document(name, 1, json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def truncate(shelf: dict[str, Document], dice: random.Random) -> None:
    for number in range(dice.randrange(1, len(shelf) + 1), len(shelf) + 1):
        del shelf[name_of(number)]


def behead(shelf: dict[str, Document], dice: random.Random) -> None:
    for number in range(1, dice.randrange(2, len(shelf) + 1)):
        del shelf[name_of(number)]


def rename_all(shelf: dict[str, Document], dice: random.Random) -> None:
    """Take one out and let the others close the gap."""
    gone = dice.randrange(1, len(shelf))
    for number in range(gone, len(shelf)):
        shelf[name_of(number)] = Document(name_of(number), 1, shelf[name_of(number + 1)].data)
    del shelf[name_of(len(shelf))]


CHANGES = (
    *(flip, cut_out, swap, copy_over, insert, add_behind, write_anew, tell_otherwise, truncate, behead, rename_all),
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CHANGES), st.integers(2, 8), st.randoms(use_true_random=False))
def test_any_single_change_is_found(change: Change, count: int, dice: random.Random) -> None:
    async def played() -> None:
        store = await written(count)
        noted, _ = await head_of(store, SECRET)
        assert await fault_in(store, noted) is None
        before = dict(store._shelves[SHELF])
        change(store._shelves[SHELF], dice)
        if store._shelves[SHELF] != before:
            assert await fault_in(store, noted) is not None

    asyncio.run(played())


def test_what_is_wrong_is_named() -> None:
    async def played(change: Callable[[dict[str, Document]], None]) -> str:
        store = await written()
        noted, _ = await head_of(store, SECRET)
        change(store._shelves[SHELF])
        return str(await fault_in(store, noted)).split(":")[0]

    def drop(number: int) -> Callable[[dict[str, Document]], None]:
        return lambda shelf: shelf.pop(name_of(number)) and None

    def put(number: int, other: int) -> Callable[[dict[str, Document]], None]:
        def act(shelf: dict[str, Document]) -> None:
            shelf[name_of(number)] = Document(name_of(number), 1, shelf[name_of(other)].data)

        return act

    def another_chain(shelf: dict[str, Document]) -> None:
        data, _ = write_segment(Head(2, "0" * 64), [], 1.0, SECRET)
        shelf[name_of(3)] = Document(name_of(3), 1, data)

    def spoil(shelf: dict[str, Document]) -> None:
        shelf[name_of(4)] = Document(name_of(4), 1, b"\xff{")

    assert asyncio.run(played(drop(3))) == "segment 3 is missing"
    assert asyncio.run(played(drop(1))) == "segment 1 is missing"
    assert asyncio.run(played(drop(6))) == "segment 6 is truncated"
    assert asyncio.run(played(put(2, 5))) == "segment 2 is reordered"
    assert asyncio.run(played(another_chain)) == "segment 3 is forged"
    assert asyncio.run(played(spoil)) == "segment 4 is changed"


def test_the_log_of_another_secret_is_not_good() -> None:
    async def played() -> None:
        found = await verify(await written(), OTHER)
        assert found.fault is not None
        assert (found.fault.number, found.fault.what) == (1, "changed")

    asyncio.run(played())


def test_verification_may_begin_in_the_middle() -> None:
    async def played() -> None:
        store = await written()
        found = await verify(store, SECRET, start=4)
        assert (found.first, found.head.number, found.entries, found.fault) == (4, 6, 3, None)
        del store._shelves[SHELF][name_of(5)]
        found = await verify(store, SECRET, start=4)
        assert found.fault is not None
        assert found.fault.number == 5
        with pytest.raises(CallerError, match="no segment 8"):
            await verify(store, SECRET, start=9)

    asyncio.run(played())


# --- the runs know what has to be there ----------------------------------------------------------------------------


async def store_with_a_run() -> tuple[MemoryStore, AuditLog, str]:
    """A run whose call's decision is in the log, and named in its event."""
    store = MemoryStore()
    log = log_to(store)
    run = run_id_on("t", "run")
    await log.append("decision", run="another", key="x")
    place = await log.append("decision", run=run, key="k")
    await store.create(NewRun(run, "t", "g", "1", "{}", "{}", "d"), [], {}, T)
    await store.claim(run, "one", 60.0, T)
    receipt = Receipt("k", run, "", "task", "pay", "d", "started", "s", "t1")
    await store.begin(receipt, 1, [Event("decided", T, {"key": "k", "audit": place})], {}, T)
    return store, log, run


def test_a_lost_tail_is_found_by_the_runs_that_name_it() -> None:
    async def played() -> None:
        store, _, run = await store_with_a_run()
        assert await fault_in(store) is None
        del store._shelves[SHELF][name_of(2)]
        fault = await fault_in(store)
        assert (fault.number, fault.what) == (2, "truncated")
        assert run in fault.why
        assert (await verify(store, SECRET, runs=False)).fault is None
        del store._shelves[SHELF]
        assert (await fault_in(store)).what == "truncated"

    asyncio.run(played())


def test_a_lost_tail_that_no_run_names_is_found_by_who_has_noted_a_head_and_by_nobody_else() -> None:
    async def played() -> None:
        store, log, run = await store_with_a_run()
        for kind in ("grant_used", "connection", "answer", "revoke"):
            await log.append(kind, run=run, key="k")
        noted, _ = await head_of(store, SECRET)
        for number in (6, 5, 4, 3):
            del store._shelves[SHELF][name_of(number)]
            assert await fault_in(store) is None
            assert (await fault_in(store, noted)).what == "truncated"
        await log_to(store).append("answer", run=run, key="k")
        assert (await fault_in(store, noted)).number == 6, "also when it has grown again"
        for _ in range(4):
            await log_to(store).append("answer", run=run, key="k")
        assert (await fault_in(store, noted)).what == "changed"

    asyncio.run(played())


def test_an_event_that_names_another_entry_is_found() -> None:
    async def played() -> None:
        store, _, run = await store_with_a_run()
        receipt = Receipt("k2", run, "", "task", "pay", "d", "started", "s", "t2")
        for place, what in (("1.0", "forged"), ("7.0", "truncated"), ("nowhere", "changed")):
            await store.begin(receipt, 1, [Event("decided", T, {"key": "k2", "audit": place})], {}, T)
            fault = await fault_in(store)
            assert fault.what == what
            store._runs[run].events.pop()
            store._runs[run].receipts.popitem()

    asyncio.run(played())


# --- writing -------------------------------------------------------------------------------------------------------


class Weather:
    """A store that is away at times, loses replies, and counts what it is asked."""

    def __init__(self, store: MemoryStore, dice: random.Random) -> None:
        self.store, self.dice, self.writes = store, dice, 0

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self.store, name)

        async def called(*args: Any, **kwargs: Any) -> Any:
            self.writes += name == "write_document"
            await asyncio.sleep(0)
            how = self.dice.random()
            if how < 0.15:
                raise StoreUnavailable("away")
            answer = await verb(*args, **kwargs)
            await asyncio.sleep(0)
            if how > 0.85:
                raise StoreUnavailable("the reply was lost")
            return answer

        return called


@pytest.mark.parametrize("seed", range(4))
def test_several_writers_in_bad_weather_lose_and_repeat_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = asyncio.sleep
    monkeypatch.setattr("understudy.actors.audit_log.asyncio.sleep", lambda _: real(0))

    async def played() -> None:
        dice = random.Random(seed)
        store, clock = MemoryStore(), Clock()
        logs = [log_to(Weather(store, dice), clock=clock) for _ in range(3)]
        words = [""]

        async def told(log: AuditLog, name: str) -> tuple[str, str]:
            for _ in range(dice.randrange(5)):
                await real(0)
            log.hear(dice.choice(words))  # an old one, as likely as not
            place = await log.append("decision", run=name, key=name)
            words.append(log.word())
            return name, place

        places = dict(await asyncio.gather(*(told(dice.choice(logs), f"r{n}") for n in range(60))))
        found = [(entry["run"], place) async for place, entry in entries_of(store)]
        assert dict(found) == places
        assert len(found) == 60
        assert await fault_in(store) is None

    run_async(played())


def test_writers_that_take_turns_and_hear_of_each_other_are_not_overtaken() -> None:
    async def played() -> None:
        clock, still = Clock(), random.Random()
        still.random = lambda: 0.5  # type: ignore[method-assign]
        store = Weather(MemoryStore(), still)
        one, other = log_to(store, clock=clock), log_to(store, clock=clock)
        for log in (one, other):  # each looks for the end once
            await log.append("decision")
        before = store.writes
        for _ in range(5):
            for log, former in ((one, other), (other, one)):
                log.hear(former.word())
                await log.append("decision")
        assert store.writes == before + 10
        assert await fault_in(store.store) is None

    run_async(played())


class Away(Weather):
    """A store that one writer does not reach until `back`; `lost`: what it asked the first time was done."""

    def __init__(self, store: MemoryStore, *, lost: bool) -> None:
        super().__init__(store, random.Random())
        self.lost, self.asked, self.back = lost, asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self.store, name)

        async def called(*args: Any, **kwargs: Any) -> Any:
            if self.back.is_set():
                return await verb(*args, **kwargs)
            if self.lost and not self.asked.is_set():
                await verb(*args, **kwargs)
            self.asked.set()
            raise StoreUnavailable("away")

        return called


@pytest.mark.parametrize("lost", [False, True])
def test_a_writer_that_comes_back_after_hours_writes_at_the_end_and_once(
    lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number that it wanted may have been pruned: what is written there is seen by nobody."""
    real = asyncio.sleep
    monkeypatch.setattr("understudy.actors.audit_log.asyncio.sleep", lambda _: real(0))

    async def played() -> None:
        store, clock = await written(3), Clock()
        wire = Away(store, lost=lost)
        log, other = log_to(wire, clock=clock), log_to(store, clock=clock)
        wire.back.set()
        await log.append("decision", run="before", key="k")
        wire.back.clear()
        writing = asyncio.ensure_future(log.append("decision", run="late", key="k"))
        await wire.asked.wait()
        await other.append("decision", run="other", key="k")
        clock.now += 7200.0
        await other.append("decision", run="last", key="k")
        if not lost:
            last = read_segment(list(store._shelves[SHELF].values())[-1].data)
            assert await prune(store, SECRET, last.at, last.at + 7200) == 5
        wire.back.set()
        place = await writing
        assert [where async for where, entry in entries_of(store) if entry.get("run") == "late"] == [place]
        assert place == ("5.0" if lost else "7.0")
        assert await fault_in(store) is None

    run_async(played())


def test_a_writer_that_is_far_behind_does_not_follow_each_of_the_others() -> None:
    async def played() -> None:
        still = random.Random()
        still.random = lambda: 0.5  # type: ignore[method-assign]
        wire = Weather(MemoryStore(), still)
        behind, busy = (log_to(each, clock=Clock()) for each in (wire, wire.store))
        await behind.append("decision")
        for _ in range(100):
            await busy.append("decision")
        before = wire.writes
        assert await behind.append("decision") == "102.0"
        assert wire.writes < before + 10
        assert await fault_in(wire.store) is None

    run_async(played())


def test_what_is_pruned_while_the_log_is_verified_is_nothing_wrong() -> None:
    async def played() -> None:
        store = await written(6)
        fourth = read_segment(store._shelves[SHELF][name_of(4)].data)
        read = store.documents

        async def pruned(*args: Any, **kwargs: Any) -> Any:
            store.documents = read  # type: ignore[method-assign]
            await prune(store, SECRET, fourth.at, T + 1e6)
            return await read(*args, **kwargs)

        store.documents = pruned  # type: ignore[method-assign]
        found = await verify(store, SECRET)
        assert (found.first, found.entries, found.fault) == (4, 3, None)

    asyncio.run(played())


def test_a_word_that_is_not_sealed_or_too_old_counts_for_nothing() -> None:
    async def played() -> None:
        store, clock = await written(3), Clock()
        log = log_to(store, clock=clock)
        late = Head(50, "a" * 64)
        good = write_word(late, clock(), SECRET)
        assert read_word(good, SECRET)[0] == late
        sealed = good.rpartition(" ")[2]
        wrong = [
            "",
            "x",
            "é \ud800",
            good.replace("50", "51", 1),
            good[:-1],
            f"{late} {clock()!r} {sealed}",
            write_word(late, clock(), OTHER),
            write_word(late, clock.now - 1000.0, SECRET),  # what it names may be pruned
            write_word(Head(1, "a" * 64), clock(), SECRET),
        ]
        for word in wrong:
            log.hear(word)
            await log.append("decision")
        assert await fault_in(store) is None
        assert [number for number in range(1, 60) if await store.read_document(SHELF, name_of(number))] == [
            *range(1, 13)
        ]

    run_async(played())


def test_what_comes_together_is_one_segment() -> None:
    async def played() -> None:
        weather = Weather(MemoryStore(), random.Random(1))
        weather.dice.random = lambda: 0.5  # type: ignore[method-assign]
        log = log_to(weather)
        await asyncio.gather(*(log.append("decision", run=f"r{n}", key="k") for n in range(90)))
        assert weather.writes <= 2

    asyncio.run(played())


def test_nobody_is_answered_before_it_is_durable() -> None:
    async def played() -> None:
        store, gate = MemoryStore(), asyncio.Event()

        told = asyncio.ensure_future(log_to(Gated(store, gate)).append("decision", run="r", key="k"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not told.done()
        gate.set()
        assert await told == "1.0"
        assert [entry["run"] async for _, entry in entries_of(store)] == ["r"]

    asyncio.run(played())


def test_a_caller_that_goes_away_takes_nothing_back() -> None:
    async def played() -> None:
        store = MemoryStore()
        log = log_to(store)
        first, second = (asyncio.ensure_future(log.append("decision", run=name, key="k")) for name in "ab")
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert [entry["run"] async for _, entry in entries_of(store)] == ["a", "b"]

    asyncio.run(played())


def test_who_cannot_wait_is_waited_for() -> None:
    """A proxy tells of connections; the call's outcome stands on their being in the log, and on nothing later."""

    async def played() -> None:
        store, gate = MemoryStore(), asyncio.Event()

        log = log_to(Gated(store, gate))
        await log.written()
        for n in range(3):
            log.append_nowait("connection", run="r", host=f"h{n}", port=443)
            await asyncio.sleep(0)
        durable = asyncio.ensure_future(log.written())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not durable.done()
        gate.set()
        await durable
        assert [entry["host"] async for _, entry in entries_of(store)] == ["h0", "h1", "h2"]
        assert not log._open

    run_async(played())


def test_an_entry_is_bounded() -> None:
    async def played() -> None:
        store = MemoryStore()
        log = log_to(store)
        await asyncio.gather(*(log.append("decision", run="r", call="x" * 1_000_000) for _ in range(100)))
        entries = [entry async for _, entry in entries_of(store)]
        assert len(entries) == 100
        assert entries[0]["call"].endswith("(998002 characters more)")

    asyncio.run(played())


def test_a_person_with_another_secret_writes_nothing() -> None:
    async def played() -> None:
        store = await written(2)
        with pytest.raises(CallerError, match="UNDERSTUDY_SECRET_FILE"):
            await log_to(store, OTHER, strict=True).append("answer", run="r")
        assert await fault_in(store) is None
        assert await log_to(store, strict=True).append("answer", run="r") == "3.0"

    asyncio.run(played())


def test_a_person_does_not_wait_for_a_store_that_is_away() -> None:
    class Away:
        def __getattr__(self, name: str) -> Any:
            async def called(*args: Any, **kwargs: Any) -> Any:
                raise StoreUnavailable("away")

            return called

    with pytest.raises(StoreUnavailable):
        run_async(log_to(Away(), strict=True).append("answer", run="r"))


def test_actors_go_on_behind_what_was_spoilt_and_it_stays_found() -> None:
    async def played() -> None:
        store = await written(3)
        store._shelves[SHELF][name_of(3)] = Document(name_of(3), 1, b"spoilt")
        assert await log_to(store).append("decision", run="r") == "4.0"
        assert (await fault_in(store)).number == 3

    asyncio.run(played())


# --- pruning -------------------------------------------------------------------------------------------------------


SPOILT = [
    b"",
    b"[]",
    b"null",
    b"[" * 100_000,
    b'{"n":1,"at":null,"prev":"","entries":[],"mac":""}',
    b'{"n":1,"at":1e400,"prev":"","entries":[],"mac":""}',
    b'{"n":1,"at":NaN,"prev":"","entries":[],"mac":""}',
    b'{"n":1,"at":1' + b"0" * 400 + b',"prev":"","entries":[],"mac":""}',
    b'{"n":' + b"9" * 5000 + b',"at":1,"prev":"","entries":[],"mac":""}',
    b'{"n":true,"at":1,"prev":"","entries":[],"mac":""}',
    b'{"n":1,"at":1,"prev":[],"entries":[{"kind":"decision"}],"mac":{}}',
    b'{"n":1,"at":1,"prev":[],"entries":[5],"mac":{}}',
    '{"n":1,"at":1,"prev":"é","entries":[{"kind":"decision","at":1,"run":"r"}],"mac":"é"}'.encode(),
]


@pytest.mark.parametrize("data", SPOILT, ids=lambda data: repr(data[:40]))
def test_whatever_stands_in_the_log_it_is_found_shown_and_written_behind(data: bytes) -> None:
    """Who can write to the store can spoil the log, and neither hide that nor stop who writes on."""

    async def played() -> None:
        for name in (name_of(1), name_of(3), "9" * 12, "9" * 30, "zzz"):
            store = await written(2)
            version = 1 if name == name_of(1) else 0
            await store.write_document(SHELF, name, data, version)
            log = log_to(store)
            places = [await log.append("decision", run="r", key=str(number)) for number in range(3)]
            assert len({*places}) == 3
            told = [entry async for _, entry in entries_of(store)]
            assert {"0", "1", "2"} <= {entry.get("key") for entry in told}
            assert await fault_in(store, Head()) is not None
            with pytest.raises(CallerError):
                await prune(store, SECRET, T + 1e6, T + 1e7)
            await store.write_document(ANCHORS, ANCHOR, data, 0)
            assert await fault_in(store, Head()) is not None

    run_async(played())


def test_what_was_pruned_leaves_a_note_under_which_the_rest_is_good() -> None:
    async def played() -> None:
        store, clock = MemoryStore(), Clock()
        log = log_to(store, clock=clock)
        for n in range(6):
            await log.append("decision", run=f"r{n}", key="k")
        segments = [read_segment(document.data) for document in store._shelves[SHELF].values()]
        assert await prune(store, SECRET, segments[3].at, T + 1e6) == 3
        assert list(store._shelves[SHELF]) == [name_of(n) for n in (4, 5, 6)]
        found = await verify(store, SECRET, noted=segments[5].head)
        assert (found.first, found.entries, found.fault) == (4, 3, None)
        assert await prune(store, SECRET, segments[3].at, T + 1e6) == 0

        assert await prune(store, SECRET, T + 1e5, T + 1e6) == 3  # all of it
        assert await store.shelves() == {"audit-anchor": 1}
        assert (await anchor_of(store, SECRET)).number == 6
        assert await log_to(store).append("decision", run="r") == "7.0"
        assert (await verify(store, SECRET)).first == 7
        assert await fault_in(store) is None

    asyncio.run(played())


def test_a_prune_that_died_in_the_middle_is_finished_by_the_next() -> None:
    async def played() -> None:
        store = await written()
        kept = dict(store._shelves[SHELF])
        last = read_segment(kept[name_of(4)].data)
        await prune(store, SECRET, last.at, T + 1e6)
        store._shelves[SHELF].update({name: kept[name] for name in (name_of(2), name_of(3))})
        assert await fault_in(store) is None
        assert await prune(store, SECRET, last.at, T + 1e6) == 2
        assert [*store._shelves[SHELF]] == [name_of(n) for n in (4, 5, 6)]

    asyncio.run(played())


def test_what_is_not_good_or_too_young_is_not_pruned() -> None:
    async def played() -> None:
        store = await written()
        with pytest.raises(CallerError, match="younger than 60 minutes"):
            await prune(store, SECRET, T, T + 60)
        del store._shelves[SHELF][name_of(2)]
        with pytest.raises(CallerError, match="segment 2 is missing"):
            await prune(store, SECRET, T + 1e5, T + 1e6)
        assert len(store._shelves[SHELF]) == 5

    asyncio.run(played())


def test_a_note_of_pruning_cannot_be_forged_or_taken_away() -> None:
    async def played() -> None:
        store = await written()
        third = read_segment(store._shelves[SHELF][name_of(4)].data)
        await prune(store, SECRET, third.at, T + 1e6)
        (anchor,) = store._shelves["audit-anchor"].values()
        moved = {**json.loads(anchor.data), "n": 5}
        store._shelves["audit-anchor"]["anchor"] = Document("anchor", 2, json.dumps(moved).encode())
        assert (await fault_in(store)).what == "forged"
        gone = read_segment(store._shelves[SHELF].pop(name_of(4)).data)  # as a prune of all that comes before would be
        for data in (write_anchor(gone.head, T, OTHER), json.dumps({"n": 4, "mac": gone.mac, "at": T}).encode()):
            store._shelves["audit-anchor"]["anchor"] = Document("anchor", 2, data)
            assert "not sealed with this deployment's secret" in str(await fault_in(store))
        del store._shelves["audit-anchor"]
        assert str(await fault_in(store)).startswith("segment 1 is missing")

    asyncio.run(played())

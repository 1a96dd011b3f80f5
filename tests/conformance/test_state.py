"""State through real runs on every backend: what is read back is what was written, and it takes the room it should."""

import asyncio
import datetime
import decimal
import enum
import sqlite3
import uuid
from pathlib import Path
from typing import Annotated, Any

from conformance.conftest import MakeWorld
from pydantic import BaseModel

from understudy import END, START, Graph, Last, Remove, append, merge, messages, open_store, union
from understudy.actors.alike import difference
from understudy.actors.checkpoint import restore
from understudy.actors.inline import run_inline_async
from understudy.actors.lazy import state_of
from understudy.actors.store import Store


class Color(enum.Enum):
    RED = "red"


class Part(BaseModel):
    id: str
    price: decimal.Decimal = decimal.Decimal("1.10")
    color: Color = Color.RED


class Odd(BaseModel):
    step: int = 0
    raw: bytes = b""
    huge: int = 0
    small: float = 0.0
    either: int | bool | float | str | None = None
    at: datetime.datetime | None = None
    took: datetime.timedelta = datetime.timedelta()
    ids: set[uuid.UUID] = set()
    pair: tuple[int, str] = (0, "")
    words: Annotated[list[str], append] = []
    seen: Annotated[set[bytes], union] = set()
    by_day: Annotated[dict[datetime.date, Part | None], merge] = {}
    chat: Annotated[list[Part], messages] = []


EITHER: list[Any] = [1, True, 1.0, "1", None, -0.0]
BERLIN = datetime.timezone(datetime.timedelta(hours=2))
WRITTEN: dict[str, Any] = {
    "raw": bytes(range(256)),
    "huge": -(10**1000),
    "small": 5e-324,
    "at": datetime.datetime(2026, 11, 24, 10, 30, 0, 123456, tzinfo=BERLIN),
    "took": datetime.timedelta(days=-3, microseconds=1),
    "ids": {uuid.UUID(int=5)},
    "pair": (1, "\u2028 \U0001f600 \x00"),
}

odd = Graph("odd", Odd)


@odd.node
def write(state: Odd) -> dict[str, Any]:
    n = state.step
    return {
        **WRITTEN,
        "step": n + 1,
        "either": EITHER[n],
        "words": [f"{n} \x7f \x00"],
        "seen": {bytes([n, 255])},
        "by_day": {datetime.date(2026, 1, n + 1): Part(id=str(n)) if n % 2 else None},
        "chat": [Part(id=str(n % 3), price=decimal.Decimal(n)), Remove(str(n - 2))],
    }


odd.edge(START, write).branch(write, lambda state: END if state.step == len(EITHER) else "write", ["write", END])


def test_what_a_store_gives_back_is_what_was_written(make_world: MakeWorld) -> None:
    async def go() -> None:
        world = make_world()
        try:
            store = await world.open()
            result = await run_inline_async(odd, {}, store=store)
            (record,) = await store.runs()
            rows = await store.history(record.thread_id)
            assert len(rows) == len(EITHER)
            for row in rows:
                await same(store, record.thread_id, row.checkpoint_id)
            assert difference(result, await stored(store, record.thread_id, record.head)) is None
        finally:
            await world.close()

    asyncio.run(go())


async def stored(store: Store, thread_id: str, checkpoint_id: str) -> Any:
    values = restore(await store.chain(thread_id, checkpoint_id)).values
    return state_of(Odd, odd.plan().channels, values)


async def same(store: Store, thread_id: str, checkpoint_id: str) -> None:
    state = await stored(store, thread_id, checkpoint_id)
    n = state.step - 1
    for name, value in WRITTEN.items():
        assert difference(value, getattr(state, name)) is None, name
    assert difference(EITHER[n], state.either) is None
    assert state.words == [f"{m} \x7f \x00" for m in range(n + 1)]
    assert state.seen == {bytes([m, 255]) for m in range(n + 1)}
    assert [day.day for day in state.by_day] == list(range(1, n + 2))


class Chat(BaseModel):
    log: Annotated[list[str], append] = []
    said: int = 0


chat = Graph("chat", Chat, step_limit=2000)


@chat.node
def say(state: Chat) -> dict[str, Any]:
    return {"log": [f"{state.said:06d}".ljust(500, "m")], "said": state.said + 1}


chat.edge(START, say).branch(say, lambda state: END if state.said == 1600 else "say", ["say", END])


def test_1600_messages_of_500_bytes_take_3_megabytes(tmp_path: Path) -> None:
    """Law 8, all of it: checkpoints, events, result and whatever SQLite adds. The data itself is 0.8 MB."""

    async def go() -> None:
        store = await open_store(f"sqlite:///{tmp_path}/store.db")
        result = await run_inline_async(chat, {}, store=store)
        await store.close()
        assert len(result.log) == 1600

    asyncio.run(go())
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size <= 3_000_000, f"{size} bytes"


kept = Graph("kept", Chat, step_limit=2000, keep=Last(5))
kept.node(say)
kept.edge(START, "say").branch("say", lambda state: END if state.said % 300 == 0 else "say", ["say", END])


def test_a_graph_that_keeps_five_checkpoints(make_world: MakeWorld) -> None:
    """Two runs on one thread: what is deleted is deleted, and what is left can be loaded, on every backend."""

    async def go() -> None:
        world = make_world()
        try:
            store = await world.open()
            await run_inline_async(kept, {}, store=store, thread="t")
            result = await run_inline_async(kept, {}, store=store, thread="t")
            rows = await store.history("t", limit=1000)
            assert 5 <= len(rows) < 300
            for row in rows:
                values = restore(await store.chain("t", row.checkpoint_id)).values
                assert len(state_of(Chat, kept.plan().channels, values).log) == row.step  # type: ignore[attr-defined]
            assert (result.said, len(result.log)) == (600, 600)
        finally:
            await world.close()

    asyncio.run(go())

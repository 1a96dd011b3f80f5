"""Checks: documents are written over the version that the writer knows, by one of several, once, whole."""

import asyncio
import contextlib
import pickle
from typing import Any

import pytest

from understudy.actors.documents import DOCUMENT_BYTES_MAX, NAME_BYTES_MAX, Document, Overtaken
from understudy.actors.errors import CallerError
from understudy.actors.store import Store
from understudy.cluster.testing.conformance.checks_crashes import TURNS
from understudy.cluster.testing.conformance.suite import T, World

DATA = bytes(range(256)) + b"\n7\n"


async def check_a_document_is_written_over_the_version_that_is_known(world: World) -> None:
    store, other = await world.open(), await world.open()
    assert await store.read_document("pins", "a") is None
    assert await store.write_document("pins", "a", DATA, 0) == 1
    assert await other.read_document("pins", "a") == Document("a", 1, DATA)
    assert await other.write_document("pins", "a", b"", 1) == 2
    assert await store.read_document("pins", "a") == Document("a", 2, b"")
    for over in (0, 1, 3):
        with pytest.raises(Overtaken, match="document 'a' of shelf 'pins' is at version 2") as told:
            await store.write_document("pins", "a", b"mine", over)
        assert told.value.found == Document("a", 2, b"")
        assert pickle.loads(pickle.dumps(told.value)).found == told.value.found
    with pytest.raises(Overtaken, match="is not there, not at version 1") as told:
        await store.write_document("pins", "b", b"mine", 1)
    assert told.value.found is None
    assert await store.read_document("pins", "b") is None
    assert await store.read_document("other shelf", "a") is None


async def check_the_same_write_again_is_answered_alike(world: World) -> None:
    store = await world.open()
    for over, data in ((0, b"one"), (1, b"two"), (2, b"two")):
        for client in (store, await world.open(), store):
            assert await client.write_document("s", "a", data, over) == over + 1
    assert await store.read_document("s", "a") == Document("a", 3, b"two")
    with pytest.raises(Overtaken):
        await store.write_document("s", "a", b"two", 0)  # the same bytes, over what was long ago


async def check_an_erased_document_is_gone_and_starts_anew(world: World) -> None:
    store, other = await world.open(), await world.open()
    await store.erase_document("s", "a", 1)  # never there
    await store.write_document("s", "a", b"one", 0)
    await store.write_document("s", "a", b"two", 1)
    for over in (0, 1, 3):
        with pytest.raises(Overtaken, match="at version 2") as told:
            await other.erase_document("s", "a", over)
        assert told.value.found == Document("a", 2, b"two")
    await other.erase_document("s", "a", 2)
    await store.erase_document("s", "a", 2)  # the reply was lost
    assert await store.read_document("s", "a") is None
    assert await store.documents("s") == []
    assert await store.shelves() == {}
    assert await store.write_document("s", "a", b"three", 0) == 1


async def check_documents_are_listed_in_the_order_of_their_names(world: World) -> None:
    store, other = await world.open(), await world.open()
    names = ["", *sorted(["10", "9", "A", "a", "a b", "ab", "ä", "z", "🎭", "\uffee", "{p3f}"], key=str.encode)]
    for name in reversed(names[1:]):
        await store.write_document("ünï {p00}", name, name.encode(), 0)
    await store.write_document("beside", "b", b"", 0)
    assert await other.shelves() == {"beside": 1, "ünï {p00}": 11}
    for n, after in enumerate(names):
        behind = [Document(name, 1, name.encode()) for name in names[n + 1 :]]
        assert await store.documents("ünï {p00}", after) == behind
        assert await store.documents("ünï {p00}", after, 2) == behind[:2]
        assert await store.documents("ünï {p00}", after, 2, last=True) == behind[-2:]
    assert await store.documents("ünï {p00}", "a ") == await store.documents("ünï {p00}", "a", 100)
    assert await store.documents("nowhere", last=True) == []


async def check_what_cannot_be_kept_is_refused(world: World) -> None:
    store = await world.open()
    await store.write_document("s", "n" * NAME_BYTES_MAX, b"x" * DOCUMENT_BYTES_MAX, 0)
    assert (await store.documents("s"))[0].data == b"x" * DOCUMENT_BYTES_MAX
    with pytest.raises(CallerError, match=f"has {DOCUMENT_BYTES_MAX + 1} bytes, the limit is {DOCUMENT_BYTES_MAX}"):
        await store.write_document("s", "a", b"x" * (DOCUMENT_BYTES_MAX + 1), 0)
    for shelf, name in (("s", ""), ("", "a"), ("s", "a\0"), ("s", "\ud800"), ("s", "ä" * 257), ("s" * 513, "a")):
        with pytest.raises(CallerError, match=r"its (name|shelf) has"):
            await store.write_document(shelf, name, b"", 0)
    assert await store.shelves() == {"s": 1}


async def check_of_several_writers_one_goes_through(world: World) -> None:
    """Nobody's writing is lost: each adds to what there is, and looks again when it was overtaken."""
    clients = [await world.open() for _ in range(4)]

    async def add(client: Store, mark: str) -> int:
        lost = 0
        for n in range(6):
            found = await client.read_document("s", "log")
            while True:
                data, over = (found.data, found.version) if found else (b"", 0)
                try:
                    await client.write_document("s", "log", data + f"{mark}{n} ".encode(), over)
                    break
                except Overtaken as error:
                    found, lost = error.found, lost + 1
        return lost

    await asyncio.gather(*(add(client, mark) for client, mark in zip(clients, "abcd", strict=True)))
    document = await clients[0].read_document("s", "log")
    assert document
    assert document.version == 24
    assert sorted(document.data.decode().split()) == [f"{mark}{n}" for mark in "abcd" for n in range(6)]


async def check_of_several_creators_one_goes_through(world: World) -> None:
    clients = [await world.open() for _ in range(4)]
    for n in range(8):
        answers: list[Any] = await asyncio.gather(
            *(client.write_document("s", f"{n}", f"{i}".encode(), 0) for i, client in enumerate(clients)),
            return_exceptions=True,
        )
        assert sorted(map(str, answers))[0] == "1"
        refused = [answer for answer in answers if isinstance(answer, Overtaken)]
        assert len(refused) == 3
        document = await clients[0].read_document("s", f"{n}")
        assert all(error.found == document for error in refused)


async def check_eraser_and_writer_race(world: World) -> None:
    store, other = await world.open(), await world.open()
    for n in range(8):
        await store.write_document("s", f"{n}", b"one", 0)
        written, erased = await asyncio.gather(
            store.write_document("s", f"{n}", b"two", 1), other.erase_document("s", f"{n}", 1), return_exceptions=True
        )
        assert isinstance(written, Overtaken) != isinstance(erased, Overtaken)
        assert (await store.read_document("s", f"{n}") is None) == isinstance(written, Overtaken)


async def check_a_writer_that_dies_in_the_middle_is_whole_or_nothing(world: World) -> None:
    store = await world.open()
    for turns in TURNS:
        for n, (verb, data) in enumerate((("write", DATA * 100), ("write", b""), ("erase", b""))):
            name = f"{turns}"
            client = await world.open_client()
            call = client.write_document("s", name, data, n) if verb == "write" else client.erase_document("s", name, n)
            asked = asyncio.ensure_future(call)
            for _ in range(turns):
                await asyncio.sleep(0)
            asked.cancel()
            await asyncio.wait([asked])
            await client.close()
            if verb == "write":
                assert await store.write_document("s", name, data, n) == n + 1
                assert await store.read_document("s", name) == Document(name, n + 1, data)
            else:
                await store.erase_document("s", name, n)
                assert await store.read_document("s", name) is None
    assert await store.shelves() == {}


async def check_documents_outlive_threads_and_sweeps(world: World) -> None:
    store = await world.open()
    await store.write_document("s", "thread", b"data", 0)
    await store.sweep(T * 2)
    await store.delete_thread("thread")
    assert await store.read_document("s", "thread") == Document("thread", 1, b"data")


async def check_a_document_is_adopted_as_it_is(world: World) -> None:
    store, other = await world.open(), await world.open()
    assert await store.adopt_document("s", Document("a", 7, DATA))
    assert not await other.adopt_document("s", Document("a", 8, b""))
    assert await other.documents("s") == [Document("a", 7, DATA)]
    assert await store.shelves() == {"s": 1}
    with contextlib.suppress(Overtaken):
        await store.write_document("s", "a", b"", 6)
    assert await other.write_document("s", "a", b"next", 7) == 8

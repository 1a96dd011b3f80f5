"""What only the Redis store has to prove: its keys, lost replies, a server that is killed, and unsafe settings."""

import asyncio
import itertools
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import hiredis
import pytest
from redis.crc import key_slot

from support.servers import RedisServer
from support.waiting import run_async, wait_until, wait_until_async
from understudy.actors.errors import CallerError, Conflict, Fenced, StoreUnavailable, UnsafeStore
from understudy.actors.records import (
    Commit,
    Event,
    Interrupt,
    NewCheckpoint,
    Receipt,
    RunRecord,
    partition_of_thread,
)
from understudy.actors.store import BLOB_KEPT_S
from understudy.cluster.doctor import check_store
from understudy.cluster.settings import Settings
from understudy.cluster.stores import redis_address, redis_anew, redis_client, redis_link
from understudy.cluster.stores.redis import RedisStore
from understudy.cluster.stores.redis_client import RedisClient
from understudy.cluster.stores.redis_codec import BEATS, Keys
from understudy.cluster.stores.redis_rights import COMMANDS
from understudy.cluster.stores.redis_safety import RedisInfo, check_safety
from understudy.cluster.stores.redis_scripts import SCRIPTS
from understudy.cluster.testing.conformance.suite import T, World, checks, create, new_run

pytestmark = [pytest.mark.live, pytest.mark.xdist_group("servers")]

OK = 'checkpoint_commits_total{result="ok"}'
DUPLICATE = 'checkpoint_commits_total{result="duplicate"}'


def commit_of(run: RunRecord, seq: int, **changes: Any) -> Commit:
    """A finished superstep: a checkpoint, an event, a counter."""
    parent = f"c{seq - 1}" if seq > 1 else ""
    commit = Commit(
        run_id=run.run_id,
        epoch=run.epoch,
        seq=seq,
        at=T + seq,
        status="running",
        step=seq,
        checkpoint=NewCheckpoint(f"c{seq}", parent, seq, snapshot=seq % 8 == 1, body=f'{{"n":{seq}}}'),
        events=(Event("checkpoint", T + seq, {"step": seq}),),
        counters={"steps": 1},
    )
    return replace(commit, **changes)


async def owned(store: RedisStore, name: str = "1", thread: str = "thread") -> RunRecord:
    run = await create(store, name, thread)
    return await store.claim(run.run_id, "owner", 60, T)


async def kinds(store: RedisStore, run_id: str) -> list[str]:
    return [event.kind for event in await store.events(run_id)]


def receipt_of(run: RunRecord, **changes: Any) -> Receipt:
    receipt = Receipt(
        key="k", run_id=run.run_id, checkpoint_id="", task_id="task", tool="pay", digest="d", state="started",
        sandbox="s", token="t", at=T,
    )  # fmt: skip
    return replace(receipt, **changes)


# --- keys ------------------------------------------------------------------------------------------------------------


def keys_of(command: bytes) -> list[str] | None:
    """The keys that a packed EVALSHA declares; None for another command."""
    reader = hiredis.Reader(encoding="utf-8", errors="replace")
    reader.feed(command)
    name, *rest = reader.gets()
    return rest[2 : 2 + int(rest[1])] if name == "EVALSHA" else None


def acl_pattern(key: str) -> str:
    """A pattern of Redis' ACL that fits this key; one cannot write a space in it."""
    return "~" + re.sub(r"\s", "?", re.sub(r"([*?\[\]\\])", r"\\\1", key))


def run_suite(url: str, server: RedisServer) -> None:
    for check in checks():
        server.flush()
        world = World(lambda: RedisStore.open(url))

        async def go(world: World = world, check: Callable[[World], Awaitable[None]] = check) -> None:
            try:
                await check(world)
            finally:
                await world.close()

        try:
            run_async(go())
        except BaseException as error:
            error.add_note(f"in {check.__name__}")
            raise


def test_scripts_touch_declared_keys_of_one_slot_only(
    redis_server: RedisServer, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis itself checks it: before each script its user is allowed the declared keys, and no other one."""
    admin = redis_server.client()
    real_ask = RedisClient.ask
    called: set[str] = set()
    allowed: list[str] = []

    async def ask(self: RedisClient, *commands: bytes, text: bool = True) -> list[Any]:
        answers = []
        async with turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):  # all clients share the one user
            for keys, some in itertools.groupby(commands, keys_of):
                if keys is not None:
                    assert len({key_slot(key.encode()) for key in keys}) <= 1, keys
                wanted = ["~*"] if keys is None else [acl_pattern(key) for key in (*keys, BEATS)]  # see redis_rights
                if wanted != allowed:
                    admin.execute_command("ACL", "SETUSER", "narrow", "resetkeys", *wanted)
                    allowed[:] = wanted
                answers += await real_ask(self, *some, text=text)
            called.update(name for name, script in SCRIPTS.items() if script.sha.encode() in b"".join(commands))
        return answers

    turns: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}
    monkeypatch.setattr(RedisClient, "ask", ask)
    admin.execute_command("ACL", "SETUSER", "narrow", "on", ">secret", "+@all", "&*", "~*")
    try:
        run_suite(redis_url.replace("://", "://narrow:secret@"), redis_server)
    finally:
        admin.execute_command("ACL", "DELUSER", "narrow")
    assert called == set(SCRIPTS) - {"denied"}  # which each node is asked for itself


def test_what_a_commit_sends_and_touches_does_not_grow(redis_server: RedisServer, redis_url: str) -> None:
    admin = redis_server.client()

    def sent() -> int:
        return int(admin.info("stats")["total_net_input_bytes"])  # this question has the same length every time

    async def go() -> None:
        store = await RedisStore.open(redis_url)
        run = await owned(store)
        sizes = []
        for seq in range(1, 400):
            await store.begin(receipt_of(run, key=f"k{seq}", checkpoint_id=run.head), 1, [], {}, T)
            before = sent()
            await store.commit(commit_of(run, seq))
            sizes.append(sent() - before)
            run = replace(run, head=f"c{seq}")
        assert max(sizes[2:]) - min(sizes) < 40, sizes  # a digit here and there; the first may have loaded scripts
        assert [key for key in admin.scan_iter() if ":effects:" in key] == []
        assert len((await store.load(run.run_id)).chain) <= 8
        await store.close()

    run_async(go())


def test_what_outlives_threads_stays(redis_server: RedisServer, redis_url: str) -> None:
    async def go() -> None:
        store = await RedisStore.open(redis_url)
        run = await owned(store)
        await store.put_blob("b1", bytes(range(256)), T)
        await store.beat("member", "{}", T)
        await store.commit(commit_of(run, 1, status="succeeded", retain_s=10))
        assert await store.sweep(T + 10.5) == 0
        assert await store.sweep(T + 11) == 1
        partition = f"u:{{p{partition_of_thread('thread'):02x}}}:"
        blob = Keys.of_blob("b1").shared("blob:b1", "blobs")
        assert set(redis_server.client().scan_iter()) == {*blob, BEATS, f"{partition}counters"}
        assert await store.get_blob("b1") == bytes(range(256))
        await store.close()

    run_async(go())


def test_a_blob_that_is_put_again_during_a_sweep_stays(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at who names it and its end, somebody puts it again and starts a run that names it."""
    real_ask = RedisClient.ask
    raced: list[RunRecord] = []

    async def go() -> None:
        store, other = [await RedisStore.open(redis_url) for _ in range(2)]
        for digest in ("old", "gone"):
            await store.put_blob(digest, b"code", T)

        async def ask(self: RedisClient, *commands: bytes, text: bool = True) -> list[Any]:
            if SCRIPTS["drop_blob"].sha.encode() in commands[0] and not raced:
                await other.put_blob("old", b"code", T + BLOB_KEPT_S + 1)
                raced.append(await create(other, now=T + BLOB_KEPT_S + 1, blobs=("old",)))
            return await real_ask(self, *commands, text=text)

        monkeypatch.setattr(RedisClient, "ask", ask)
        await store.sweep(T + BLOB_KEPT_S)
        assert len(raced) == 1
        assert await store.blobs() == ["old"]
        await store.sweep(T + 9 * BLOB_KEPT_S)
        assert await store.get_blob("old") == b"code"  # named
        await store.cancel(raced[0].run_id, T)
        await store.delete_thread("thread")
        await store.sweep(T + 9 * BLOB_KEPT_S)
        assert await store.blobs() == []
        for each in (store, other):
            await each.close()

    run_async(go())


# --- lists longer than Lua's stack, pages, scripts that were forgotten, loops that changed --------------------------


def test_long_lists(redis_url: str) -> None:
    async def go() -> None:
        store = await RedisStore.open(redis_url)
        run = await owned(store)
        events = tuple(Event("node_finished", T, {"n": n}) for n in range(9000))
        writes = {f"task-{n}": "{}" for n in range(9000)}
        await store.commit(commit_of(run, 1, checkpoint=None, events=events, writes=writes))
        assert (await store.load(run.run_id)).writes == writes
        assert [event.n for event in await store.events(run.run_id, limit=10_000)] == list(range(1, 9002))
        for seq in range(2, 460):
            await store.commit(commit_of(run, seq))
        assert [row.step for row in await store.history("thread")] == list(range(459, 1, -1))
        assert [row.step for row in await store.history("thread", limit=201)] == list(range(459, 258, -1))
        for n in range(250):
            await create(store, f"later-{n:03}", now=T + 1000 + n)
        names = [f"later-{n:03}" for n in range(249, -1, -1)]
        assert [r.run_id[4:] for r in await store.runs(thread_id="thread", limit=205)] == names[:205]
        assert [r.run_id for r in await store.runs("running", thread_id="thread")] == [run.run_id]
        await store.close()

    run_async(go())


def test_forgotten_scripts_are_loaded_again(redis_server: RedisServer, redis_url: str) -> None:
    async def go() -> None:
        store = await RedisStore.open(redis_url)
        runs = [await owned(store, f"{n}", f"thread-{n}") for n in range(100)]
        redis_server.client().script_flush()
        await store.commit(commit_of(runs[0], 1))
        redis_server.client().script_flush()
        renewed = await store.renew([(run.run_id, 1) for run in runs] + [(runs[7].run_id, 2)], 60, T)
        assert renewed.lost == (runs[7].run_id,)
        assert len(await store.runs()) == 100
        await store.close()

    run_async(go())


def test_a_store_serves_one_loop_after_another(redis_url: str) -> None:
    store = run_async(RedisStore.open(redis_url))
    run = run_async(owned(store))
    run_async(store.wait_work(0.01))
    assert run_async(store.run(run.run_id)) == run
    run_async(store.wait_work(0.01))
    run_async(store.close())


# --- lost replies ----------------------------------------------------------------------------------------------------


class Proxy:
    """Stands between store and server, and loses the next reply when told to: the command was executed."""

    def __init__(self) -> None:
        self.lose = ""
        """`cut`: drop the reply and the connection; `hang`: drop it and say nothing more, as a network does."""
        self.lost = 0
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def to(self, server: RedisServer) -> AsyncIterator["Proxy"]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", server.port)
            for source, target, is_reply in ((reader, up_writer, False), (up_reader, writer, True)):
                task = asyncio.create_task(self._pump(source, target, is_reply))
                self._tasks.add(task)

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0"
        try:
            yield self
        finally:
            listener.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, is_reply: bool) -> None:
        hung = False
        while data := await source.read(1 << 20):
            if is_reply and self.lose:
                hung, self.lose, self.lost = self.lose == "hang", "", self.lost + 1
                if not hung:
                    break
            if not hung:
                target.write(data)
        target.close()


@asynccontextmanager
async def behind_proxy(server: RedisServer) -> AsyncIterator[tuple[RedisStore, Proxy]]:
    async with Proxy().to(server) as proxy:
        store = await RedisStore.open(proxy.url)
        yield store, proxy
        await store.close()


def test_every_verb_applies_once_when_its_reply_is_lost(redis_server: RedisServer, redis_url: str) -> None:
    async def go() -> None:
        async with behind_proxy(redis_server) as (store, proxy):

            async def lossy(verb: Awaitable[Any]) -> Any:
                lost_before, proxy.lose = proxy.lost, "cut"
                try:
                    return await verb
                finally:
                    assert proxy.lost == lost_before + 1

            created = await lossy(store.create(new_run(), [Event("created", T)], {"created": 1}, T))
            assert created.status == "queued"
            run = await lossy(store.claim(created.run_id, "owner", 60, T))
            assert (run.epoch, run.owner) == (1, "owner")
            with pytest.raises(Conflict):
                await store.claim(run.run_id, "owner", 60, T)  # another call of the same owner is no repetition

            begun = await lossy(store.begin(receipt_of(run), 1, [Event("tool_started", T)], {"begun": 1}, T))
            assert begun.fresh
            finished = (run.run_id, "k", "", "t", "{}", [Event("tool_finished", T)], {"finished": 1}, T)
            assert await lossy(store.finish(*finished)) is False  # done already: by itself
            assert (await store.receipt(run.run_id, "k", "")) == receipt_of(run, state="done", outcome="{}")
            await store.begin(receipt_of(run, key="k2"), 1, [], {}, T)
            assert await lossy(store.forget(run.run_id, "k2", "", "t", [], {"forgotten": 1})) is False

            assert (await lossy(store.commit(commit_of(run, 1)))).duplicate
            with pytest.raises(Fenced):
                await lossy(store.requeue(run.run_id, 1, T, T, [Event("crashed", T)], {"crashed": 1}))
            requeued = await store.run(run.run_id)
            assert (requeued.status, requeued.epoch, requeued.restarts) == ("queued", 2, 1)

            run = await store.claim(run.run_id, "owner", 60, T)
            question = Interrupt("i1", "task", "node", "question", {"approve": 1.5}, asked_at=T)
            waiting = commit_of(run, 2, checkpoint=None, status="waiting", interrupts=(question,))
            assert (await lossy(store.commit(waiting))).duplicate
            resumed = await lossy(store.resume(run.run_id, "i1", "true", T))
            assert (resumed.status, resumed.answers) == ("queued", {"i1": "true"})
            cancelled = await lossy(store.cancel(run.run_id, T))
            assert (cancelled.status, cancelled.epoch) == ("cancelled", 4)

            assert await kinds(store, run.run_id) == [
                "created", "claimed", "tool_started", "tool_finished", "checkpoint", "crashed", "claimed", "checkpoint",
                "answered", "finished",
            ]  # fmt: skip
            assert await store.counters() == {
                "created": 1, "begun": 1, "finished": 1, "forgotten": 1, "steps": 2, "crashed": 1, OK: 2, DUPLICATE: 2,
                'fence_rejections_total{op="requeue"}': 1,
                'runs_finished_total{graph="refund",status="cancelled"}': 1,
            }  # fmt: skip
            await lossy(store.delete_thread("thread"))
            assert [key for key in redis_server.client().scan_iter() if not key.endswith(":counters")] == []

    run_async(go())


def test_a_reply_that_never_comes(redis_server: RedisServer, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "SILENCE_S", 0.1)

    async def go() -> None:
        async with behind_proxy(redis_server) as (store, proxy):
            run = await owned(store)
            proxy.lose = "hang"
            assert (await store.commit(commit_of(run, 1))).duplicate
            assert proxy.lost == 1

    run_async(go())


# --- a server that dies ----------------------------------------------------------------------------------------------


def test_half_a_transaction_at_the_end_of_the_file_is_never_executed() -> None:
    """A SIGKILL may leave one. Redis itself would execute it, at its second start from then on (7.0.15 does)."""
    with RedisServer() as server:

        async def committed(seq: int) -> None:
            store = await RedisStore.open(server.url)
            run = await owned(store) if seq == 1 else await store.run(run_id)
            await store.commit(commit_of(run, seq))
            ids[:] = [run.run_id]
            await store.close()

        async def told() -> tuple[Any, ...]:
            store = await RedisStore.open(server.url)
            counters, [run_id] = await store.counters(), ids
            found = counters["steps"], counters[OK], await kinds(store, run_id)
            await store.close()
            return found

        def is_anew() -> bool:
            info = server.client().info("persistence")
            return bool(info["aof_rewrites"] and not info["aof_rewrite_in_progress"])

        ids: list[str] = []
        run_async(committed(1))
        wait_until(is_anew, 10, "the file to be anew")
        server.kill()
        file = max(Path(server.directory, "appendonlydir").glob("*.incr.aof"))
        [*_, transaction] = file.read_bytes().split(b"*1\r\n$5\r\nMULTI\r\n")
        half = transaction[: transaction.rindex(b"HINCRBY")]  # with its event, and its first counter
        assert b"RPUSH" in half
        assert b"HINCRBY" in half
        with file.open("ab") as end:
            end.write(b"*1\r\n$5\r\nMULTI\r\n" + half)
        server.start()
        run_id = ids[0]
        run_async(committed(2))
        wait_until(is_anew, 10, "the file to be anew")
        server.kill()
        server.start()
        assert run_async(told()) == (2, 2, ["claimed", "checkpoint", "checkpoint"])


def test_one_that_cannot_begin_its_file_anew_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_anew, "PATIENCE_S", 0.1)
    with RedisServer() as server:
        admin = server.client()
        files = Path(server.directory, "appendonlydir")

        async def told() -> str:
            try:
                store = await RedisStore.open(server.url, within_s=0.2)
            except StoreUnavailable as error:
                return str(error)
            note = (await store.info()).detail.get("note", "")
            await store.close()
            return note

        files.rename(files.with_suffix(".away"))
        files.write_text("in its place, as on a full disk")
        assert "has to write its append-only file anew first: is its disk full?" in run_async(told())
        files.unlink()
        files.with_suffix(".away").rename(files)
        admin.set("long", "to save")
        admin.config_set("rdb-key-save-delay", 10_000_000)
        admin.bgsave()
        assert "it takes a snapshot" in run_async(told())
        admin.config_set("rdb-key-save-delay", 0)
        [saving] = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        os.kill(int(saving), signal.SIGKILL)
        wait_until(lambda: not admin.info("persistence")["rdb_bgsave_in_progress"], 10, "the snapshot to end")
        assert run_async(told()) == ""
        assert admin.info("persistence")["aof_rewrites"] == 1


def test_one_that_may_not_begin_its_file_anew_is_told_of() -> None:
    with RedisServer() as server:
        server.client().execute_command("ACL", "SETUSER", "default", "-bgrewriteaof")
        told = run_async(check_store(Settings(store=server.url)))
        assert (told.state, "+bgrewriteaof" in told.remedy) == ("warn", True)


def test_kill_and_restart_under_concurrent_commits(redis_server: RedisServer, redis_url: str) -> None:
    """Three times SIGKILL: every commit that was in flight waits and is applied once, none is lost."""
    commits, workers, kills = 150, 24, 3

    async def go() -> None:
        stores = [await RedisStore.open(redis_url) for _ in range(4)]
        runs = [await owned(stores[n % 4], f"{n}", f"thread-{n}") for n in range(workers)]
        done = 0

        async def work(store: RedisStore, run: RunRecord) -> None:
            nonlocal done
            for seq in range(1, commits + 1):
                await store.commit(commit_of(run, seq, counters={"steps": 1, "seconds_sum": 0.25}))
                done += 1

        async def trouble() -> None:
            for kill in range(1, kills + 1):

                async def far_enough(share: int = kill) -> bool:
                    return done > share * commits * workers / (kills + 1)

                await wait_until_async(far_enough, 60, "commits")
                await asyncio.to_thread(redis_server.kill)
                await asyncio.to_thread(redis_server.start)

        await asyncio.gather(trouble(), *(work(stores[n % 4], run) for n, run in enumerate(runs)))
        total = float(workers * commits)
        counters = await stores[0].counters()
        assert (counters["steps"], counters["seconds_sum"], counters[OK]) == (total, total / 4, total)
        for run in runs:
            loaded = await stores[1].load(run.run_id)
            assert (loaded.run.seq, loaded.run.head) == (commits, f"c{commits}")
            steps = [event.data["step"] for event in await stores[2].events(run.run_id, after=1)]
            assert steps == list(range(1, commits + 1))
            assert [row.step for row in await stores[3].history(loaded.run.thread_id)] == steps[::-1]
        for store in stores:
            await store.close()

    run_async(go(), timeout_s=120)


def test_news_of_work_comes_again_after_a_restart(redis_server: RedisServer, redis_url: str) -> None:
    async def go() -> None:
        here, there = [await RedisStore.open(redis_url) for _ in range(2)]

        async def rings(thread: str) -> None:
            await here.wait_work(5)  # subscribes, or says what it heard before
            heard = asyncio.create_task(here.wait_work(30))
            await create(there, thread=thread)
            async with asyncio.timeout(5):
                await heard

        await rings("a")
        await asyncio.to_thread(redis_server.kill)
        async with asyncio.timeout(5):
            await here.wait_work(30)  # told at once that it hears no more
            await here.wait_work(0.5)  # nobody there: no error
        await asyncio.to_thread(redis_server.start)
        await rings("b")
        for store in (here, there):
            await store.close()

    run_async(go())


def test_a_server_that_stays_away(monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer, redis_url: str) -> None:
    monkeypatch.setattr(redis_client, "GIVE_UP_S", 0.5)

    async def go() -> None:
        store = await RedisStore.open(redis_url)
        redis_server.kill()
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{redis_server.port}"):
            await store.counts()
        with pytest.raises(StoreUnavailable):
            await RedisStore.open(redis_url, within_s=0.5)
        redis_server.start()
        assert (await store.counts())["queued"] == 0
        await store.close()

    run_async(go())


def test_what_answers_is_no_redis() -> None:
    """E.g. the port of a web server: said at once, and not as a bug of ours."""

    async def go() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(CallerError, match="is no Redis"):
            await RedisStore.open(f"redis://127.0.0.1:{port}/0")
        server.close()

    run_async(go())


# --- errors of the server --------------------------------------------------------------------------------------------


@asynccontextmanager
async def fake_server(*answers: str) -> AsyncIterator[RedisClient]:
    """A client of a server that greets, then gives these answers, one a command, the last one for ever."""
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands = hiredis.Reader(encoding="utf-8")
        while data := await reader.read(1 << 16):
            commands.feed(data)
            while command := commands.gets():
                greets = command[0] in ("AUTH", "CLIENT", "SELECT")
                writer.write(f"{'+OK' if greets else left.pop(0) if len(left) > 1 else left[0]}\r\n".encode())
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"redis://user:secret@127.0.0.1:{listener.sockets[0].getsockname()[1]}/0"
    client = RedisClient(redis_address.Address.of_url(url), ())
    try:
        yield client
    finally:
        await client.close()
        listener.close()


HEALING = (
    "-LOADING Redis is loading the dataset in memory",
    "-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "-READONLY You can't write against a read only replica.",
    "-TRYAGAIN Multiple keys request during rehashing of slot",
)


def test_what_time_heals_is_tried_again() -> None:
    async def go() -> None:
        async with fake_server(*HEALING, "+PONG") as client:
            assert await client.ask(redis_link.pack("PING")) == ["PONG"]

    run_async(go())


@pytest.mark.parametrize(
    ("answer", "error", "remedy"),
    [
        ("-OOM command not allowed when used memory > 'maxmemory'.", StoreUnavailable, "maxmemory"),
        ("-MISCONF Errors writing to the AOF file: No space left on device", StoreUnavailable, "disk"),
        ("-NOREPLICAS Not enough good replicas to write.", StoreUnavailable, "replicas"),
        ("-NOAUTH Authentication required.", CallerError, "redis://user:password@"),
        ("-NOPERM this user has no permissions to run the 'evalsha' command", CallerError, "'user'"),
        ("-ERR wrong number of arguments for 'ping' command", AssertionError, "wrong number"),
    ],
)
def test_other_errors_say_who_must_act(answer: str, error: type[Exception], remedy: str) -> None:
    async def go() -> None:
        async with fake_server(answer) as client:
            with pytest.raises(error, match=remedy) as raised:
                await client.ask(redis_link.pack("PING"))
            assert "secret" not in str(raised.value)

    run_async(go())


# --- opening ---------------------------------------------------------------------------------------------------------


def info_of(**changes: str) -> RedisInfo:
    safe = {
        "redis_version": "7.0.15", "role": "master", "aof_enabled": "1", "aof_last_write_status": "ok",
        "maxmemory": "0", "maxmemory_policy": "noeviction",
    }  # fmt: skip
    return RedisInfo("redis://host:6379/0", safe | changes, "always")


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"aof_enabled": "0"}, "CONFIG SET appendonly yes"),
        (
            {"maxmemory": "100", "maxmemory_policy": "allkeys-lru"},
            "allkeys-lru.*CONFIG SET maxmemory-policy noeviction",
        ),
        ({"aof_last_write_status": "err"}, "free space"),
        ({"redis_version": "6.2.14"}, "6.2.14.*7.0 or newer"),
        ({"role": "slave", "master_host": "primary", "master_port": "6379"}, "replica of primary:6379"),
    ],
)
def test_unsafe_settings_are_refused_with_the_remedy(changes: dict[str, str], remedy: str) -> None:
    with pytest.raises(UnsafeStore, match=remedy):
        check_safety(info_of(**changes), allow_volatile=False)


def test_safe_settings_are_not_refused() -> None:
    check_safety(info_of(), allow_volatile=False)
    check_safety(info_of(maxmemory_policy="allkeys-lru"), allow_volatile=False)  # nothing to evict for
    check_safety(info_of(redis_version="7.2.4", valkey_version="8.1.0"), allow_volatile=False)
    check_safety(info_of(aof_enabled="0"), allow_volatile=True)
    with pytest.raises(UnsafeStore):
        check_safety(info_of(role="slave"), allow_volatile=True)


def test_a_volatile_server_is_refused_unless_allowed(redis_server: RedisServer, redis_url: str) -> None:
    admin = redis_server.client()

    async def go() -> None:
        admin.config_set("appendonly", "no")
        with pytest.raises(UnsafeStore, match="appendonly no"):
            await RedisStore.open(redis_url)
        store = await RedisStore.open(redis_url, allow_volatile=True)
        assert not (await store.info()).durable
        await store.close()

    try:
        run_async(go())
    finally:
        admin.config_set("appendonly", "yes")
        wait_until(lambda: admin.info("persistence")["aof_rewrite_in_progress"] == 0, 10, "the append-only file")


def test_info_and_credentials(redis_server: RedisServer, redis_url: str) -> None:
    admin = redis_server.client()
    admin.execute_command("ACL", "SETUSER", "managed", "on", ">secret", "+@all", "-config", "&*", "~*")
    managed = redis_url.replace("://", "://managed:secret@")

    async def go() -> None:
        store = await RedisStore.open(redis_url)
        info = await store.info()
        assert (info.kind, info.where, info.durable) == ("redis", redis_url, True)
        assert info.detail["appendfsync"] == "always"
        admin.config_set("maxmemory-policy", "allkeys-lru")  # nothing is dropped before there is a maxmemory
        told = await check_store(Settings(store=redis_url))
        assert (told.state, "maxmemory-policy noeviction" in told.remedy) == ("warn", True)
        admin.config_set("maxmemory-policy", "noeviction")
        assert (await check_store(Settings(store=redis_url))).state == "ok"
        await store.close()
        store = await RedisStore.open(managed)  # CONFIG is hidden
        info = await store.info()
        assert (info.where, info.durable, info.detail["appendfsync"]) == (redis_url, True, "unknown")
        await owned(store)
        await store.close()
        with pytest.raises(CallerError, match="'managed'") as raised:
            await RedisStore.open(managed.replace("secret", "wrong-word"))
        assert "wrong-word" not in str(raised.value)
        admin.execute_command("ACL", "SETUSER", "managed", "+config", "-evalsha")
        with pytest.raises(CallerError, match=r"ACL SETUSER managed \+evalsha`"):
            await RedisStore.open(managed)

    try:
        run_async(go())
    finally:
        admin.config_set("maxmemory-policy", "noeviction")
        admin.execute_command("ACL", "DELUSER", "managed")


def test_a_user_who_may_not_do_all_that_scripts_do_is_refused(redis_server: RedisServer, redis_url: str) -> None:
    """Or else a script would stop in its middle, where Redis undoes nothing: a run without its place in the queue."""
    admin = redis_server.client()
    url = redis_url.replace("://", "://narrow:secret@")

    async def refused(*rights: str) -> str:
        admin.execute_command("ACL", "SETUSER", "narrow", "reset", "on", ">secret", "~*", "&*", "+@all", *rights)
        with pytest.raises(CallerError, match="denies user 'narrow'") as raised:
            await RedisStore.open(url)
        return str(raised.value).rpartition(" narrow ")[2].rstrip("`")

    async def go() -> None:
        assert await refused("resetchannels") == "+subscribe +publish '&understudy:work'"  # as a new user is made
        for name in COMMANDS:
            given = await refused(f"-{name}")
            assert given.startswith(f"+{name.lower()}")
        assert (await refused("resetkeys", "~of-others:*")).endswith(" '~u:*'")
        assert await refused("-info") == "+info"
        admin.execute_command("ACL", "SETUSER", "narrow", "reset", "on", ">secret", "~*", "&understudy:work", "+@all")
        store = await RedisStore.open(url)
        admin.execute_command("ACL", "SETUSER", "narrow", "-zadd")  # while it is open
        with pytest.raises(CallerError, match="can't run this command"):
            await owned(store)
        await store.close()

    try:
        run_async(go())
    finally:
        admin.execute_command("ACL", "DELUSER", "narrow")


def test_a_database_that_there_is_none_of_is_the_callers(redis_url: str) -> None:
    with pytest.raises(CallerError, match="has no database 99; end the URL with a smaller number"):
        asyncio.run(RedisStore.open(redis_url.rpartition("/")[0] + "/99"))


@pytest.mark.parametrize("url", ["redis://:hush@host/zero", "http://me:hush@host"])
def test_a_wrong_url_is_told_without_its_password(url: str) -> None:
    with pytest.raises(CallerError, match="store URL") as raised:
        run_async(RedisStore.open(url))
    assert "hush" not in str(raised.value)


def test_full_memory_refuses_whole_verbs_and_can_be_swept(redis_server: RedisServer, redis_url: str) -> None:
    admin = redis_server.client()

    async def go() -> None:
        store = await RedisStore.open(redis_url)
        run = await owned(store)
        old = await owned(store, thread="old")
        await store.commit(commit_of(old, 1, status="succeeded", retain_s=0))
        before = await store.load(run.run_id)
        admin.config_set("maxmemory", 1)
        for verb in (store.commit(commit_of(run, 1)), store.cancel(run.run_id, T), create(store, "2", "other")):
            with pytest.raises(StoreUnavailable, match="maxmemory"):
                await verb
        assert await store.load(run.run_id) == before
        assert await store.sweep(T + 100) == 1
        admin.config_set("maxmemory", 0)
        assert not (await store.commit(commit_of(run, 1))).duplicate
        await store.close()

    try:
        run_async(go())
    finally:
        admin.config_set("maxmemory", 0)


def test_a_unix_socket(tmp_path: Path) -> None:
    class SocketServer(RedisServer):
        def command(self) -> Sequence[str]:
            return [*super().command(), "--unixsocket", str(self.directory / "redis.sock")]

    with SocketServer() as server:

        async def go() -> None:
            store = await RedisStore.open(f"unix://{server.directory}/redis.sock?db=3")
            await owned(store)
            assert server.client().info("keyspace").keys() == {"db3"}
            await store.close()

        run_async(go())

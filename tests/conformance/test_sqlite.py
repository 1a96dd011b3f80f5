"""What SQLite adds to the suite: several processes on one file, files that are not ours, disks that are full."""

import asyncio
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from conformance.old_deployments import check_brought_up, make_sqlite

from understudy.actors.errors import CallerError, Fenced, StoreUnavailable
from understudy.actors.records import Chunk, Committed
from understudy.cluster.stores import open_store, sqlite_file
from understudy.cluster.stores.sqlite import SqliteStore
from understudy.cluster.stores.sqlite_file import Write
from understudy.cluster.testing.conformance.suite import T, checkpoint, commit_of, create, owned

WRITER = """
import asyncio, sys
from understudy.cluster.testing.conformance.suite import T, commit_of, owned
from understudy.cluster.stores import open_store

async def main(url, name, commits):
    store = await open_store(url)
    run = await owned(store, "1", name)
    for seq in range(1, commits + 1):
        await store.commit(commit_of(run, seq=seq, writes={f"task{seq}": "[]"}, counters={"written": 1}))
        print(seq, flush=True)
    await store.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def using(path: Path, check: Callable[[SqliteStore], Awaitable[None]], locked_s: float = 10.0) -> None:
    async def go() -> None:
        store = await SqliteStore.open(f"sqlite://{path}")
        store.file.locked_s = locked_s
        try:
            await check(store)
        finally:
            await store.close()

    asyncio.run(go())


def writer(path: Path, name: str, commits: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, f"sqlite://{path}", name, str(commits)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())


def environment() -> dict[str, str]:
    root = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root / 'tests'}"}


def test_processes_share_a_file_and_one_may_be_killed(tmp_path: Path) -> None:
    """Laws 2 and 9: what was answered is there, what was not is there as a whole or not at all."""
    path = tmp_path / "store.db"
    writers = [writer(path, f"thread-{n}", 50) for n in range(3)]  # they also race to make the file
    victim = writer(path, "victim", 100_000)
    assert victim.stdout is not None
    for _ in range(20):
        victim.stdout.readline()
    victim.kill()
    acknowledged = 20 + len(victim.stdout.readlines())
    victim.wait()
    for process in writers:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert len(out.splitlines()) == 50

    async def check(store: SqliteStore) -> None:
        run = (await store.runs(thread_id="victim"))[0]
        assert run.seq in (acknowledged, acknowledged + 1)  # killed after COMMIT, before it could say so
        assert len((await store.load(run.run_id)).writes) == run.seq
        assert (await store.counters())["written"] == 150 + run.seq

    using(path, check)


def test_only_this_user_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "some" / "folders" / "store.db"

    async def check(store: SqliteStore) -> None:
        await create(store)
        files = sorted(path.parent.iterdir())
        assert len(files) == 3  # and its -shm and -wal
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
        assert {folder.stat().st_mode & 0o777 for folder in (path.parent, path.parent.parent)} == {0o700}

    using(path, check)


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(CallerError, match=r"other\.db.*another program"):
        asyncio.run(open_store(f"sqlite://{path}"))
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    async def check(store: SqliteStore) -> None:
        await store._do(lambda: store.file.db.execute("PRAGMA user_version = 99"))

    using(path, check)
    with pytest.raises(CallerError, match="version 99"):
        asyncio.run(open_store(f"sqlite://{path}"))


OPENER = """
import asyncio, sys
from understudy.cluster.stores import open_store

async def main(url):
    await (await open_store(url)).close()

asyncio.run(main(sys.argv[1]))
"""


def test_a_file_of_schema_version_1_is_brought_up_to_date(tmp_path: Path) -> None:
    """Several processes open it at once: one of them does it, and all go on."""
    path, fresh = tmp_path / "store.db", tmp_path / "fresh.db"
    make_sqlite(path)
    openers = [subprocess.Popen([sys.executable, "-c", OPENER, f"sqlite://{path}"], env=environment()) for _ in "123"]
    assert [opener.wait(60) for opener in openers] == [0, 0, 0]
    asyncio.run(open_and_close(fresh))
    assert shape(path) == shape(fresh)
    using(path, check_brought_up)


def test_an_upgrade_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.db"
    make_sqlite(path)
    before = shape(path)
    broken = sqlite_file.script("sqlite_2.sql") + "CREATE TABLE runs (x);\n"
    with monkeypatch.context() as patched:
        patched.setattr(sqlite_file, "script", lambda _: broken)
        with pytest.raises(sqlite3.OperationalError, match="already exists"):
            asyncio.run(open_and_close(path))
    assert shape(path) == before
    using(path, check_brought_up)


async def open_and_close(path: Path) -> None:
    await (await SqliteStore.open(f"sqlite://{path}")).close()


def shape(path: Path) -> dict[str, object]:
    """Tables with their columns, indexes, views and the version; the order of columns does not matter."""
    with sqlite3.connect(path) as db:
        names = sorted(db.execute("SELECT type, name FROM sqlite_schema").fetchall())
        found: dict[str, object] = {
            name: sorted(column[1:6] for column in db.execute(f"PRAGMA table_info({name})")) for _, name in names
        }
        found["version"] = db.execute("PRAGMA user_version").fetchone()[0]
    db.close()
    return found


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("remember the milk\n" * 100)
    with pytest.raises(CallerError, match=r"notes\.txt"):
        asyncio.run(open_store(f"sqlite://{path}"))
    assert path.read_text().startswith("remember")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite://relative.db", "names no file"),
        ("sqlite:///tmp/x.db?synchronous=off", "synchronous"),
        ("sqlite:///tmp/x.db?mode=memory", "synchronous"),
        ("sqlite:///dev/null/x.db", "/dev/null"),
        ("sqlite:///proc/x.db", "/proc"),
        ("mysql://root:secret@host/x", "mysql://...@host/x"),
        ("nonsense", "nonsense"),
        ("", "one of"),
    ],
)
def test_urls_that_cannot_be_opened(url: str, told: str) -> None:
    with pytest.raises(CallerError) as error:
        asyncio.run(open_store(url))
    assert told in str(error.value)
    assert "secret" not in str(error.value)


def test_what_waits_together_goes_to_the_disk_together(tmp_path: Path) -> None:
    """One transaction for all commits that are queued; a refused one, and one that fails, hurt none of the others."""

    async def check(store: SqliteStore) -> None:
        runs = [await owned(store, "1", f"thread-{n}") for n in range(20)]
        stale, gap, torn = runs[3], runs[7], runs[11]
        await store.commit(commit_of(torn, checkpoint=checkpoint("c1", snapshot=True)))
        commits = {run.run_id: commit_of(run, counters={"a": 1}, writes={"t": "[]"}) for run in runs}
        commits[stale.run_id] = commit_of(stale, epoch=9)
        commits[gap.run_id] = commit_of(gap, seq=5)
        again = checkpoint("c1", "c1", snapshot=True)  # a bug of ours: found in the middle of the commit
        commits[torn.run_id] = commit_of(torn, seq=2, checkpoint=again, counters={"a": 1}, taken=(1,))
        begun = []
        await store._do(lambda: store.file.db.set_trace_callback(begun.append))
        store._alone = 0  # else some are written one by one before it is seen that there are others
        told = await asyncio.gather(*(store.commit(commit) for commit in commits.values()), return_exceptions=True)
        await store._do(lambda: store.file.db.set_trace_callback(None))
        assert sum(statement.startswith("BEGIN IMMEDIATE") for statement in begun) <= 4
        kinds = [type(answer) for answer in told]
        assert (kinds[3], kinds[7], kinds[11]) == (Fenced, AssertionError, sqlite3.IntegrityError)
        assert kinds.count(Committed) == 17
        counted = await store.counters()
        assert (counted["a"], counted['fence_rejections_total{op="commit"}']) == (17.0, 1.0)
        assert [(await store.run(run.run_id)).seq for run in runs] == [{3: 0, 7: 0, 11: 1}.get(n, 1) for n in range(20)]

    using(tmp_path / "store.db", check)


def test_a_stream_waits_for_no_disk(tmp_path: Path) -> None:
    async def check(store: SqliteStore) -> None:
        run = await owned(store)
        synchronous: list[int] = []

        def note(statement: str) -> None:
            if statement == "COMMIT":
                synchronous.append(wanted[-1])
            elif statement.startswith("PRAGMA synchronous"):
                wanted.append({"normal": 1, "full": 2}[statement.split(" = ")[1]])

        wanted = [2]
        await store._do(lambda: store.file.db.set_trace_callback(note))
        await store.stream(run.run_id, run.epoch, [Chunk("t", "n", "a", "1", T)])
        await store.commit(commit_of(run))
        await store._do(lambda: store.file.db.set_trace_callback(None))
        assert synchronous == [1, 2]
        level = await store._do(lambda: store.file.db.execute("PRAGMA synchronous").fetchone()[0])
        assert level == 2

    using(tmp_path / "store.db", check)


def test_a_locked_file_is_unavailable_and_then_available_again(tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    async def check(store: SqliteStore) -> None:
        run = await owned(store)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.commit(commit_of(run))
        assert (await store.run(run.run_id)).seq == 0  # readers go on
        other.execute("ROLLBACK")
        other.close()
        await store.commit(commit_of(run))

    using(path, check, locked_s=0.05)


def test_a_full_disk_is_unavailable_and_nothing_is_torn(tmp_path: Path) -> None:
    async def check(store: SqliteStore) -> None:
        run = await owned(store)

        def pages(count: int) -> None:
            store.file.db.execute(f"PRAGMA max_page_count = {count}")

        await store._do(lambda: pages(1))  # SQLite takes it as: no more than there are
        big = commit_of(run, writes={"task1": "x" * 1_000_000}, counters={"a": 1})
        with pytest.raises(StoreUnavailable, match="no space"):
            await store.commit(big)
        loaded = await store.load(run.run_id)
        assert (loaded.run.seq, loaded.writes, await store.counters()) == (0, {}, {})
        await store._do(lambda: pages(100_000))
        assert not (await store.commit(big)).duplicate

    using(tmp_path / "store.db", check)


def test_the_log_leaves_room_on_a_small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 2_000_000
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    async def check(store: SqliteStore) -> None:
        data = b"x" * 20_000
        for version in range(100):
            await store.write_document("shelf", "changes all the time", data, version)
        log = tmp_path / "store.db-wal"
        assert 0.2 < log.stat().st_size / free < 0.5, "one that grows to 16 MB would have filled it"

        failed = []

        def full_once(db: sqlite3.Connection) -> int:
            if not failed:
                failed.append(log.stat().st_size)
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
            return log.stat().st_size

        write = Write(full_once)
        await store._do(lambda: store.file.write([write]))
        assert (write.error, write.answer, failed[0] > 0) == (None, 0, True), "it was emptied, and tried again"

    using(tmp_path / "store.db", check)


def test_the_log_has_its_length_early_and_nothing_else_changes_by_it(tmp_path: Path) -> None:
    """A commit that makes a file longer waits twice for the disk."""
    path, crashed = tmp_path / "store.db", tmp_path / "crashed.db"

    async def documents(store: SqliteStore) -> list[str]:
        return [document.name for document in await store.documents("shelf", limit=1000)]

    async def check(store: SqliteStore) -> None:
        other = await SqliteStore.open(f"sqlite://{path}")
        names = [f"{number:03}" for number in range(200)]
        sizes = []
        for name in names:
            await (other if name.endswith("7") else store).write_document("shelf", name, b"x" * 1000, 0)
            sizes.append(store.file.log.size_bytes())
        assert sizes[sqlite_file.LENGTHEN_AFTER // 2] < 2_000_000, "whoever writes little leaves it as it is"
        assert sizes[-1] == sizes[-50] >= 16_000_000 * 0.9
        assert await store.blobs() == []
        assert await documents(other) == names
        for end in ("", "-wal"):  # as they lie there when all processes are killed now
            shutil.copy(f"{path}{end}", f"{crashed}{end}")
        recovered = await SqliteStore.open(f"sqlite://{crashed}")
        assert await documents(recovered) == names
        assert await recovered._do(lambda: recovered.file.db.execute("PRAGMA integrity_check").fetchone()[0]) == "ok"
        await recovered.close()
        await other.close()

    using(path, check)
    assert path.stat().st_size < 1_000_000


def test_the_log_stays_within_a_quota_that_the_disk_does_not_tell(tmp_path: Path) -> None:
    """The limit of a process on its files is to SQLite what a quota is."""
    room = 3_000_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def check(store: SqliteStore) -> None:
        data = b"x" * 5_000
        for version in range(1_000):
            await store.write_document("shelf", "changes all the time", data, version)
        assert store.file.log.size_bytes() < room / 2, "one that had all of it could not be emptied into the file"

    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        using(tmp_path / "store.db", check)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_commit_that_is_done_is_answered_though_the_log_cannot_be_lengthened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "LOOK_EVERY_S", 1e9)
    folder = tmp_path / "folder"

    async def check(store: SqliteStore) -> None:
        await store.beat("me", "", T)
        folder.rename(tmp_path / "moved")  # just now
        for _ in range(2 * sqlite_file.LENGTHEN_AFTER):
            await store.beat("me", "", T)

    using(folder / "store.db", check)


def test_a_readonly_database_is_the_callers(tmp_path: Path) -> None:
    async def check(store: SqliteStore) -> None:
        await store._do(lambda: store.file.db.execute("PRAGMA query_only = 1"))
        with pytest.raises(CallerError, match="cannot be written"):
            await create(store)

    using(tmp_path / "store.db", check)


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    async def go() -> None:
        store = await open_store(f"sqlite://{tmp_path / 'store.db'}")
        await store.close()
        with pytest.raises(CallerError, match="closed"):
            await store.run("r00-1")

    asyncio.run(go())


def test_bytes_per_commit_do_not_grow_with_the_history(tmp_path: Path) -> None:
    """Law 8. A run with a large input and a long line of checkpoints writes as much per commit as a young one."""

    async def check(store: SqliteStore) -> None:
        run = await owned(store, input='"' + "x" * 1_000_000 + '"', labels={"a": "b" * 100_000})
        wal = store.file.path.with_name("store.db-wal")
        store.file._is_long = True  # nobody makes it longer than what is written
        grown = []
        for seq in range(1, 201):
            before = wal.stat().st_size
            await store.commit(commit_of(run, seq=seq, writes={f"task{seq}": "y" * 1000}, counters={"a": 1}))
            grown.append(wal.stat().st_size - before)
        assert max(grown) < 20 * 4096, max(grown)

    using(tmp_path / "store.db", check)


def test_a_wait_that_is_cut_off_takes_no_wake_up_with_it(tmp_path: Path) -> None:
    async def check(store: SqliteStore) -> None:
        await store.wait_work(0.0)
        other = await SqliteStore.open(f"sqlite://{store.file.path}")
        await create(other)
        await other.close()
        past = time.time_ns() - 10_000_000_123
        os.utime(f"{store.file.path}-wal", ns=(past, past))  # it is still by now
        at_work = threading.Event()
        held = asyncio.ensure_future(store._do(at_work.wait))
        waiting = asyncio.ensure_future(store.wait_work(30.0))
        await asyncio.sleep(0)
        waiting.cancel()
        at_work.set()
        await asyncio.wait([held, waiting])
        await asyncio.wait_for(store.wait_work(30.0), 10)

    using(tmp_path / "store.db", check)


def test_a_file_that_is_no_longer_in_its_place_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens the path then finds another store, or none: what was written would be lost with the old file."""
    monkeypatch.setattr(sqlite_file, "LOOK_EVERY_S", 0.0)
    path, aside = tmp_path / "store.db", tmp_path / "aside.db"

    def move(source: Path, target: Path) -> None:
        for suffix in ("", "-wal", "-shm"):
            os.rename(f"{source}{suffix}", f"{target}{suffix}")

    async def check(store: SqliteStore) -> None:
        run = await owned(store)
        move(path, aside)
        for seq in range(1, 8):  # some of them in the caller's own thread
            with pytest.raises(StoreUnavailable, match="moved, removed or replaced"):
                await store.commit(commit_of(run, seq=seq))
        path.touch()  # another file
        with pytest.raises(StoreUnavailable, match="moved, removed or replaced"):
            await store.beat("m", "x", T)
        path.unlink()
        move(aside, path)
        assert isinstance(await store.commit(commit_of(run, seq=1)), Committed)

    using(path, check)


def test_the_store_works_on_one_loop_after_another(tmp_path: Path) -> None:
    stores = []

    async def first() -> None:
        stores.append(await open_store(f"sqlite://{tmp_path / 'store.db'}"))
        await stores[0].wait_work(0.0)
        await create(stores[0])

    async def second() -> None:
        await asyncio.wait_for(stores[0].wait_work(30.0), 10)
        assert len((await stores[0].due(T, 10)).ready) == 1
        await stores[0].close()

    asyncio.run(first())
    asyncio.run(second())


def test_a_file_that_is_being_made_just_now_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen with three workers at once: one read the owner before, and the tables after, another had made them."""
    path = tmp_path / "store.db"
    connect = sqlite3.connect

    def traced(*args: object, **how: object) -> sqlite3.Connection:
        db = connect(*args, **how)  # type: ignore[call-overload]

        def on(statement: str) -> None:
            if statement == "PRAGMA user_version":
                db.set_trace_callback(None)
                monkeypatch.setattr(sqlite3, "connect", connect)
                other = sqlite_file.SqliteFile(path, "full")
                other.locked_s = 0.05
                with suppress(sqlite3.OperationalError):  # it has to wait for us
                    other.connect()
                other.close()

        db.set_trace_callback(on)
        return db  # type: ignore[no-any-return]

    monkeypatch.setattr(sqlite3, "connect", traced)
    file = sqlite_file.SqliteFile(path, "full")
    file.connect()
    assert file.data_version() > 0
    file.close()

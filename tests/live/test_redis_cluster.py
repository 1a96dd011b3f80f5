"""What only a Redis Cluster asks of the store: nodes that die, slots that move, a replica that takes over."""

import asyncio
import binascii
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from support.redis_cluster import SLOTS, ClusterNode, RedisCluster
from support.waiting import run_async, wait_until_async
from understudy.actors.errors import CallerError, Conflict, StoreUnavailable
from understudy.actors.records import Commit, Event, NewCheckpoint, RunRecord, partition_of_run
from understudy.cluster.stores import redis_client
from understudy.cluster.stores.redis import RedisStore
from understudy.cluster.stores.redis_address import Address
from understudy.cluster.stores.redis_client import RedisClient
from understudy.cluster.stores.redis_codec import all_shared
from understudy.cluster.stores.redis_link import pack
from understudy.cluster.testing.conformance.suite import T, create

pytestmark = [pytest.mark.live, pytest.mark.xdist_group("servers")]


def slot_of(run_id: str) -> int:
    partition = partition_of_run(run_id)
    assert partition is not None
    return binascii.crc_hqx(b"p%02x" % partition, 0) % SLOTS


def commit_of(run: RunRecord, seq: int, **changes: Any) -> Commit:
    commit = Commit(
        run_id=run.run_id,
        epoch=run.epoch,
        seq=seq,
        at=T + seq,
        status="running",
        step=seq,
        checkpoint=NewCheckpoint(f"c{seq}", f"c{seq - 1}" if seq > 1 else "", seq, seq % 8 == 1, f'{{"n":{seq}}}'),
        events=(Event("checkpoint", T + seq, {"step": seq}),),
        counters={"steps": 1},
    )
    return replace(commit, **changes)


async def owned(store: RedisStore, thread: str) -> RunRecord:
    run = await create(store, f"on-{thread}", thread)
    return await store.claim(run.run_id, "owner", 60, T)


async def whole(store: RedisStore, run: RunRecord, commits: int) -> None:
    """Every commit is there, once."""
    loaded = await store.load(run.run_id)
    assert (loaded.run.seq, loaded.run.head) == (commits, f"c{commits}")
    steps = [event.data["step"] for event in await store.events(run.run_id, after=1)]
    assert steps == list(range(1, commits + 1))


async def under_commits(
    url: str, runs: int, commits: int, trouble: Callable[[Callable[[], int]], Awaitable[None]]
) -> None:
    """Many runs on all nodes commit at once while there is trouble; nothing is lost and nothing doubled."""
    stores = [await RedisStore.open(url) for _ in range(3)]
    owners = [await owned(stores[n % 3], f"thread-{n}") for n in range(runs)]
    done = 0

    async def work(store: RedisStore, run: RunRecord) -> None:
        nonlocal done
        for seq in range(1, commits + 1):
            await store.commit(commit_of(run, seq))
            done += 1

    await asyncio.gather(trouble(lambda: done), *(work(stores[n % 3], run) for n, run in enumerate(owners)))
    assert (await stores[0].counters())["steps"] == runs * commits
    for run in owners:
        await whole(stores[1], run, commits)
    for store in stores:
        await store.close()


async def until(done: Callable[[], int], count: int) -> None:
    async def reached() -> bool:
        return done() >= count

    await wait_until_async(reached, 60, f"{count} commits")


def test_runs_are_on_all_nodes(redis_cluster: RedisCluster, redis_cluster_url: str) -> None:
    async def go() -> None:
        store = await RedisStore.open(redis_cluster_url)
        for n in range(30):
            await owned(store, f"thread-{n}")
        assert all(node.client().dbsize() > 0 for node in redis_cluster.nodes)
        assert len(await store.runs("running")) == 30
        info = await store.info()
        assert (info.durable, info.where) == (True, redis_cluster_url)
        assert len(info.detail["cluster_nodes"].split()) == 3
        await store.close()

    run_async(go())


def test_a_node_is_killed_and_started_again_under_commits(redis_cluster: RedisCluster, redis_cluster_url: str) -> None:
    """Each node once, also the one that the URL names."""
    runs, commits = 24, 60

    async def trouble(done: Callable[[], int]) -> None:
        for n, node in enumerate(redis_cluster.nodes):
            await until(done, n * runs * commits // 4)
            await asyncio.to_thread(node.kill)
            await asyncio.to_thread(redis_cluster.start)

    run_async(under_commits(redis_cluster_url, runs, commits, trouble), timeout_s=120)


def test_a_slot_that_moves_is_followed(redis_cluster: RedisCluster, redis_cluster_url: str) -> None:
    """Slot by slot, as a resharding does it: the keys go one by one (TRYAGAIN, ASK), then the slot (MOVED)."""
    runs, commits = 24, 40

    def move(slot: int, source: ClusterNode, target: ClusterNode) -> None:
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.node_id)
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 3):
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.node_id)

    async def trouble(done: Callable[[], int]) -> None:
        await until(done, runs * commits // 10)
        for slot in sorted({binascii.crc_hqx(b"p%02x" % partition, 0) % SLOTS for partition in range(64)})[:20]:
            source = redis_cluster.owner_of(slot)
            target = next(node for node in redis_cluster.nodes if node is not source)
            await asyncio.to_thread(move, slot, source, target)

    run_async(under_commits(redis_cluster_url, runs, commits, trouble), timeout_s=120)


def test_a_slot_on_its_way_is_asked_for_on_both_sides(redis_cluster: RedisCluster, redis_cluster_url: str) -> None:
    async def go() -> None:
        store = await RedisStore.open(redis_cluster_url)
        run = await owned(store, "thread-1")
        slot = slot_of(run.run_id)
        source = redis_cluster.owner_of(slot)
        target = next(node for node in redis_cluster.nodes if node is not source)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.node_id)
        try:
            keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1000)
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            # The source has none of the keys any more, and says ASK. The target answers for those that are there; for
            # a script, whose keys need not all be there, it says TRYAGAIN until the slot is its own.
            assert [event.kind for event in await store.events(run.run_id)] == ["claimed"]
            commit = asyncio.create_task(store.commit(commit_of(run, 1)))
            assert await asyncio.wait({commit}, timeout=0.3) == (set(), {commit})
        finally:
            for node in (target, source):
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.node_id)
        assert not (await commit).duplicate
        await store.commit(commit_of(run, 2))
        await whole(store, run, 2)
        await store.close()

    run_async(go())


def test_a_replica_that_takes_over() -> None:
    """The primary dies for good. Commits wait until its replica has taken over, and are applied there."""

    async def go(cluster: RedisCluster) -> None:
        store = await RedisStore.open(cluster.url)
        runs = [await owned(store, f"thread-{n}") for n in range(12)]
        for run in runs:
            await store.commit(commit_of(run, 1))
        victim = cluster.nodes[1]
        assert any(cluster.owner_of(slot_of(run.run_id)) is victim for run in runs)
        victim.client().wait(1, 5000)  # what a primary acknowledges and does not pass on before it dies is lost
        await asyncio.to_thread(victim.kill)
        await asyncio.gather(*(store.commit(commit_of(run, 2)) for run in runs))
        for run in runs:
            await whole(store, run, 2)
        assert {node.port for node in store._redis.slots.nodes} == {  # type: ignore[union-attr]
            cluster.nodes[0].port, cluster.nodes[2].port, cluster.nodes[3].port
        }  # fmt: skip
        await asyncio.to_thread(victim.start)  # it comes back as a replica, and answers MOVED
        await asyncio.gather(*(store.commit(commit_of(run, 3)) for run in runs))
        await store.close()

    with RedisCluster() as cluster:
        cluster.add_replica(of=1)
        run_async(go(cluster), timeout_s=90)


def test_news_of_work_come_from_every_node(redis_cluster: RedisCluster, redis_cluster_url: str) -> None:
    async def go() -> None:
        here, there = [await RedisStore.open(redis_cluster_url) for _ in range(2)]
        await here.wait_work(5)  # subscribes
        for n in range(12):
            heard = asyncio.create_task(here.wait_work(30))
            await create(there, f"{n}", f"thread-{n}")
            async with asyncio.timeout(5):
                await heard
        for store in (here, there):
            await store.close()

    run_async(go())


def test_opening_with_one_node_down(redis_cluster: RedisCluster, redis_cluster_url: str) -> None:
    first, second = redis_cluster.nodes[:2]

    async def go() -> None:
        store = await RedisStore.open(redis_cluster_url)
        other = replace_host(redis_cluster_url, f"127.0.0.1:{first.port},127.0.0.1:{second.port}")
        await asyncio.to_thread(first.kill)
        opening = asyncio.create_task(RedisStore.open(other))  # led on by the second, waits for the slots of the first
        await asyncio.to_thread(redis_cluster.start)
        opened = await opening
        run = await owned(store, "thread-1")
        with pytest.raises(Conflict):
            await opened.claim(run.run_id, "another", 60, T)
        for each in (store, opened):
            await each.close()

    run_async(go())


def test_a_node_that_stays_away(
    redis_cluster: RedisCluster, redis_cluster_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_client, "GIVE_UP_S", 0.5)

    async def go() -> None:
        store = await RedisStore.open(redis_cluster_url)
        run = await owned(store, "thread-1")
        node = redis_cluster.owner_of(slot_of(run.run_id))
        await asyncio.to_thread(node.kill)
        with pytest.raises(StoreUnavailable):
            await store.commit(commit_of(run, 1))
        await asyncio.to_thread(redis_cluster.start)
        assert not (await store.commit(commit_of(run, 1))).duplicate
        await store.close()

    run_async(go())


def test_a_cluster_is_noticed_by_the_first_answer_that_says_so(redis_cluster_url: str) -> None:
    """Where INFO is not asked, or not allowed."""

    async def go() -> None:
        client = RedisClient(Address.of_url(redis_cluster_url), ())
        commands = [pack("INCR", name) for name in all_shared("queue")]
        assert await client.ask(*commands) == [1] * len(commands)
        assert client.slots is not None
        assert len(client.slots.nodes) == 3
        assert await client.ask(*commands) == [2] * len(commands)
        await client.close()

    run_async(go())


def test_a_cluster_has_one_database(redis_cluster_url: str) -> None:
    with pytest.raises(CallerError, match="database 0"):
        run_async(RedisStore.open(redis_cluster_url.replace("/0", "/3")))


def replace_host(url: str, hosts: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{hosts}/{rest.partition('/')[2]}"

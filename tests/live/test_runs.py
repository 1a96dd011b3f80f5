"""The main path on real parts: Ray, run actors killed and stopped by signals, sandboxes, SQLite and Redis."""

import asyncio
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import ray
from pydantic import BaseModel

from support import graphs
from support.processes import is_alive
from support.servers import RedisServer
from support.waiting import run_async, wait_until_async
from understudy import END, START, Context, Graph, RunFailed, connect, tool
from understudy.actors.events import counters_of
from understudy.actors.records import RunRecord
from understudy.actors.run_actor import RunActor, RunActorConfig
from understudy.cluster.client import Cluster, Run, is_served
from understudy.cluster.host import store_opener
from understudy.cluster.settings import Settings
from understudy.cluster.stores import open_store
from understudy.policies.policy_file import load_policy

pytestmark = [pytest.mark.live, pytest.mark.timeout(300), pytest.mark.xdist_group("runs")]
Opener = Callable[..., Any]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for a test's ledger, with names that a sandbox may be given (pytest's own is closed to other users)."""
    with tempfile.TemporaryDirectory(prefix="understudy-test-") as name:
        yield Path(name)


@pytest.fixture(params=["sqlite", "redis"])
def store_url(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite://{folder}/state/test.db"
    return str(request.getfixturevalue("redis_url"))


@asynccontextmanager
async def cluster_on(store: str, folder: Path, **fields: Any) -> AsyncIterator[Cluster]:
    """A cluster in this process: its own Ray, supervisor and actors, under the policy of support/graphs.py."""
    settings = Settings(
        state_dir=folder / "state", store=store, **{"run_actors": 2, "spare_actors": 1, "lease_s": 3.0, **fields}
    )
    policy = load_policy(graphs.POLICY, source="test", variables={"folder": str(folder)})
    async with connect(settings=settings, policy=policy, embedded=True) as cluster:
        yield cluster


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


async def running(run: Run, timeout_s: float = 60) -> RunRecord:
    """The run, once an actor has it."""

    async def found() -> RunRecord | None:
        record = await run.record()
        return record if record.status == "running" else None

    record = await wait_until_async(found, timeout_s, f"run {run.run_id} to have an actor")
    assert record is not None
    return record


def pid_of(record: RunRecord) -> int:
    """The process of a run's actor."""
    return int(record.owner.rpartition("/")[2])


def test_a_run_killed_in_node_seven_resumes_there(store_url: str, folder: Path) -> None:
    """It must show, 2: nodes one to six do not run again, nor the tool call of node seven that had finished."""

    async def played() -> None:
        async with cluster_on(store_url, folder) as cluster:
            run = await cluster.start(graphs.twelve, {"folder": str(folder)})

            async def in_node_seven() -> bool:
                return bool(lines(folder / "ledger"))

            await wait_until_async(in_node_seven, 90, "the first call of node seven")
            first = await running(run)
            os.kill(pid_of(first), signal.SIGKILL)

            async def restarted() -> bool:
                return len([line for line in lines(folder / "ran") if line.startswith("n7 ")]) == 2

            await wait_until_async(restarted, 30, "node seven to run again")
            (folder / "go").touch()
            result = await run.result(60)
            assert result.seen == graphs.NAMES
            ran = Counter(line.split()[0] for line in lines(folder / "ran"))
            assert ran == {**dict.fromkeys(graphs.NAMES, 1), "n7": 2}
            assert len({line.split()[1] for line in lines(folder / "ran")}) == 2, "two processes"
            assert lines(folder / "ledger") == ["first call of n7", "second call of n7"]
            record = await run.record()
            assert record.restarts == 1
            kinds = [event.kind async for event in run.events(follow=False)]
            assert (kinds.count("crashed"), kinds.count("recovered"), kinds.count("tool_started")) == (1, 1, 2)

    run_async(played(), 240)


def test_fifty_runs_and_ten_kills(store_url: str, folder: Path) -> None:
    """It must show, 3: all succeed, every ledger row is there once; and the counters agree with the event logs (7)."""

    async def played() -> None:
        chance = random.Random(3)
        async with cluster_on(store_url, folder, run_actors=3, restart_intensity=19) as cluster:
            runs = [await cluster.start(graphs.short, {"folder": str(folder), "name": f"run-{i}"}) for i in range(50)]
            killed = 0
            while killed < 10:
                records = [r for r in await cluster.runs("running") if "/" in r.owner]
                if records:
                    victim = pid_of(chance.choice(records))
                    with suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
                        killed += 1
                        # One kill an actor: wait until its run has been taken away from it.
                        gone = [r for r in records if pid_of(r) == victim]

                        async def taken(gone: list[RunRecord] = gone) -> bool:
                            now = [await cluster.store.run(r.run_id) for r in gone]
                            return all(a.epoch != b.epoch or a.final for a, b in zip(now, gone, strict=True))

                        await wait_until_async(taken, 30, "the supervisor to notice a kill")
                await asyncio.sleep(chance.random() * 0.3)
                if all([(await run.record()).final for run in runs]):
                    break
            for run in runs:
                assert (await run.result(120)).seen == ["look", "act", "finish"]
            assert killed == 10, f"the runs were over after {killed} kills"
            assert Counter(lines(folder / "ledger")) == {f"run-{i}": 1 for i in range(50)}
            await agree(cluster)

    run_async(played(), 280)


async def agree(cluster: Cluster) -> None:
    """The counters of the store are the sum over all event logs, exactly."""
    expected: Counter[str] = Counter()
    for record in await cluster.runs(limit=10_000):
        for name, amount in counters_of(record.graph, await cluster.store.events(record.run_id)).items():
            expected[name] += amount
    own = ("checkpoint_commit", "fence_rejections", "sandbox_leftovers")
    found = {n: v for n, v in (await cluster.store.counters()).items() if not n.startswith(own)}
    assert found == pytest.approx(dict(expected))


def test_a_stopped_actor_that_wakes_up_changes_nothing(store_url: str, folder: Path) -> None:
    """It must show, 5: SIGSTOP, replaced after its lease, SIGCONT: its writes are refused by the store.

    The actor is not the supervisor's own, as if it were on another node: the supervisor would kill one of its own.
    """

    async def played() -> None:
        store = await open_store(store_url)
        elsewhere = Cluster(store, Settings(state_dir=folder / "state", store=store_url), None)
        run = await elsewhere.start(graphs.paused, {"folder": str(folder)})
        epoch = (await store.claim(run.run_id, "elsewhere:1:1/1", 120.0, time.time())).epoch
        async with cluster_on(store_url, folder) as cluster:
            await services(cluster, "policy")
            await services(cluster, "sandbox")
            actor = ray.remote(RunActor).options(num_cpus=0, max_concurrency=100).remote(await config_of(cluster))
            zombie = int((await actor.ready.remote()).split(":")[1])
            residence = actor.drive.remote(run.run_id, epoch)

            async def held(times: int) -> bool:
                return len(lines(folder / "ran")) == times

            async def renewed() -> bool:
                return (await run.record()).lease_until < time.time() + 10.0

            await wait_until_async(lambda: held(1), 90, "the node to run")
            await wait_until_async(renewed, 30, "the actor to have renewed its lease, for a short time now")
            os.kill(zombie, signal.SIGSTOP)
            await wait_until_async(lambda: held(2), 30, "another actor to take the run over")
            successor = pid_of(await running(run))
            assert successor != zombie
            (folder / "go").touch()
            result = await run.result(30)
            before = await cluster.store.events(run.run_id)
            os.kill(zombie, signal.SIGCONT)
            assert (await residence).how == "fenced"
            assert result.seen == [f"held by {successor}"]
            assert await cluster.store.events(run.run_id) == before, "the one that woke up wrote nothing"
            counters = await cluster.store.counters()
            assert any(value for name, value in counters.items() if name.startswith("fence_rejections_total"))
        await store.close()

    run_async(played(), 200)


async def config_of(cluster: Cluster) -> RunActorConfig:
    """What the supervisor gives its own run actors, with a lease that passes soon."""
    assert cluster.host is not None
    names = (await cluster.host.report())["services"]
    return RunActorConfig(
        open_store=store_opener(cluster.settings),
        secret=cluster.settings.secret(),
        policy=next(name for name in names if "policy" in name),
        sandboxes=tuple(name for name in names if "sandbox" in name),
        lease_s=2.0,
        hang_after_s=30.0,
        cancel_within_s=15.0,
    )


def test_a_human_is_waited_for_while_everything_is_down(
    redis_server: RedisServer, redis_url: str, folder: Path
) -> None:
    """It must show, 4: Ray, the driver and redis-server (SIGKILL) end; all is started again; the answer finishes it."""

    async def asked() -> str:
        async with cluster_on(redis_url, folder) as cluster:
            run = await cluster.start(graphs.asking, {"folder": str(folder)})
            await run.wait(90, {"waiting"})
            return run.run_id

    async def answered(run_id: str) -> None:
        async with cluster_on(redis_url, folder) as cluster:
            run = await cluster.run(run_id, graphs.asking)
            (question,) = await run.questions()
            assert question.payload == {"question": "go on?"}
            await run.resume("yes")
            assert (await run.result(90)).seen == ["yes"]
            assert lines(folder / "ledger") == ["before the question"]

    run_id = run_async(asked(), 150)
    redis_server.kill()
    redis_server.start()
    run_async(answered(run_id), 150)


def test_whoever_follows_takes_over_when_the_host_leaves(folder: Path) -> None:
    """A second `connect` relies on the first one's supervisor; when that leaves, it serves the store itself."""

    async def played() -> None:
        store = f"sqlite://{folder}/state/test.db"
        settings = Settings(state_dir=folder / "state", store=store, run_actors=2)
        async with AsyncExitStack() as follower:
            async with connect(settings=settings, embedded=True) as host:

                async def served() -> bool:
                    return await is_served(host.store, time.time())

                await wait_until_async(served, 30, "the first one to serve")
                cluster = await follower.enter_async_context(connect(settings=settings))
                assert cluster.host is None
                run = await cluster.start(graphs.paused, {"folder": str(folder)})
                await running(run)
            (folder / "go").touch()
            assert (await run.result(60)).seen
            assert cluster.host is not None

    run_async(played(), 150)


def test_one_cluster_many_matters(redis_url: str, redis_server: RedisServer, folder: Path) -> None:
    """What needs no cluster of its own: hostile tools, approvals, quarantine, code by value, keys, changed code."""

    async def played() -> None:
        async with cluster_on(redis_url, folder, hang_after_s=5.0, cancel_within_s=1.0) as cluster:
            await hostile_tools_are_stopped(cluster, redis_server.port, folder)
            await actors_give_way_to_nobody(cluster)
            await an_approved_call_is_made_once(cluster)
            await a_run_that_kills_its_actor_is_set_aside(cluster, folder)
            await a_graph_of_no_module_is_shipped(cluster)
            await the_same_key_is_the_same_run(cluster, folder)
            await changed_code_is_noticed(cluster, folder)
            await a_running_run_is_cancelled(cluster, folder)
            await a_run_whose_node_holds_its_loop_is_cancelled(cluster, folder)
            await a_call_ends_with_its_run(cluster, folder)
            await a_tool_call_outlives_its_run_actor(cluster, folder)
            await a_call_whose_sandbox_died_is_asked_about(cluster, folder)
            await the_policy_actor_is_replaced(cluster, folder)
            await the_supervisor_is_replaced(cluster, folder)
            await who_is_stopped_for_good_is_replaced(cluster, folder)
            await agree(cluster)

    run_async(played(), 280)


async def hostile_tools_are_stopped(cluster: Cluster, port: int, folder: Path) -> None:
    """It must show, 6."""
    outside = folder / "outside"
    run = await cluster.start(graphs.hostile, {"port": port, "outside": str(outside)})
    result = await run.result(120)
    assert result.kinds == {
        "environment": "ok",
        "socket": "error",
        "write": "error",
        "forks": "error",
        "memory": "out_of_memory",
        "output": "output_too_large",
        "wait": "timeout",
        "unruled": "denied",
    }, result.errors
    assert not outside.exists()
    secrets = " ".join(result.environment.values())
    assert "RAY" not in " ".join(result.environment)
    assert "redis://" not in secrets
    assert "no rule allows tool 'unruled'" in result.errors["unruled"]
    careless = await cluster.start(graphs.hostile, {"port": 0, "outside": str(outside)})
    with pytest.raises(RunFailed, match=r"ToolError: tool 'hostile_wait': timeout"):
        await careless.result(120)


async def actors_give_way_to_nobody(cluster: Cluster) -> None:
    """Ray would have all of them do so; tools do, see the tests of their walls."""
    for kind in ("policy", "sandbox"):
        actor = await services(cluster, kind)
        threads = {os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir(f"/proc/{actor}/task")}
        assert threads == {os.getpriority(os.PRIO_PROCESS, 0)}


async def an_approved_call_is_made_once(cluster: Cluster) -> None:
    run = await cluster.start(graphs.paying, {"amount": 7})
    await run.wait(60, {"waiting"})
    (question,) = await run.questions()
    assert question.payload["args"] == {"amount": 7}
    await run.approve(question.interrupt_id)
    assert (await run.result(60)).receipt == "paid 7"
    decided = [e.data["decision"] async for e in run.events(follow=False) if e.kind == "decided"]
    assert decided == ["ask", "allow"]
    refused = await cluster.start(graphs.paying, {"amount": 8})
    await refused.wait(60, {"waiting"})
    (question,) = await refused.questions()
    await refused.deny(question.interrupt_id, note="too much")
    with pytest.raises(RunFailed, match="a person said no: too much"):
        await refused.result(60)


async def a_run_that_kills_its_actor_is_set_aside(cluster: Cluster, folder: Path) -> None:
    run = await cluster.start(graphs.crashing, {"folder": str(folder)})
    record = await run.wait(120)
    assert record.status == "quarantined"
    assert "actor_died" in record.error
    crashes = len([line for line in lines(folder / "ran") if line.startswith("crash")])
    assert crashes == cluster.settings.restart_intensity + 1


async def a_graph_of_no_module_is_shipped(cluster: Cluster) -> None:
    class Sum(BaseModel):
        a: int
        b: int
        total: int = 0

    @tool(name="hostile_add")
    def add(a: int, b: int) -> int:
        return a + b

    graph = Graph("local", Sum)

    @graph.node
    async def work(state: Sum, ctx: Context) -> dict[str, int]:
        return {"total": await ctx.call(add, a=state.a, b=state.b)}

    graph.edge(START, work).edge(work, END)
    run = await cluster.start(graph, Sum(a=2, b=3))
    assert (await run.result(60)).total == 5


async def the_same_key_is_the_same_run(cluster: Cluster, folder: Path) -> None:
    given = {"folder": str(folder), "name": "keyed"}
    runs = [await cluster.start(graphs.short, given, key="order-A1") for _ in range(3)]
    assert len({run.run_id for run in runs}) == 1
    await runs[0].result(60)
    assert lines(folder / "ledger").count("keyed") == 1


FLOW = """
from pydantic import BaseModel
from understudy import END, START, Graph

class State(BaseModel):
    word: str = ""

graph = Graph("flow", State)
graph.node(lambda state: {{"word": {word!r}}}, name="say")
graph.edge(START, "say").edge("say", END)
"""


async def changed_code_is_noticed(cluster: Cluster, folder: Path) -> None:
    """A warm actor that has imported a module does not go on with it once the file has changed."""
    import sys

    module = folder / "understudy_test_flow.py"
    sys.path.insert(0, str(folder))
    try:
        for word in ("first", "second", "third"):
            module.write_text(FLOW.format(word=word))
            sys.modules.pop(module.stem, None)
            run = await cluster.start(f"{module.stem}:graph")
            assert await run.result(60) == sys.modules[module.stem].State(word=word)
    finally:
        sys.path.remove(str(folder))


async def a_running_run_is_cancelled(cluster: Cluster, folder: Path) -> None:
    run = await cluster.start(graphs.paused, {"folder": str(folder)})
    await running(run)
    await run.cancel()
    record = await run.wait(30)
    assert record.status == "cancelled"


async def a_run_whose_node_holds_its_loop_is_cancelled(cluster: Cluster, folder: Path) -> None:
    run = await cluster.start(graphs.stuck, {"folder": str(folder)})

    async def holding() -> bool:
        return any(line.startswith("hold-loop ") for line in lines(folder / "ran"))

    await wait_until_async(holding, 30, "the node to hold its loop")
    await run.cancel()
    record = await run.wait(40)
    assert (record.status, record.restarts) == ("cancelled", 1)
    assert len([line for line in lines(folder / "ran") if line.startswith("hold-loop ")]) == 1, "it did not run again"


async def services(cluster: Cluster, kind: str) -> int:
    """The process id of the policy actor, or of the sandbox actor."""
    assert cluster.host is not None

    async def found() -> int:
        report = await cluster.host.report()  # type: ignore[union-attr]
        return next((pid for name, pid in report["services"].items() if kind in name), 0)

    return await wait_until_async(found, 30, f"the {kind} actor to be up")


def opened(folder: Path) -> Path:
    """A folder that the node writes as root, and the tool as somebody else."""
    folder.mkdir()
    folder.chmod(0o777)
    return folder


async def working(cluster: Cluster, folder: Path) -> Run:
    """A run whose tool is at work, in a folder of its own."""
    opened(folder)
    run = await cluster.start(graphs.lasting, {"folder": str(folder)})

    async def began() -> bool:
        return (folder / "slow-began").exists()

    await wait_until_async(began, 60, "the slow tool to begin")
    return run


async def a_call_ends_with_its_run(cluster: Cluster, folder: Path) -> None:
    """A run that is cancelled while no actor has it: nobody is there to end its call but the sandbox."""
    run = await working(cluster, folder / "ends")
    record, now = await running(run), time.time()
    await cluster.store.requeue(run.run_id, record.epoch, now, now + 3600, [], {}, crashed=False)
    assert (await run.cancel()).status == "cancelled"

    async def outcomes() -> list[str]:
        return [e.data["outcome"] async for e in run.events(follow=False) if e.kind == "tool_finished"]

    assert await wait_until_async(outcomes, 30, "the call to end") == ["killed"]


async def a_tool_call_outlives_its_run_actor(cluster: Cluster, folder: Path) -> None:
    """Law 5: the next actor waits for the same call and takes its receipt."""
    run = await working(cluster, folder / "outlives")
    os.kill(pid_of(await running(run)), signal.SIGKILL)

    async def again() -> bool:
        return len(lines(folder / "outlives" / "ran")) == 2

    await wait_until_async(again, 30, "the node to run again")
    (folder / "outlives" / "slow-go").touch()
    assert (await run.result(60)).seen == ["done"]
    kinds = [event.kind async for event in run.events(follow=False)]
    assert (kinds.count("tool_started"), kinds.count("tool_finished")) == (1, 1)


async def a_call_whose_sandbox_died_is_asked_about(cluster: Cluster, folder: Path) -> None:
    """Law 4: started and not known is never repeated silently."""
    run = await working(cluster, folder / "unknown")
    os.kill(await services(cluster, "sandbox"), signal.SIGKILL)
    await run.wait(60, {"waiting"})
    (question,) = await run.questions()
    assert question.kind == "unknown"
    assert question.payload["tool"] == "slow"
    outcomes = [e.data["outcome"] async for e in run.events(follow=False) if e.kind == "tool_finished"]
    assert outcomes == ["unknown"]
    (folder / "unknown" / "slow-go").touch()
    await run.resume("retry")
    assert (await run.result(60)).seen == ["done"]


async def the_policy_actor_is_replaced(cluster: Cluster, folder: Path) -> None:
    os.kill(await services(cluster, "policy"), signal.SIGKILL)
    run = await cluster.start(graphs.short, {"folder": str(folder), "name": "without policy"})
    await run.result(60)
    assert lines(folder / "ledger").count("without policy") == 1


async def the_supervisor_is_replaced(cluster: Cluster, folder: Path) -> None:
    """Its death takes the run actors with it; the next one takes their runs over, and the tool at work is not lost."""
    run = await working(cluster, folder / "supervisor")
    assert cluster.host is not None
    os.kill((await cluster.host.report())["pid"], signal.SIGKILL)

    async def again() -> bool:
        return len(lines(folder / "supervisor" / "ran")) == 2

    await wait_until_async(again, 60, "the node to run again")
    (folder / "supervisor" / "slow-go").touch()
    assert (await run.result(60)).seen == ["done"]
    kinds = [event.kind async for event in run.events(follow=False)]
    assert kinds.count("tool_started") == 1
    causes = [e.data["cause"] async for e in run.events(follow=False) if e.kind == "crashed"]
    assert causes == ["supervisor_lost"]


async def who_is_stopped_for_good_is_replaced(cluster: Cluster, folder: Path) -> None:
    """Law 10: Ray never says that an actor hangs; every run waited for it, for ever."""
    assert cluster.host is not None
    supervisor = (await cluster.host.report())["pid"]
    for pid in (await services(cluster, "policy"), await services(cluster, "sandbox"), supervisor):
        os.kill(pid, signal.SIGSTOP)
    run = await cluster.start(graphs.short, {"folder": str(folder), "name": "all stopped"})
    await run.result(90)
    assert lines(folder / "ledger").count("all stopped") == 1
    assert not is_alive(supervisor)

"""The engine over the in-memory store, without Ray: what a run does, one residence at a time."""

import asyncio
import contextlib
import contextvars
import functools
import json
import math
import operator
import sys
import time
from datetime import timedelta
from itertools import pairwise
from typing import Annotated, Any, cast

import pytest
from pydantic import AfterValidator, BaseModel

from support.stage import HeldSandboxes, Stage, YesPolicy
from support.waiting import run_async, wait_until_async
from understudy import END, START, Command, Context, Graph, Retry, Send, ToolDenied, ToolError, append, tool
from understudy.actors.blocking import BlockingContext
from understudy.actors.calls import Asked, Granted, Refused
from understudy.actors.errors import CallerError, Conflict, Fenced, InterruptExpired, StoreUnavailable
from understudy.actors.events import counters_of
from understudy.actors.inline_ports import InlineSandboxes
from understudy.actors.memory import MemoryStore
from understudy.actors.records import FINAL, RunRecord
from understudy.cluster.client import Run, RunFailed, open_questions


class Log(BaseModel):
    seen: Annotated[list[str], append] = []
    total: Annotated[int, operator.add] = 0
    note: str | None = None


def chain(*names: str, graph: Graph | None = None) -> Graph:
    """A graph of plain nodes, each of which writes its name."""
    graph = graph or Graph("chain", Log)
    for name in names:
        graph.node(lambda state, name=name: {"seen": [name]}, name=name)
    for before, after in pairwise((START, *names, END)):
        graph.edge(before, after)
    return graph


def play(graph: Graph, given: Any = None, **stage: Any) -> Any:
    """Drive a run to its end; its result."""

    async def played() -> Any:
        on = Stage(MemoryStore(), graph, **stage)
        run = await on.start(given)
        await on.drive(run)
        return await run.result(1.0)

    return run_async(played())


def fails(graph: Graph, given: Any = None) -> str:
    with pytest.raises(RunFailed) as caught:
        play(graph, given)
    assert caught.value.record.status == "failed"
    return str(caught.value)


# --- flow ----------------------------------------------------------------------------------------------------------


def test_a_chain_runs_in_order():
    assert play(chain("a", "b", "c")).seen == ["a", "b", "c"]


def test_every_node_is_one_commit():
    async def played() -> None:
        stage = Stage(MemoryStore(), chain("a", "b", "c"))
        run = await stage.start()
        await stage.drive(run)
        assert (await run.record()).seq == 3
        assert await stage.kinds(run) == [
            "created", "claimed",
            "node_finished", "checkpoint", "node_finished", "checkpoint", "node_finished", "checkpoint", "finished",
        ]  # fmt: skip

    run_async(played())


def test_nodes_of_all_shapes():
    graph = Graph("shapes", Log)

    @graph.node
    async def with_context(state: Log, ctx: Context) -> dict[str, Any]:
        return {"seen": [ctx.node], "total": 1}

    @graph.node
    def in_a_thread(state: Log, ctx: BlockingContext) -> dict[str, Any]:
        return {"seen": [ctx.node]}

    @graph.node
    async def nothing() -> None: ...

    @graph.node
    def as_model(state: Log) -> Log:
        return Log(note=f"after {len(state.seen)}")

    graph.edge(START, "with_context").edge("with_context", "in_a_thread").edge("in_a_thread", "nothing")
    graph.edge("nothing", "as_model").edge("as_model", END)
    assert play(graph) == Log(seen=["with_context", "in_a_thread"], total=1, note="after 2")


def test_parallel_nodes_read_the_same_state_and_merge_in_order():
    graph = Graph("fan", Log)

    async def slow(state: Log) -> dict[str, Any]:
        for _ in range(20):
            await asyncio.sleep(0)
        return {"seen": [f"slow saw {len(state.seen)}"], "total": 1}

    graph.node(slow)
    graph.node(lambda state: {"seen": [f"quick saw {len(state.seen)}"], "total": 2}, name="quick")
    graph.node(lambda state: {"seen": ["join"]}, name="join")
    graph.edge(START, "slow").edge(START, "quick").edge(["slow", "quick"], "join").edge("join", END)
    result = play(graph)
    assert result.seen == ["slow saw 0", "quick saw 0", "join"]
    assert result.total == 3


def test_two_writers_without_a_reducer_are_named():
    graph = Graph("clash", Log)
    graph.node(lambda state: {"note": "a"}, name="a")
    graph.node(lambda state: {"note": "b"}, name="b")
    graph.edge(START, "a").edge(START, "b").edge("a", END).edge("b", END)
    message = fails(graph)
    assert "channel 'note' got 2 writes in superstep 1 (nodes 'a', 'b')" in message
    assert "give it a reducer" in message


def test_a_branch_and_a_loop():
    graph = Graph("loop", Log)
    graph.node(lambda state: {"total": 1, "seen": [str(state.total)]}, name="count")
    graph.edge(START, "count").branch("count", lambda state: "count" if state.total < 5 else END, ["count", END])
    assert play(graph).seen == ["0", "1", "2", "3", "4"]


def test_a_join_waits_for_arms_of_different_length():
    graph = Graph("arms", Log)
    for name in ("a", "b1", "b2", "end"):
        graph.node(lambda state, name=name: {"seen": [name]}, name=name)
    graph.edge(START, "a").edge(START, "b1").edge("b1", "b2").edge(["a", "b2"], "end").edge("end", END)
    assert play(graph).seen == ["a", "b1", "b2", "end"]


def test_send_fans_out_with_arguments():
    graph = Graph("send", Log)

    @graph.node
    def part(text: str) -> dict[str, Any]:
        return {"seen": [text.upper()]}

    graph.node(lambda state: None, name="split")
    graph.node(lambda state: {"note": ",".join(state.seen)}, name="gather")
    graph.edge(START, "split").branch("split", lambda state: [Send("part", t) for t in "abc"], ["part"])
    graph.edge("part", "gather").edge("gather", END)
    result = play(graph)
    assert result.seen == ["A", "B", "C"]
    assert result.note == "A,B,C"


def test_a_command_writes_and_leads():
    graph = Graph("command", Log)

    @graph.node(goto=["b", END])
    def a(state: Log) -> Command:
        return Command(update={"seen": ["a"]}, goto="b")

    @graph.node
    def b(state: Log) -> dict[str, Any]:
        return {"seen": ["b"]}

    graph.edge(START, a).edge(b, END)
    assert play(graph).seen == ["a", "b"]


def test_what_leads_nowhere_is_told():
    graph = chain("a", graph=Graph("nowhere", Log))
    graph.branch("a", lambda state: "z", ["a", END])
    said = fails(graph)
    assert "the branch after 'a' leads to 'z', which is not declared; " in said
    assert "add it to the branch's targets, which names 'a', END" in said


def test_an_error_that_names_its_node_names_it_once():
    graph = Graph("once", Log)
    graph.node(lambda state: {"sene": ["a"]}, name="a")
    graph.edge(START, "a").edge("a", END)
    assert fails(graph).count("node 'a'") == 1


def test_a_result_has_the_order_of_the_model():
    class Ordered(BaseModel):
        first: int
        second: int = 2
        third: int = 3

    graph = Graph("ordered", Ordered)
    graph.node(lambda state: {"second": 5}, name="a")
    graph.edge(START, "a").edge("a", END)

    async def played() -> None:
        stage = Stage(MemoryStore(), graph)
        run = await stage.start({"third": 7, "first": 1})
        assert await stage.drive(run) == "succeeded"
        assert list(json.loads((await run.record()).result)) == ["first", "second", "third"]

    run_async(played())


def test_a_duration_that_is_none_is_told():
    async def nap(state: Log, ctx: Context) -> None:
        await ctx.sleep(3)  # type: ignore[arg-type]

    async def ask(state: Log, ctx: Context) -> None:
        await ctx.interrupt("?", deadline=3)  # type: ignore[arg-type]

    assert "ctx.sleep is a timedelta, not 3; write e.g. timedelta(seconds=3)" in fails(one_call(nap))
    assert "the deadline of ctx.interrupt is a timedelta, not 3" in fails(one_call(ask))


def test_a_step_limit_ends_a_loop():
    graph = Graph("forever", Log, step_limit=7)
    graph.node(lambda state: {"total": 1}, name="again")
    graph.edge(START, "again").branch("again", lambda state: "again", ["again", END])
    message = fails(graph)
    assert "took 7 supersteps" in message
    assert "step_limit" in message


# --- faults --------------------------------------------------------------------------------------------------------


def test_an_exception_fails_the_run_and_says_where():
    graph = Graph("boom", Log)

    @graph.node
    async def broken(state: Log) -> None:
        raise ValueError("no such order")

    graph.edge(START, "broken").edge("broken", END)
    message = fails(graph)
    assert "node 'broken': ValueError: no such order (test_engine.py:" in message


@pytest.mark.parametrize("kind", ["async", "thread"])
def test_a_node_that_exits_fails_its_run_alone(kind: str) -> None:
    graph = Graph("exit", Log)
    if kind == "async":

        @graph.node(name="leave")
        async def leave(state: Log) -> None:
            raise SystemExit(3)

    else:
        graph.node(lambda state: sys.exit(3), name="leave")
    graph.edge(START, "leave").edge("leave", END)
    assert "SystemExit: 3" in fails(graph)


def test_a_node_that_swallows_its_cancellation_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.actors.driver.ABANDON_S", 0.05)

    async def played() -> None:
        let_go = asyncio.Event()

        async def stubborn(state: Log) -> None:
            while not let_go.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await let_go.wait()

        stage = Stage(MemoryStore(), one_call(stubborn))
        run = await stage.start()
        driver = await stage.driver(run)
        driving = asyncio.ensure_future(driver.drive())
        await asyncio.sleep(0)
        driver.cancel()
        assert await driving == "cancelled"
        assert driver.dirty, "its process is not used again"
        let_go.set()

    run_async(played())


@pytest.mark.parametrize("how", ["awaits a cancelled task", "cancels itself", "cancels itself and calls"])
def test_a_node_that_is_cancelled_by_its_own_doing_fails(how: str):
    """It counted as abandoned by us: nobody told the run, which was "running" for ever, its lease renewed."""
    graph = Graph("own", Log)

    @graph.node
    async def own(state: Log, ctx: Context) -> None:
        if how == "awaits a cancelled task":
            task = asyncio.ensure_future(asyncio.sleep(60))
            task.cancel()
            await task
        this = asyncio.current_task()
        assert this is not None
        this.cancel()
        if how == "cancels itself":
            await asyncio.sleep(60)
        ctx.sleep(timedelta(days=1))

    graph.edge(START, own).edge(own, END)
    assert "CancelledError" in fails(graph)


def test_a_reducer_and_a_branch_that_exit_fail_their_run():
    def leaves(*_: Any) -> int:
        sys.exit(3)

    class Reduced(BaseModel):
        number: Annotated[int, leaves] = 0

    reduced = Graph("reduced", Reduced)
    reduced.node(lambda state: {"number": 1}, name="write")
    reduced.edge(START, "write").edge("write", END)
    assert "SystemExit: 3" in fails(reduced)
    branched = Graph("branched", Log)
    branched.node(lambda state: None, name="look")
    branched.edge(START, "look").branch("look", leaves, [END])
    assert "the branch after 'look' raised SystemExit" in fails(branched)


class Unsayable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def nested(levels: int) -> Exception:
    error: Exception = ValueError("inmost")
    for _ in range(levels):
        error = ExceptionGroup("group", [error])
    return error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("a lone \ud800 and a \0"), r"ValueError: a lone \ud800 and a \x00 ("),
        (ValueError("x" * 100_000), "x... (96000 characters more)"),
        (Unsayable(), "Unsayable: (its message cannot be had: RuntimeError)"),
        (nested(3000), "ExceptionGroup: group"),
    ],
    ids=["no text", "long", "unsayable", "deep"],
)
def test_a_run_that_fails_can_say_so(error: Exception, told: str):
    """The commit of such a failure failed itself, in every restart, until the run was quarantined."""
    graph = Graph("fails", Log)

    @graph.node
    async def raises(state: Log) -> None:
        raise error

    graph.edge(START, raises).edge(raises, END)
    assert told in fails(graph)


class Picky(BaseModel):
    number: Any = None
    even: Annotated[int, AfterValidator(lambda value: {2: 2}[value])] = 2


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({"even": 3}, "wrote 3 to channel 'even'"),
        ({"number": 10**5000}, "wrote a int (its repr raises ValueError) to channel 'number'"),
        ({"number": functools.reduce(lambda inner, _: [inner], range(100_000), [])}, "its repr raises RecursionError"),
        ({"number": "\ud800"}, "to channel 'number'"),
    ],
    ids=["validator", "digits", "depth", "surrogate"],
)
def test_a_write_that_cannot_even_be_told_fails_the_run(written: dict[str, Any], told: str):
    graph = Graph("picky", Picky)
    graph.node(lambda state: written, name="write")
    graph.edge(START, "write").edge("write", END)
    assert told in fails(graph)


def test_what_is_no_tool_and_what_is_no_text_is_told():
    graph = Graph("wrong", Log)

    @graph.node
    async def call(state: Log, ctx: Context) -> None:
        if state.note == "tool":
            await ctx.call(fails)  # type: ignore[arg-type]
        await ctx.interrupt({"question": "\ud800"})

    graph.edge(START, call).edge(call, END)
    assert "ctx.call wants a tool" in fails(graph, {"note": "tool"})
    assert "the payload is not JSON" in fails(graph)


def test_a_wrong_write_fails_the_run_and_keeps_the_state():
    async def played() -> None:
        graph = Graph("wrong", Log)
        graph.node(lambda state: {"seen": ["a"]}, name="a")
        graph.node(lambda state: {"total": "many"}, name="b")
        graph.edge(START, "a").edge("a", "b").edge("b", END)
        stage = Stage(MemoryStore(), graph)
        run = await stage.start()
        assert await stage.drive(run) == "failed"
        record = await run.record()
        assert "node 'b' wrote 'many' to channel 'total' (int)" in record.error
        assert (await run.state())["seen"] == ["a"]

    run_async(played())


@pytest.mark.parametrize(
    ("returned", "message"),
    [({"sen": ["x"]}, "wrote to 'sen', which is no channel; Log has seen, total, note"), (42, "returned int")],
)
def test_impossible_returns_teach(returned: Any, message: str) -> None:
    graph = Graph("odd", Log)
    graph.node(lambda state: returned, name="odd")
    graph.edge(START, "odd").edge("odd", END)
    assert message in fails(graph)


def test_nodes_cannot_change_each_others_state():
    graph = Graph("alias", Log)

    @graph.node
    def sneaky(state: Log) -> None:
        state.seen.append("never written")

    graph.node(lambda state: {"note": str(len(state.seen))}, name="look")
    graph.edge(START, sneaky).edge(sneaky, "look").edge("look", END)
    assert play(graph).note == "0"


# --- crash and recovery --------------------------------------------------------------------------------------------


@tool
def pay(order: str) -> dict[str, str]:
    """Pays."""
    return {"receipt": f"r-{order}"}


@tool
def mail(to: str) -> str:
    """Mails."""
    return "sent"


def counting(names: list[str], ran: list[str], stop_in: str = "", hold: asyncio.Event | None = None) -> Graph:
    """A chain whose nodes note that they ran; `stop_in` calls a tool and then never returns, while `hold` is unset."""
    graph = Graph("counting", Log)
    for name in names:

        async def body(state: Log, ctx: Context, name: str = name) -> dict[str, Any]:
            ran.append(name)
            if name == stop_in:
                await ctx.call(pay, order=name)
                if hold is not None:
                    await hold.wait()
                await ctx.call(mail, to=name)
            return {"seen": [name]}

        graph.node(body, name=name)
    for before, after in pairwise((START, *names, END)):
        graph.edge(before, after)
    return graph


def test_a_context_variable_of_one_node_is_no_other_nodes():
    speaker: contextvars.ContextVar[str] = contextvars.ContextVar("speaker", default="nobody")
    graph = Graph("chain", Log)

    async def say(state: Log) -> dict[str, Any]:
        heard = speaker.get()
        speaker.set("a node before")
        return {"seen": [heard]}

    for name in ("a", "b", "c"):
        graph.node(say, name=name)
    graph.edge(START, "a").edge("a", "b").edge("b", "c").edge("c", END)
    speaker.set("whoever drives")
    assert play(graph).seen == ["whoever drives"] * 3

    async def one_by_one() -> None:
        stage = Stage(MemoryStore(), graph)
        run = await stage.start()
        driver = await stage.driver(run)
        driver.in_flight_max = 0  # the task of one node then starts the next
        assert await driver.drive() == "succeeded"
        assert (await run.result(1.0)).seen == ["whoever drives"] * 3

    run_async(one_by_one())


def test_a_crash_in_node_seven_resumes_at_node_seven():
    async def played() -> None:
        names = [f"n{i}" for i in range(1, 13)]
        ran: list[str] = []
        stage = Stage(MemoryStore(), counting(names, ran, "n7", asyncio.Event())).tools(pay, mail)
        run = await stage.start()
        driving = asyncio.ensure_future(stage.drive(run))
        await stage.sandboxes.called.wait()
        driving.cancel()
        await asyncio.wait([driving])
        assert ran == names[:7]
        await stage.crash(run)
        stage.graph = counting(names, ran, "n7")
        assert await stage.drive(run) == "succeeded"
        assert ran == [*names[:7], *names[6:]], "nodes one to six ran once, node seven twice"
        assert stage.sandboxes.calls == [("pay", {"order": "n7"}), ("mail", {"to": "n7"})]
        assert (await run.result()).seen == names
        kinds = await stage.kinds(run)
        assert kinds.count("recovered") == 1
        assert (await run.record()).restarts == 1

    run_async(played())


async def _quick_is_stored(stage: Stage, run: Run) -> bool:
    return bool((await stage.store.load(run.run_id)).writes)


def test_finished_siblings_do_not_run_again():
    async def played() -> None:
        ran: list[str] = []
        hold = asyncio.Event()
        graph = Graph("siblings", Log)

        async def quick(state: Log) -> dict[str, Any]:
            ran.append("quick")
            return {"seen": ["quick"]}

        async def slow(state: Log) -> dict[str, Any]:
            ran.append("slow")
            await hold.wait()
            return {"seen": ["slow"]}

        graph.node(quick)
        graph.node(slow)
        graph.edge(START, quick).edge(START, slow).edge(quick, END).edge(slow, END)
        stage = Stage(MemoryStore(), graph)
        run = await stage.start()
        driving = asyncio.ensure_future(stage.drive(run))
        await wait_until_async(lambda: _quick_is_stored(stage, run), 10, "the pending writes of quick")
        driving.cancel()
        await asyncio.wait([driving])
        await stage.crash(run)
        hold.set()
        assert await stage.drive(run) == "succeeded"
        assert sorted(ran) == ["quick", "slow", "slow"]
        assert (await run.result()).seen == ["quick", "slow"]

    run_async(played())


def test_a_replaced_owner_changes_nothing():
    async def played() -> None:
        ran: list[str] = []
        hold = asyncio.Event()
        stage = Stage(MemoryStore(), counting(["a", "b"], ran, "b", hold)).tools(pay, mail)
        run = await stage.start()
        zombie = asyncio.ensure_future(stage.drive(run))
        await stage.sandboxes.called.wait()
        await stage.crash(run)
        successor = await stage.driver(run, "successor")
        before = await stage.store.events(run.run_id)
        hold.set()
        with pytest.raises(Fenced):
            await zombie
        assert await stage.store.events(run.run_id) == before
        assert (await stage.store.counters())['fence_rejections_total{op="begin"}'] == 1
        assert await successor.drive() == "succeeded"
        assert [name for name, _ in stage.sandboxes.calls] == ["pay", "mail"]

    run_async(played())


@pytest.mark.parametrize("how", ["fenced", "cancelled", "sibling lost the store"])
def test_a_call_at_work_is_ended_only_if_the_run_does_not_want_it(how: str):
    """An actor that woke up again used to kill the very call that its successor waited for."""

    async def played() -> None:
        graph = Graph("held", Log)

        @graph.node
        async def held(state: Log, ctx: Context) -> None:
            await ctx.call(pay, order="1")

        @graph.node
        async def other(state: Log, ctx: Context) -> None:
            if how == "sibling lost the store":
                await stage.sandboxes.called.wait()
                await ctx.call(mail, to="b")

        graph.edge(START, held).edge(held, END).edge(START, other).edge(other, END)

        def unreachable(request: Any, approved: bool) -> Any:
            raise StoreUnavailable("redis is away")

        stage = Stage(MemoryStore(), graph, YesPolicy({"mail": unreachable})).tools(pay, mail)
        stage.sandboxes.hold = asyncio.Event()
        run = await stage.start()
        driver = await stage.driver(run)
        driving = asyncio.ensure_future(driver.drive())
        await stage.sandboxes.called.wait()
        if how == "cancelled":
            driver.cancel()
            assert await driving == "cancelled"
        elif how == "fenced":
            driver.fence()
            with pytest.raises(Fenced):
                await driving
        else:
            with pytest.raises(StoreUnavailable):
                await driving
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert stage.sandboxes.aborted == (["pay"] if how == "cancelled" else [])

    run_async(played())


def test_a_call_at_work_is_waited_for_by_the_next_owner():
    """Law 5: whoever takes the run up takes the receipt of that very call."""

    async def played() -> None:
        began, go = asyncio.Event(), asyncio.Event()

        @tool
        async def slow(order: str) -> str:
            began.set()
            await go.wait()
            return f"paid {order}"

        async def work(state: Log, ctx: Context) -> dict[str, Any]:
            return {"seen": [await ctx.call(slow, order="A1")]}

        stage = Stage(MemoryStore(), one_call(work))
        sandboxes = InlineSandboxes(stage.store)
        stage.sandboxes = cast(HeldSandboxes, sandboxes)
        run = await stage.start()
        dying = asyncio.ensure_future((await stage.driver(run)).drive())
        await began.wait()
        dying.cancel()
        await asyncio.wait([dying])
        await stage.crash(run)
        driving = asyncio.ensure_future(stage.drive(run))
        for _ in range(100):  # all the turns that it could want
            await asyncio.sleep(0)
        assert not driving.done()
        assert [receipt.state for receipt in await stage.store.receipts(run.run_id)] == ["started"]
        go.set()
        assert await driving == "succeeded"
        assert (await run.result(1)).seen == ["paid A1"]
        kinds = await stage.kinds(run)
        assert (kinds.count("tool_started"), kinds.count("tool_finished"), len(sandboxes.calls)) == (1, 1, 1)

    run_async(played())


def test_a_lost_store_is_not_the_tools_fault_even_if_the_node_catches_it():
    """`except Exception` around a call is what agents do; the run then went on as if the tool had failed."""

    async def played() -> None:
        graph = Graph("catches", Log)

        @graph.node
        async def catches(state: Log, ctx: Context) -> dict[str, Any]:
            try:
                await ctx.call(pay, order="1")
            except Exception as error:
                return {"note": str(error)}
            return {"note": "paid"}

        graph.edge(START, catches).edge(catches, END)
        away = True

        def now_and_then(request: Any, approved: bool) -> Any:
            if away:
                raise StoreUnavailable("redis is away")
            return Granted("token", "yes", "test")

        stage = Stage(MemoryStore(), graph, YesPolicy({"pay": now_and_then})).tools(pay)
        run = await stage.start()
        with pytest.raises(StoreUnavailable):
            await stage.drive(run)
        away = False
        await stage.crash(run)
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).note == "paid"

    run_async(played())


def test_counters_are_the_sum_of_the_event_logs():
    async def played() -> None:
        store = MemoryStore()
        stage = Stage(store, counting(["a", "b", "c"], [], "b")).tools(pay, mail)
        expected: dict[str, float] = {}
        for _ in range(5):
            run = await stage.start()
            await stage.drive(run)
            for name, amount in counters_of("counting", await store.events(run.run_id)).items():
                expected[name] = expected.get(name, 0.0) + amount
        own = ("checkpoint_commit", "fence_rejections")
        found = {name: value for name, value in (await store.counters()).items() if not name.startswith(own)}
        assert found == pytest.approx(expected)
        assert (await store.counters())['checkpoint_commits_total{result="ok"}'] == 15

    run_async(played())


# --- tools ---------------------------------------------------------------------------------------------------------


def one_call(body: Any) -> Graph:
    graph = Graph("calls", Log)
    graph.node(body, name="work")
    graph.edge(START, "work").edge("work", END)
    return graph


def test_a_denied_call_raises_and_is_on_the_log():
    async def played() -> None:
        async def work(state: Log, ctx: Context) -> dict[str, Any]:
            with pytest.raises(ToolDenied, match="not on Sundays"):
                await ctx.call(pay, order="A1")
            outcome = await ctx.outcome(pay, order="A1")
            return {"note": outcome.kind}

        policy = YesPolicy({"pay": lambda request, approved: Refused("no-pay", "test", "not on Sundays")})
        stage = Stage(MemoryStore(), one_call(work), policy=policy).tools(pay)
        run = await stage.start()
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).note == "denied"
        assert not stage.sandboxes.calls
        decided = [e.data for e in await stage.store.events(run.run_id) if e.kind == "decided"]
        assert [(d["decision"], d["rule"]) for d in decided] == [("deny", "no-pay")] * 2

    run_async(played())


def test_a_tool_that_fails_raises_with_its_outcome():
    @tool
    def broken() -> None:
        raise RuntimeError("out of paper")

    async def played() -> None:
        async def work(state: Log, ctx: Context) -> None:
            await ctx.call(broken)

        stage = Stage(MemoryStore(), one_call(work)).tools(broken)
        run = await stage.start()
        assert await stage.drive(run) == "failed"
        assert "ToolError: tool 'broken': error: RuntimeError: out of paper" in (await run.record()).error

    assert issubclass(ToolDenied, ToolError)
    run_async(played())


@pytest.mark.parametrize(
    ("args", "message"),
    [({}, "missing a required argument: 'order'"), ({"order": 7}, "argument 'order'"), ({"x": 1}, "it takes")],
)
def test_wrong_arguments_name_the_tool_and_the_argument(args: dict[str, Any], message: str) -> None:
    async def work(state: Log, ctx: Context) -> None:
        await ctx.call(pay, **args)

    text = fails(one_call(work))
    assert "tool 'pay'" in text
    assert message in text


def test_another_call_in_the_same_place_is_noticed():
    async def played() -> None:
        wish = ["first"]

        async def work(state: Log, ctx: Context) -> None:
            await ctx.call(pay, order=wish[0])
            await ctx.interrupt("wait")

        stage = Stage(MemoryStore(), one_call(work)).tools(pay)
        run = await stage.start()
        assert await stage.drive(run) == "waiting"
        wish[0] = "second"
        await run.resume("go on")
        assert await stage.drive(run) == "failed"
        assert "asks for another call of tool 'pay'" in (await run.record()).error
        assert len(stage.sandboxes.calls) == 1

    run_async(played())


def test_another_call_in_the_place_of_one_that_an_earlier_try_has_made_is_noticed():
    """One that went well, that is; one that failed may be followed by another."""

    @tool
    def refund(order: str) -> str:
        if order == "bad":
            raise ValueError("no")
        return f"refunded {order}"

    async def played(first: str) -> RunRecord:
        tries: list[str] = []

        async def work(state: Log, ctx: Context) -> dict[str, Any]:
            tries.append(first if not tries else "second")
            said = await ctx.call(refund, order=tries[-1])
            if len(tries) == 1:
                raise ConnectionError("not yet")
            return {"seen": [said]}

        graph = Graph("tries", Log)
        graph.node(work, retry=Retry(attempts=2, base_s=0))
        stage = Stage(MemoryStore(), graph.edge(START, work).edge(work, END)).tools(refund)
        run = await stage.start()
        await stage.drive(run)
        assert len(tries) == 2
        assert [args["order"] for _, args in stage.sandboxes.calls] == (
            [first] if first == "first" else [first, "second"]
        )
        return await run.record()

    stopped = run_async(played("first"))
    assert stopped.status == "failed"
    assert "asks for another call of tool 'refund'" in stopped.error
    assert run_async(played("bad")).status == "succeeded"


# --- people and time -----------------------------------------------------------------------------------------------


async def waiting(stage: Stage, given: Any = None) -> Run:
    run = await stage.start(given)
    assert await stage.drive(run) == "waiting"
    return run


def test_an_interrupt_waits_and_goes_on_with_the_answer():
    async def played() -> None:
        async def work(state: Log, ctx: Context) -> dict[str, Any]:
            await ctx.call(pay, order="A1")
            answer = await ctx.interrupt({"approve": "A1"})
            return {"note": answer}

        stage = Stage(MemoryStore(), one_call(work)).tools(pay)
        run = await waiting(stage)
        (question,) = await run.questions()
        assert question.payload == {"approve": "A1"}
        assert not (await stage.store.due(stage.clock() + 1e6, 10)).ready, "a waiting run holds nothing"
        await run.resume("fine")
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).note == "fine"
        assert len(stage.sandboxes.calls) == 1, "the node ran again; its call did not"

    run_async(played())


def test_several_questions_are_answered_in_any_order():
    async def played() -> None:
        async def work(state: Log, ctx: Context) -> dict[str, Any]:
            return {"seen": list(await asyncio.gather(ctx.interrupt("one"), ctx.interrupt("two")))}

        graph = one_call(work)
        graph.node(work, name="more")
        graph.edge(START, "more").edge("more", END)
        stage = Stage(MemoryStore(), graph)
        run = await waiting(stage)
        questions = await run.questions()
        assert [(q.node, q.payload) for q in questions] == [
            ("work", "one"), ("work", "two"), ("more", "one"), ("more", "two"),
        ]  # fmt: skip
        for question in reversed(questions):
            assert (await run.record()).status == "waiting"
            await run.resume(f"{question.node} {question.payload}", question.interrupt_id)
            await stage.drive(run)
        assert (await run.result()).seen == ["work one", "work two", "more one", "more two"]

    run_async(played())


def test_nobody_answers_in_time():
    async def played() -> None:
        now = [time.time() + 1]

        async def work(state: Log, ctx: Context) -> dict[str, Any]:
            try:
                await ctx.interrupt("hello?", deadline=timedelta(days=2))
            except InterruptExpired:
                return {"note": await ctx.interrupt("anybody?")}
            return {}

        stage = Stage(MemoryStore(), one_call(work), clock=lambda: now[0])
        run = await waiting(stage)
        now[0] += 86400
        assert not (await stage.store.due(now[0], 10)).ready
        now[0] += 86401
        assert (await stage.store.due(now[0], 10)).ready == (run.run_id,)
        assert await stage.drive(run) == "waiting"
        (question,) = open_questions(await run.record())
        assert question.payload == "anybody?"
        await run.resume("me", question.interrupt_id)
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).note == "me"

    run_async(played())


def test_a_durable_sleep_holds_no_actor():
    async def played() -> None:
        now = [time.time() + 1]

        async def work(state: Log, ctx: Context) -> dict[str, Any]:
            await ctx.sleep(timedelta(hours=1))
            await ctx.sleep(timedelta(hours=1))
            return {"note": "awake"}

        stage = Stage(MemoryStore(), one_call(work), clock=lambda: now[0])
        run = await waiting(stage)
        now[0] += 3600
        assert await stage.drive(run) == "waiting", "the first sleep is over, the second is not"
        now[0] += 3599
        assert not (await stage.store.due(now[0], 10)).ready
        now[0] += 1
        assert await stage.drive(run) == "succeeded"

    run_async(played())


def test_an_approval_is_for_the_very_call_and_used_once():
    async def played() -> None:
        async def work(state: Log, ctx: Context) -> dict[str, Any]:
            first = await ctx.call(pay, order="A1")
            second = await ctx.call(pay, order="A1")
            return {"seen": [first["receipt"], second["receipt"]]}

        def ask(request: Any, approved: bool) -> Any:
            from understudy.actors.calls import Granted

            return Granted("token", "ask-pay", "test") if approved else Asked("ask-pay", "test", "money")

        stage = Stage(MemoryStore(), one_call(work), policy=YesPolicy({"pay": ask})).tools(pay)
        run = await waiting(stage)
        (first,) = await run.questions()
        assert first.payload["args"] == {"order": "A1"}
        await run.approve(first.interrupt_id)
        assert await stage.drive(run) == "waiting", "the same call in another place is another call"
        (second,) = await run.questions()
        assert second.interrupt_id != first.interrupt_id
        await run.deny(second.interrupt_id, note="once is enough")
        assert await stage.drive(run) == "failed"
        assert "a person said no: once is enough" in (await run.record()).error
        assert len(stage.sandboxes.calls) == 1

    run_async(played())


def test_answers_that_do_not_fit_are_refused():
    """An approval that was "resumed" with null asked again and again, without end; with text, it was a silent no."""

    async def played() -> None:
        async def work(state: Log, ctx: Context) -> None:
            await ctx.call(pay, order="A1")

        policy = YesPolicy({"pay": lambda request, approved: Asked("ask-pay", "test", "money")})
        stage = Stage(MemoryStore(), one_call(work), policy=policy).tools(pay)
        run = await waiting(stage)
        (call,) = await run.questions()
        for answer in (None, "yes", {"approve": True}):
            with pytest.raises(Conflict, match="approve or deny it"):
                await run.resume(answer, call.interrupt_id)
        await stage.store.resume(run.run_id, call.interrupt_id, "null", stage.clock())  # by whatever way it came there
        assert await stage.drive(run) == "failed"

        async def asks(state: Log, ctx: Context) -> None:
            await ctx.interrupt("why?")

        stage = Stage(MemoryStore(), one_call(asks))
        run = await waiting(stage)
        for answer in (math.nan, "\ud800", {1, 2}, object()):
            with pytest.raises(CallerError, match="is not JSON"):
                await run.resume(answer)

    run_async(played())


@pytest.mark.parametrize(("answer", "ends"), [("retry", "succeeded"), ("fail", "failed"), ({"value": {}}, "succeeded")])
def test_an_unknown_call_takes_three_answers_and_no_other(answer: Any, ends: str):
    """A typing error in "retry" was taken for a no."""

    async def played() -> None:
        async def work(state: Log, ctx: Context) -> None:
            await ctx.call(pay, order="A1")

        stage = Stage(MemoryStore(), one_call(work)).tools(pay)
        stage.sandboxes.hold = asyncio.Event()
        run = await stage.start()
        driver = await stage.driver(run)
        driving = asyncio.ensure_future(driver.drive())
        await stage.sandboxes.called.wait()
        driver.fence()
        with pytest.raises(Fenced):
            await driving
        stage.sandboxes.hold = None
        await stage.crash(run)
        assert await stage.drive(run) == "waiting"
        for wrong in ("Retry", None, {"valu": 1}, {"value": 1, "more": 2}):
            with pytest.raises(CallerError, match='"retry", "fail" or'):
                await run.resume(wrong)
        await run.resume(answer)
        assert await stage.drive(run) == ends

    run_async(played())


def test_a_swallowed_suspension_still_waits():
    async def played() -> None:
        async def work(state: Log, ctx: Context) -> dict[str, Any]:
            try:
                return {"note": await ctx.interrupt("?")}
            except:  # noqa: E722
                return {"note": "swallowed"}

        stage = Stage(MemoryStore(), one_call(work))
        run = await waiting(stage)
        await run.resume("answered")
        await stage.drive(run)
        assert (await run.result()).note == "answered"

    run_async(played())


# --- threads, keys, cancel, fork -----------------------------------------------------------------------------------


def test_a_typo_in_the_input_is_seen():
    with pytest.raises(CallerError, match=r"the input of graph 'chain' names 'notee', .* did you mean 'note'\?"):
        play(chain("a"), {"notee": "x"})


def test_an_input_of_another_kind_is_refused():
    with pytest.raises(CallerError, match=r"the input of graph 'chain' is \[1\]; give a Log or a dict"):
        play(chain("a"), [1])


def test_runs_of_a_thread_are_serial_and_share_its_state():
    async def played() -> None:
        graph = Graph("thread", Log)
        graph.node(lambda state: {"total": 1}, name="count")
        graph.edge(START, "count").edge("count", END)
        stage = Stage(MemoryStore(), graph)
        first = await stage.start({"seen": ["hello"]}, thread="T")
        second = await stage.start({"seen": ["again"]}, thread="T")
        assert (await stage.store.due(stage.clock(), 10)).ready == (first.run_id,)
        await stage.drive(first)
        assert (await stage.store.due(stage.clock(), 10)).ready == (second.run_id,)
        await stage.drive(second)
        assert await second.result() == Log(seen=["hello", "again"], total=2)

    run_async(played())


def test_cancel_while_it_works_and_while_it_waits():
    async def played() -> None:
        async def work(state: Log, ctx: Context) -> None:
            await asyncio.Event().wait()

        stage = Stage(MemoryStore(), one_call(work))
        run = await stage.start()
        driver = await stage.driver(run)
        driving = asyncio.ensure_future(driver.drive())
        await asyncio.sleep(0)
        driver.cancel()
        assert await driving == "cancelled"
        assert (await run.cancel()).status == "cancelled", "asking again is no error"

        async def ask(state: Log, ctx: Context) -> None:
            await ctx.interrupt("?")

        stage = Stage(MemoryStore(), one_call(ask))
        run = await waiting(stage)
        assert (await run.cancel()).status == "cancelled"
        assert (await run.record()).status in FINAL

    run_async(played())


def test_a_fork_goes_on_from_a_checkpoint_and_repeats_what_lies_beyond():
    async def played() -> None:
        ran: list[str] = []
        stage = Stage(MemoryStore(), counting(["a", "b", "c"], ran, "b")).tools(pay, mail)
        run = await stage.start()
        await stage.drive(run)
        history = await run.history()
        after_a = next(row for row in history if row.step == 1)
        fork = await run.fork(after_a.checkpoint_id, {"note": "another way"}, effects="repeat")
        await stage.drive(fork)
        assert await fork.result() == Log(seen=["a", "b", "c"], note="another way")
        assert await run.result() == Log(seen=["a", "b", "c"])
        assert ran == ["a", "b", "c", "b", "c"]
        assert len(stage.sandboxes.calls) == 4

    run_async(played())

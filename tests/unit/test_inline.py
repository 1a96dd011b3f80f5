"""`graph.run_inline`: the same engine without Ray, for unit tests and notebooks."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, field_validator

from support.waiting import run_async
from understudy import (
    END,
    START,
    AnswerNeeded,
    Context,
    Graph,
    InterruptExpired,
    RunFailed,
    SteppedClock,
    ToolDenied,
    append,
    open_store,
    tool,
)
from understudy.actors.blocking import BlockingContext
from understudy.actors.errors import CallerError, CodeError
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Interrupt


class Order(BaseModel):
    order: str = "A1"
    notes: Annotated[list[str], append] = []


@tool
def pay(order: str, amount: int = 3) -> str:
    return f"paid {amount} for {order}"


def one(node: Any, name: str = "one") -> Graph:
    graph = Graph(name, Order)
    graph.node(node, name="work")
    return graph.edge(START, "work").edge("work", END)


async def paying(state: Order, ctx: Context) -> dict[str, Any]:
    return {"notes": [await ctx.call(pay, order=state.order)]}


async def asking(state: Order, ctx: Context) -> dict[str, Any]:
    paid = await ctx.call(pay, order=state.order)
    return {"notes": [paid, str(await ctx.interrupt({"go on": state.order}))]}


def test_the_final_state_comes_back_as_the_model():
    assert one(paying).run_inline({"order": "B2"}) == Order(order="B2", notes=["paid 3 for B2"])


def test_it_works_where_a_loop_is_running_as_in_a_notebook():
    async def cell() -> tuple[Any, Any]:
        return one(paying).run_inline(), await one(paying).run_inline_async({"order": "C3"})

    first, second = run_async(cell())
    assert (first.notes, second.notes) == (["paid 3 for A1"], ["paid 3 for C3"])


def test_def_nodes_run_in_a_thread_as_they_do_on_ray():
    def work(state: Order, ctx: BlockingContext) -> dict[str, Any]:
        return {
            "notes": [ctx.call(pay, order="T", amount=1), str(threading.current_thread() is threading.main_thread())]
        }

    assert one(work).run_inline().notes == ["paid 1 for T", "False"]


def test_tools_may_block_run_loops_and_see_their_effect_key():
    @tool
    async def later(text: str) -> list[str]:
        await asyncio.sleep(0)
        return [text, str(len(os.environ["UNDERSTUDY_EFFECT_KEY"]))]

    @tool
    def looping() -> int:
        return asyncio.run(asyncio.sleep(0, 7))

    async def work(state: Order, ctx: Context) -> dict[str, Any]:
        found, seven = await asyncio.gather(ctx.call(later, text="x"), ctx.call(looping))
        return {"notes": [*found, str(seven)]}

    assert one(work).run_inline().notes == ["x", "32", "7"]
    assert "UNDERSTUDY_EFFECT_KEY" not in os.environ


def test_tools_are_replaced_by_name():
    graph = one(paying)
    assert graph.run_inline(tools={"pay": lambda order, amount: "nothing was paid"}).notes == ["nothing was paid"]


def test_an_unanswered_question_says_what_it_asks_and_how_to_answer():
    with pytest.raises(AnswerNeeded) as caught:
        one(asking).run_inline()
    assert "node 'work' of graph 'one' asks (question) {\"go on\": \"A1\"}" in str(caught.value)
    assert "answers={'work': <answer>}" in str(caught.value)


@pytest.mark.parametrize("answers", [{"work": "yes"}, lambda question: "yes"])
def test_questions_are_answered_by_node_or_by_a_function(answers: Any):
    assert one(asking).run_inline(answers=answers).notes == ["paid 3 for A1", "yes"]


def test_the_run_goes_on_from_the_question_with_the_same_store_and_key():
    calls: list[str] = []

    def counted(order: str, amount: int) -> str:
        calls.append(order)
        return "once"

    store = MemoryStore()
    with pytest.raises(AnswerNeeded):
        one(asking).run_inline(store=store, key="k", tools={"pay": counted})
    assert one(asking).run_inline(store=store, key="k", answers={"work": "go"}, tools={"pay": counted}).notes == [
        "once",
        "go",
    ]
    assert calls == ["A1"]


RULES = """
policy: house
version: 1
rules:
  - {id: small, effect: allow, tool: pay, when: {amount: {le: 5}}}
  - {id: big, effect: ask, tool: pay, when: {amount: {gt: 5}}, reason: money}
"""


def bill(amount: int) -> Graph:
    async def work(state: Order, ctx: Context) -> dict[str, Any]:
        try:
            return {"notes": [await ctx.call(pay, order="x", amount=amount)]}
        except ToolDenied as error:
            return {"notes": [f"denied: {error.outcome.error}"]}

    return one(work)


def test_real_rules_judge_calls():
    def asked(question: Interrupt) -> bool:
        assert (question.kind, question.payload["tool"]) == ("approval", "pay")
        return False

    assert bill(5).run_inline(policy=RULES).notes == ["paid 5 for x"]
    assert bill(6).run_inline(policy=RULES, answers={"pay": True}).notes == ["paid 6 for x"]
    assert bill(6).run_inline(policy=RULES, answers=asked).notes == ["denied: a person said no"]
    with pytest.raises(AnswerNeeded, match="approval"):
        bill(6).run_inline(policy=RULES)


def test_a_stepped_clock_makes_long_sleeps_and_deadlines_take_no_time():
    async def work(state: Order, ctx: Context) -> dict[str, Any]:
        await ctx.sleep(timedelta(days=3))
        try:
            await ctx.interrupt("anybody?", deadline=timedelta(days=2))
        except InterruptExpired:
            return {"notes": ["nobody"]}
        return {}

    clock = SteppedClock(1_000_000.0)
    assert one(work).run_inline(clock=clock).notes == ["nobody"]
    assert clock.now == 1_000_000.0 + 5 * 86400


def test_without_one_a_sleep_takes_its_time():
    async def work(state: Order, ctx: Context) -> dict[str, Any]:
        await ctx.sleep(timedelta(milliseconds=30))
        return {"notes": ["slept"]}

    assert one(work).run_inline().notes == ["slept"]


def test_a_run_that_fails_raises_its_error():
    async def work(state: Order) -> None:
        raise ValueError("no such order")

    with pytest.raises(RunFailed, match="ValueError: no such order") as raised:
        one(work).run_inline()
    assert raised.value.__context__ is None, "its traceback does not begin with an error of ours"


def test_a_thread_keeps_its_state_between_runs():
    store = MemoryStore()
    one(paying).run_inline({"order": "1"}, store=store, thread="t")
    assert one(paying).run_inline({"order": "2"}, store=store, thread="t").notes == ["paid 3 for 1", "paid 3 for 2"]


def test_the_stores_are_the_same(tmp_path: Path, redis_url: str):
    for url in (f"sqlite:///{tmp_path}/runs.db", redis_url):
        final = one(asking).run_inline(store=lambda url=url: open_store(url), answers={"work": "yes"}, key="k")
        assert final.notes == ["paid 3 for A1", "yes"]


def test_a_store_that_a_cluster_serves_is_refused():
    store = MemoryStore()
    run_async(store.beat("elsewhere:1:2", "{}", 4e9))
    with pytest.raises(CallerError, match=r"served by elsewhere:1:2.*connect\(\)"):
        one(paying).run_inline(store=store)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from pydantic import BaseModel, field_validator
    from understudy import END, START, Context, Graph, open_store, tool

    folder = Path(sys.argv[1])

    class State(BaseModel):
        said: str = ""

    @tool
    def pay() -> str:
        with (folder / "ledger").open("a") as file:
            file.write("paid\\n")
        return "paid"

    graph = Graph("killed", State)

    @graph.node
    async def first(state: State, ctx: Context):
        return {"said": await ctx.call(pay)}

    @graph.node
    async def second(state: State):
        if not (folder / "again").exists():
            (folder / "again").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"said": state.said + " and done"}

    graph.edge(START, first).edge(first, second).edge(second, END)
    print(graph.run_inline(store=lambda: open_store(f"sqlite:///{folder}/runs.db"), key="k").said)
"""


def test_a_killed_process_is_followed_by_another_that_goes_on(tmp_path: Path):
    def played() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert played().returncode == -signal.SIGKILL
    assert played().stdout == "paid and done\n"
    assert (tmp_path / "ledger").read_text() == "paid\n"


def test_children_are_driven_too_and_ask_through_the_same_answers():
    child = one(asking, "child")

    async def work(state: Order, ctx: Context) -> dict[str, Any]:
        first = await ctx.start(child, {"order": "first"})
        second = await ctx.run(child, {"order": "second"})
        return {"notes": [*(await first.result()).notes, *second.notes]}

    parent = one(work, "parent")
    final = parent.run_inline(answers=lambda question: f"yes to {question.payload['go on']}")
    assert final.notes == ["paid 3 for first", "yes to first", "paid 3 for second", "yes to second"]
    with pytest.raises(AnswerNeeded, match="graph 'child' asks"):
        parent.run_inline()


async def hearing(state: Order, ctx: Context) -> dict[str, Any]:
    return {"notes": [await ctx.receive(), str(await ctx.receive())]}


def test_messages_are_there_before_the_run_begins():
    assert one(hearing).run_inline(messages=["hello", {"n": 1}]).notes == ["hello", "{'n': 1}"]


def test_a_wait_that_nothing_here_can_end_says_so():
    with pytest.raises(
        CallerError, match=r"is waiting for: message, and nothing in this process can end that.*messages="
    ):
        one(hearing).run_inline(messages=["only one"])


def test_a_family_that_was_killed_anywhere_is_taken_up_by_another_process(tmp_path: Path):
    """Also where a stepped clock starts again long before the time that the first process came to."""
    command = [sys.executable, "-m", "support.inline_lives", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    lives = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment, timeout=170)
    told = json.loads(lives.stdout)
    assert told["undisturbed"] == ["rested", "a word", "well enough", "looked down"]
    assert {where: end for where, end in told["ends"].items() if end != told["undisturbed"]} == {}
    assert len(told["ends"]) > 20


def test_graphs_of_one_name_are_told_apart():
    def times(factor: int) -> Graph:
        async def work(state: Order) -> dict[str, Any]:
            return {"notes": [f"{state.order} times {factor}"]}

        return one(work)

    async def work(state: Order, ctx: Context) -> dict[str, Any]:
        found = [*(await ctx.run(times(2), {"order": "a"})).notes, *(await ctx.run(times(3), {"order": "b"})).notes]
        await ctx.interrupt("go on?")
        return {"notes": [*found, *(await ctx.run(times(2), {"order": "c"})).notes]}

    expected = ["a times 2", "b times 3", "c times 2"]
    assert one(work).run_inline(answers={"work": "yes"}).notes == expected
    store = MemoryStore()
    with pytest.raises(AnswerNeeded):
        one(work).run_inline(store=store, key="k")
    assert one(work).run_inline(store=store, key="k", answers={"work": "yes"}).notes == expected


class Fine(BaseModel):
    amount: int

    @field_validator("amount")
    @classmethod
    def not_too_much(cls, amount: int) -> int:
        if amount > 10:
            raise ValueError("too much")
        return amount


@pytest.mark.parametrize(
    ("answer", "problem"),
    [({"amount": "x"}, "does not fit question .*'x' is not of type 'integer'"), ({"amount": 11}, "too much")],
)
def test_an_answer_that_does_not_fit_ends_the_play_and_is_not_given_for_ever(answer: Any, problem: str):
    async def work(state: Order, ctx: Context) -> dict[str, Any]:
        return {"notes": [str((await ctx.interrupt("how much?", schema=Fine)).amount)]}

    assert one(work).run_inline(answers={"work": {"amount": 3}}).notes == ["3"]
    with pytest.raises(CallerError, match=problem):
        one(work).run_inline(answers={"work": answer})
    second_thoughts = iter([{"amount": 11}, {"amount": 12}, {"amount": 7}])
    assert one(work).run_inline(answers=lambda question: next(second_thoughts)).notes == ["7"]


def test_an_approval_with_arguments_that_do_not_fit_ends_the_play_too():
    with pytest.raises(CallerError, match="is not taken, and given again"):
        bill(6).run_inline(policy=RULES, answers={"pay": {"approve": True, "args": {"amount": "much"}}})


def test_a_run_that_has_ended_takes_the_same_messages_again():
    store = MemoryStore()
    for _ in range(2):
        assert one(hearing).run_inline(store=store, key="k", messages=["a", "b"]).notes == ["a", "b"]


def test_the_graph_of_a_waiting_child_is_found_where_its_parent_sees_it():
    store, child = MemoryStore(), one(asking, "child")

    async def work(state: Order, ctx: Context) -> dict[str, Any]:
        return {"notes": (await ctx.run(child)).notes}

    def parent() -> Graph:
        return one(work, "parent")

    with pytest.raises(AnswerNeeded):
        parent().run_inline(store=store, key="k")
    assert parent().run_inline(store=store, key="k", answers={"work": "yes"}).notes == ["paid 3 for A1", "yes"]
    with pytest.raises(AnswerNeeded):
        parent().run_inline(store=store, key="other")
    unseen = one(lambda state: None, "parent")
    with pytest.raises(CodeError, match=r"run of graph 'child' was started by another process.*0 graphs of that name"):
        unseen.run_inline(store=store, key="other", answers={"work": "yes"})


def test_what_is_no_graph_and_no_store_is_named() -> None:
    async def begin(state: Order, ctx: Context) -> None:
        await ctx.run(5, {})  # type: ignore[arg-type]

    with pytest.raises(RunFailed, match="take a Graph or MODULE:GRAPH, not 5"):
        one(begin).run_inline({})
    with pytest.raises(CallerError, match="store='sqlite:///x' is a text"):
        one(paying).run_inline({}, store="sqlite:///x")  # type: ignore[arg-type]

"""A new version of a graph meets what older ones left: taken up as it is, migrated, or refused and left untouched."""

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel

from support.stage import Stage
from understudy import END, START, Context, Graph, Send, append, messages, union
from understudy.actors.checkpoint import restore
from understudy.actors.code import Code
from understudy.actors.errors import CodeError, GraphError
from understudy.actors.memory import MemoryStore
from understudy.actors.start import create, new_run
from understudy.cluster.client import Run


def asking(state: type[BaseModel], version: str = "1", name: str = "ask", goes_on: Any = None) -> Graph:
    """Writes once, asks, and writes once more: stands in a checkpoint in between."""
    graph = Graph("asking", state, version=version)

    @graph.node
    def begin(state: Any) -> Any:
        return {"log": ["begun"]}

    async def ask(state: Any, ctx: Context) -> Any:
        await ctx.interrupt("go on?")
        return goes_on(state) if goes_on else {"log": ["answered"]}

    graph.node(ask, name=name)
    return graph.edge(START, "begin").edge("begin", name).edge(name, END)


class V1(BaseModel):
    name: str
    count: int = 0
    log: Annotated[list[str], append] = []


def go(test: Callable[[MemoryStore], Any]) -> None:
    asyncio.run(test(MemoryStore()))


async def left_by(store: MemoryStore, graph: Graph, given: Any, *, mode: str = "migrate") -> Run:
    """A run that this graph left in its question, which is answered by now."""
    stage = Stage(store, graph)
    new = new_run(graph.plan(), Code(ref="inline:graph", mode=mode), given)
    run = Run(store, (await create(store, new)).run_id, graph)
    assert await stage.drive(run) == "waiting"
    (question,) = await run.questions()
    await store.resume(run.run_id, question.interrupt_id, '"yes"', 0.0)
    return run


async def finished_by(store: MemoryStore, graph: Graph, run: Run) -> dict[str, Any]:
    assert await Stage(store, graph).drive(run) == "succeeded"
    return dict(json.loads((await run.record()).result))


class Added(V1):
    tags: Annotated[list[str], append] = ["default"]
    more: int | None = None


class Wider(BaseModel):
    name: str | None = None
    count: float = 0
    log: Annotated[list[str | int], append] = []


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (Added, {"name": "Ada Lovelace", "count": 0, "tags": ["default", "new"], "more": None}),
        (Wider, {"name": "Ada Lovelace", "count": 0}),
    ],
)
def test_a_compatible_change_is_taken_up_as_it_is(state: type[BaseModel], expected: dict[str, Any]) -> None:
    async def test(store: MemoryStore) -> None:
        run = await left_by(store, asking(V1), {"name": "Ada Lovelace"})
        writes = {"log": ["answered"], **({"tags": ["new"]} if state is Added else {})}
        result = await finished_by(store, asking(state, "2", goes_on=lambda state: writes), run)
        assert result == {**expected, "log": ["begun", "answered"]}

    go(test)


class Split(BaseModel):
    first: str
    last: str
    log: Annotated[list[str], append] = []


class Final(BaseModel):
    first: str
    last: str
    initials: str
    size: Literal["small", "large"] = "small"
    log: Annotated[list[str], append] = []


def split_name(old: dict[str, Any]) -> dict[str, Any]:
    first, _, last = old.pop("name").partition(" ")
    del old["count"]
    return {**old, "first": first, "last": last}


def with_initials(old: dict[str, Any]) -> Final:
    return Final(**old, initials=old["first"][0] + old["last"][0])


def final_graph() -> Graph:
    graph = asking(Final, "3")
    graph.migrate(from_="1")(split_name)
    graph.migrate(from_="2")(with_initials)
    return graph


def test_migrations_are_chained_and_the_next_checkpoint_is_a_snapshot():
    async def test(store: MemoryStore) -> None:
        run = await left_by(store, asking(V1), {"name": "Ada Lovelace", "count": 3})
        before = await store.chain((await run.record()).thread_id, (await run.record()).head)
        result = await finished_by(store, final_graph(), run)
        log = ["begun", "answered"]
        assert result == {"first": "Ada", "last": "Lovelace", "initials": "AL", "size": "small", "log": log}
        record = await run.record()
        chain = await store.chain(record.thread_id, record.head)
        assert [row.snapshot for row in chain] == [True]
        assert (restore(chain).version, restore(before).version) == ("3", "1")
        assert await store.chain(record.thread_id, before[-1].checkpoint_id) == before, "the old one is what it was"

    go(test)


def test_a_run_that_waits_again_is_migrated_again():
    async def test(store: MemoryStore) -> None:
        run = await left_by(store, asking(V1), {"name": "Ada Lovelace"})
        stage = Stage(store, final_graph())
        driver = await stage.driver(run)
        await stage.crash(run)
        assert driver.loaded.run.run_id == run.run_id
        assert (await finished_by(store, final_graph(), run))["initials"] == "AL"

    go(test)


def test_a_run_that_has_not_begun_has_its_input_migrated():
    async def test(store: MemoryStore) -> None:
        run = await Stage(store, asking(V1)).start({"name": "Ada Lovelace"})
        assert await Stage(store, final_graph()).drive(run) == "waiting"
        state = await run.state()
        assert (state["initials"], state["log"]) == ("AL", ["begun"])

    go(test)


def test_a_run_that_has_not_begun_has_new_defaults_too():
    async def test(store: MemoryStore) -> None:
        run = await Stage(store, asking(V1)).start({"name": "Ada"})
        assert await Stage(store, asking(Added, "2")).drive(run) == "waiting"
        state = await run.state()
        assert (state["tags"], state["more"], state["log"]) == (["default"], None, ["begun"])

    go(test)


class Demanding(V1):
    order: str


@pytest.mark.parametrize(
    ("version", "remedy"), [("1", "give the graph a new version="), ("2", r"migrate\(from_=\"1\"\)")]
)
def test_nor_does_one_that_has_not_begun_go_on_without_a_new_channel(version: str, remedy: str) -> None:
    async def test(store: MemoryStore) -> None:
        run = await Stage(store, asking(V1)).start({"name": "Ada"})
        await refused(store, asking(Demanding, version), run, f"channel 'order' is new and has no default.*{remedy}")

    go(test)


class Renamed(BaseModel):
    title: str
    log: Annotated[list[str], append] = []


class Retyped(BaseModel):
    name: int
    count: int = 0
    log: Annotated[list[str], append] = []


class Narrowed(BaseModel):
    name: Literal["Bob"]
    count: int = 0
    log: Annotated[list[str], append] = []


class Quiet(BaseModel):
    name: str
    count: bool = False
    log: Annotated[list[str], append] = []


class WithIds(BaseModel):
    name: str
    count: int = 0
    log: Annotated[list[Any], messages] = []


async def refused(store: MemoryStore, graph: Graph, run: Run, message: str) -> None:
    """As the supervisor would meet it: refused, set aside, and nothing of it changed."""
    stage = Stage(store, graph)
    record = await run.record()
    before = await store.dump(record.thread_id)
    driver = await stage.driver(run)
    with pytest.raises(CodeError, match=message) as error:
        await driver.drive()
    assert run.run_id in str(error.value)
    epoch = (await run.record()).epoch
    await store.requeue(run.run_id, epoch, 1.0, 1.0, [], {}, crashed=False, quarantine=str(error.value))
    after = await store.dump(record.thread_id)
    assert after.checkpoints == before.checkpoints
    for was, now in zip(before.runs, after.runs, strict=True):
        assert (now.writes, now.receipts, now.record.answers) == (was.writes, was.receipts, was.record.answers)
        assert (now.record.head, now.record.interrupts) == (was.record.head, was.record.interrupts)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (Renamed, r"'name' is no field of Renamed any more.*'title' is new and has no default.*migrate\(from_=\"1\"\)"),
        (Retyped, r"channel 'name': \"Ada\" is not int: .*valid integer"),
        (Narrowed, r"channel 'name': \"Ada\" is not .*'Bob'"),
        (Quiet, r"channel 'count': 0 would become false"),
        (WithIds, r"channel 'log': .* has messages without an id"),
    ],
)
def test_an_incompatible_change_is_refused_and_a_fix_takes_it_up(state: type[BaseModel], message: str) -> None:
    async def test(store: MemoryStore) -> None:
        run = await left_by(store, asking(V1), {"name": "Ada"})
        await refused(store, asking(state, "2"), run, message)
        assert (await run.record()).status == "quarantined"
        await store.retry(run.run_id, 2.0)
        assert (await finished_by(store, final_graph_of_one_word(), run))["first"] == "Ada"

    go(test)


def final_graph_of_one_word() -> Graph:
    graph = asking(Split, "2")
    graph.migrate(from_="1")(split_name)
    return graph


def test_a_change_without_a_new_version_says_so():
    async def test(store: MemoryStore) -> None:
        run = await left_by(store, asking(V1), {"name": "Ada"})
        await refused(store, asking(Renamed, "1"), run, "give the graph a new version=")

    go(test)


def test_latest_is_never_migrated():
    async def test(store: MemoryStore) -> None:
        run = await left_by(store, asking(V1), {"name": "Ada Lovelace"}, mode="latest")
        await refused(store, final_graph(), run, "code='latest' is never migrated")
        other = await left_by(store, asking(V1), {"name": "Ada Lovelace"}, mode="latest")
        assert (await finished_by(store, asking(Added, "2"), other))["more"] is None

    go(test)


def broken(old: dict[str, Any]) -> Any:
    raise KeyError("nothing")


@pytest.mark.parametrize(
    ("migration", "message"),
    [
        (broken, r"broken \(from '1' to '2'\) raised KeyError: 'nothing'.*mend it"),
        (lambda old: None, "returned a NoneType.*return the dict"),
        (lambda old: {"log": [], "first": "A", "last": "B", "name": "C"}, "gives 'name', which is no field of Split"),
        (lambda old: {"log": [], "first": "A"}, "gives no 'last', which has no default"),
        (lambda old: {"log": ["x"], "first": "A", "last": 3}, "channel 'last': .*valid string"),
        (lambda old: {"log": [{1, 2}], "first": "A", "last": "B"}, "channel 'log'"),
    ],
)
def test_a_migration_that_goes_wrong_is_told_and_changes_nothing(migration: Any, message: str) -> None:
    async def test(store: MemoryStore) -> None:
        run = await left_by(store, asking(V1), {"name": "Ada"})
        graph = asking(Split, "2")
        graph.migrate(from_="1")(migration)
        await refused(store, graph, run, message)

    go(test)


def test_a_node_that_comes_next_has_to_be_there():
    async def test(store: MemoryStore) -> None:
        run = await left_by(store, asking(V1), {"name": "Ada"})
        await refused(store, asking(V1, "2", name="renamed"), run, "node 'ask', which comes next, does not exist")

    go(test)


class Fan(BaseModel):
    items: list[int] = [1, 2]
    done: Annotated[list[Any], append] = []
    seen: Annotated[set[int], union] = set()


def fan(version: str = "1", state: type[BaseModel] = Fan, arg: Any = int, join: str = "late") -> Graph:
    """Sends two items, one of which asks while the other finishes; beside them, a join of which one source is done."""
    graph = Graph("fan", state, version=version)

    @graph.node
    def split(state: Any) -> None: ...

    async def work(item: Any, ctx: Context) -> Any:
        if item == 2:
            await ctx.interrupt("go on?")
        return {"done": [item], "seen": {item}}

    work.__annotations__["item"] = arg
    graph.node(work)

    @graph.node
    def early(state: Any) -> None: ...

    @graph.node
    def before(state: Any) -> None: ...

    graph.node(lambda state: None, name="late")
    graph.node(lambda state: None, name="last")
    graph.edge(START, "split").branch(
        "split", lambda state: [Send("work", n) for n in state.items] + ["early"], ["work", "early"]
    )
    graph.edge(START, "before").edge("before", "late")
    graph.edge("work", END).edge("late", "last").edge("last", END)
    return graph.edge(["early", join], "last")


class FanOther(Fan):
    done: Annotated[list[str], append] = []


class FanLess(BaseModel):
    items: list[int] = [1, 2]
    done: Annotated[list[Any], append] = []


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (fan("2", arg=dict[str, int]), "node 'work' cannot take what was sent to it, 1: .*be an object"),
        (fan("2", state=FanLess), "'seen' is no field of FanLess|wrote to 'seen', which is no channel any more"),
        (fan("2", state=FanOther), "wrote to channel 'done'"),
    ],
)
def test_what_was_sent_and_what_was_finished_has_to_fit(graph: Graph, message: str) -> None:
    async def test(store: MemoryStore) -> None:
        run = await left_by(store, fan(), {})
        await refused(store, graph, run, message)

    go(test)


def test_pending_writes_are_taken_up_by_a_version_that_can_read_them():
    class FanMore(Fan):
        more: int = 1

    async def test(store: MemoryStore) -> None:
        run = await left_by(store, fan(), {})
        result = await finished_by(store, fan("2", state=FanMore), run)
        assert (sorted(result["done"]), sorted(result["seen"]), result["more"]) == ([1, 2], [1, 2], 1)

    go(test)


class Joined(BaseModel):
    log: Annotated[list[str], append] = []


def joining(version: str, sources: list[str]) -> Graph:
    """`a` is done at once and waits for `c`, which comes after a question."""
    graph = Graph("joining", Joined, version=version)
    graph.node(lambda state: {"log": ["a"]}, name="a")
    graph.node(lambda state: {"log": ["b"]}, name="b")

    @graph.node
    async def c(state: Any, ctx: Context) -> Any:
        await ctx.interrupt("go on?")
        return {"log": ["c"]}

    graph.node(lambda state: {"log": ["end"]}, name="end")
    graph.edge(START, "a").edge(START, "b").edge("b", "c").edge(sources, "end").edge("end", END)
    if "c" not in sources:
        graph.edge("c", END)
    return graph


def test_an_edge_at_which_a_node_waits_has_to_be_there():
    async def test(store: MemoryStore) -> None:
        run = await left_by(store, joining("1", ["a", "c"]), {})
        await refused(store, joining("2", ["a", "b"]), run, r"edge 'a\+c>end', at which a wait for the others")
        await store.retry(run.run_id, 2.0)
        assert (await finished_by(store, joining("3", ["a", "c"]), run))["log"] == ["a", "b", "c", "end"]

    go(test)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ([("1", ""), ("1", "")], "2 migrations from version '1'"),
        ([("3", "")], "migrates from version '3', which is its own"),
        ([("1", "2")], "from version '1' lead to '2' and not to '3'; declare one from '2'"),
        ([("1", "2"), ("2", "1")], "lead to '1' and not to '3'"),
    ],
)
def test_migrations_that_lead_nowhere_are_refused(declared: list[tuple[str, str]], message: str) -> None:
    graph = asking(V1, "3")
    for from_, to in declared:
        graph.migrate(from_=from_, to=to)(lambda old: old)
    with pytest.raises(GraphError, match=message):
        graph.plan()


def test_a_second_run_of_a_thread_goes_on_in_the_migrated_state():
    async def test(store: MemoryStore) -> None:
        run = await left_by(store, asking(V1), {"name": "Ada Lovelace"})
        await finished_by(store, asking(V1), run)
        record = await run.record()
        given = {"first": "Eve", "last": "L", "initials": "x"}
        new = new_run(final_graph().plan(), Code(ref="inline:graph"), given, thread=record.thread_id)
        second = Run(store, (await create(store, new)).run_id)
        assert await Stage(store, final_graph()).drive(second) == "waiting"
        state = await second.state()
        assert (state["first"], state["log"]) == ("Eve", ["begun", "answered", "begun"])
        assert [row.snapshot for row in await store.chain(record.thread_id, (await second.record()).head)] == [True]

    go(test)

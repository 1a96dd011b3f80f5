"""A workspace is part of the state: it moves with the step, and what untrusted code says of it is checked."""

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, strategies
from pydantic import BaseModel

from understudy import END, START, AnswerNeeded, Context, Graph, append, tool
from understudy.actors import files, inline_folder
from understudy.actors.errors import CallerError, RunFailed
from understudy.actors.files import BadFiles, applied, change_between, checked, item_of, together
from understudy.actors.memory import MemoryStore
from understudy.actors.outcome import Outcome
from understudy.actors.secret_traces import Traces
from understudy.cluster.client import Run
from understudy.cluster.testing.crash import crash_points


@tool(workspace="write", idempotent=True)
def note(path: str, text: str) -> list[str]:
    """Append to a file; what there is then."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write(text)
    return sorted(str(found) for found in Path().rglob("*") if found.is_file())


@tool(workspace="write", idempotent=True)
def spoil(path: str) -> None:
    Path(path).write_text("spoiled")
    raise ValueError("no")


class Work(BaseModel):
    seen: Annotated[list[Any], append] = []


def two_nodes(left: str, right: str) -> Graph:
    graph = Graph("parallel-files", Work, version="1")

    async def first(state: Work, ctx: Context) -> None:
        await ctx.call(note, path=left, text="left")

    async def second(state: Work, ctx: Context) -> None:
        await ctx.call(note, path=right, text="right")

    async def after(state: Work, ctx: Context) -> dict[str, Any]:
        return {"seen": [await ctx.call(note, path="c", text="after")]}

    for node in (first, second, after):
        graph.node(node)
    graph.edge(START, "first").edge(START, "second").edge(["first", "second"], "after").edge("after", END)
    return graph


def chain() -> Graph:
    graph = Graph("files", Work, version="1")

    @graph.node
    async def begin(state: Work, ctx: Context) -> dict[str, Any]:
        await ctx.call(note, path="a", text="1")
        ctx.write_file("own/b", "mine")
        with pytest.raises(CallerError):
            ctx.write_file("../out", "no")
        outcome = await ctx.outcome(spoil, path="a")
        return {"seen": [await ctx.call(note, path="a", text="2"), outcome.kind]}

    @graph.node
    async def go_on(state: Work, ctx: Context) -> dict[str, Any]:
        listed = await ctx.call(note, path="own/b", text="!")
        return {"seen": [listed, ctx.read_file("a").decode(), ctx.read_file("own/b").decode()]}

    return graph.edge(START, "begin").edge("begin", "go_on").edge("go_on", END)


def test_calls_and_nodes_see_what_those_before_them_left() -> None:
    found = chain().run_inline({}, files={"given": b"x"})
    assert found.seen == [["a", "given", "own/b"], "error", ["a", "given", "own/b"], "12", "mine!"]


@tool(workspace="write")
async def places(again: bool) -> list[str]:
    """Where the call is, what it starts is, and the process is, meanwhile."""
    started = await asyncio.create_subprocess_exec("pwd", stdout=asyncio.subprocess.PIPE)
    said = (await started.communicate())[0].decode().strip()
    return [os.getcwd(), said, os.readlink(f"/proc/self/task/{os.getpid()}/cwd")]


def asking_twice() -> Graph:
    graph = Graph("asking-twice", Work)

    @graph.node
    async def ask(state: Work, ctx: Context) -> dict[str, Any]:
        return {"seen": [await ctx.call(places, again=False), await ctx.call(places, again=True)]}

    return graph.edge(START, "ask").edge("ask", END)


def test_a_call_is_in_a_folder_of_its_own_and_the_process_stays_where_it_is() -> None:
    here = os.getcwd()
    first, second = asking_twice().run_inline().seen
    assert first[0] == first[1] != second[0] == second[1]
    assert {first[2], second[2], os.getcwd()} == {here}
    assert not Path(first[0]).exists()


def test_where_no_thread_may_have_a_folder_the_process_comes_back_from_the_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = os.getcwd()
    monkeypatch.setattr(inline_folder, "part_with_the_folder", lambda: False)
    first, _second = asking_twice().run_inline().seen
    assert first[0] == first[1] == first[2] != here == os.getcwd()


@tool(workspace="write")
def replace(path: str, text: str) -> str:
    """Not to be done twice."""
    Path(path).write_text(text)
    return text


class Deadly(MemoryStore):
    """The first sandbox that has an outcome to tell dies of it."""

    told = 0

    async def finish(self, *args: Any) -> bool:
        self.told += 1
        if self.told == 1:
            raise asyncio.CancelledError
        return await super().finish(*args)


def test_a_person_who_gives_a_value_is_told_that_the_files_are_lost() -> None:
    graph = Graph("lost", Work)

    @graph.node
    async def work(state: Work, ctx: Context) -> dict[str, Any]:
        ctx.write_file("a", "before")
        return {"seen": [await ctx.call(replace, path="a", text="after"), ctx.read_file("a").decode()]}

    graph.edge(START, "work").edge("work", END)
    for answer, seen in (({"value": "it was done"}, ["it was done", "before"]), ("retry", ["after", "after"])):
        store = Deadly()
        with pytest.raises(AnswerNeeded, match="with a value the files stay as they were before it"):
            graph.run_inline(store=store, key="k")
        assert graph.run_inline(store=store, key="k", answers={"work": answer}).seen == seen


def test_a_death_at_every_boundary_leaves_the_same_files() -> None:
    report = crash_points(chain(), {})
    assert report.ok, report


def test_files_that_die_with_their_sandbox_are_no_fault_of_the_graph() -> None:
    graph = Graph("once", Work)

    @graph.node
    async def work(state: Work, ctx: Context) -> dict[str, Any]:
        return {"seen": [await ctx.call(replace, path="a", text="once")]}

    graph.edge(START, "work").edge("work", END)
    report = crash_points(graph, {})
    assert report.ok, report


def test_parallel_nodes_may_change_different_paths() -> None:
    assert two_nodes("a", "b").run_inline({}).seen == [["a", "b", "c"]]


def test_parallel_nodes_that_change_one_path_are_an_error_that_names_both() -> None:
    with pytest.raises(RunFailed, match=r"'first' and 'second'.*'a' of the workspace"):
        two_nodes("a", "a").run_inline({})
    with pytest.raises(RunFailed, match=r"file and a folder"):
        two_nodes("a", "a/b").run_inline({})


@pytest.mark.parametrize(
    "item",
    [
        item_of("../a", b""),
        item_of("/etc/passwd", b""),
        item_of("a//b", b""),
        item_of("a/./b", b""),
        item_of("", b""),
        item_of("a\0b", b""),
        item_of("a\ud800", b""),
        item_of("/".join("a" * 33), b""),
        item_of("a" * 513, b""),
        {"id": "a", "kind": "link", "target": "/etc"},
        {"id": "a", "kind": "link", "target": ".."},
        {"id": "b/a", "kind": "link", "target": "../../etc"},
        {"id": "a/b/c", "kind": "link", "target": "x/../y"},
        {"id": "a", "kind": "device"},
        {"id": "a", "kind": "file", "data": "?", "x": False},
        {"id": "a", "kind": "file", "data": "", "x": False, "size": 3},
        ["../a"],
        3,
    ],
)
def test_what_is_no_tree_of_plain_files_is_refused(item: Any) -> None:
    with pytest.raises(BadFiles):
        checked([item])


def test_a_path_through_a_link_or_a_file_is_refused() -> None:
    for above in ({"id": "a", "kind": "link", "target": "b"}, item_of("a", b"")):
        with pytest.raises(BadFiles, match="folder with files"):
            applied({}, checked([above, item_of("a/b", b"")]))


def test_there_are_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FILES_MAX", 3)
    monkeypatch.setattr(files, "BYTES_MAX", 10)
    with pytest.raises(BadFiles, match="limit is 3"):
        applied({}, checked([item_of(name, b"") for name in "abcd"]))
    with pytest.raises(BadFiles, match="limit is 10"):
        applied({}, checked([item_of("a", b"x" * 12)]))


PATHS = strategies.sampled_from(["a", "b", "c/d", "c/e", "f"])
TREES = strategies.dictionaries(PATHS, strategies.binary(max_size=3)).map(
    lambda tree: {path: item_of(path, data) for path, data in tree.items()}
)


@given(TREES, TREES)
def test_a_change_leads_from_one_tree_to_the_other(before: Any, after: Any) -> None:
    assert applied(before, change_between(before, after)) == after
    assert applied(before, together(before, [("a", change_between(before, after))])) == after


JSON = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.text(max_size=5) | strategies.sampled_from(["file", ".."]),
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(strategies.sampled_from(["id", "kind", "data", "x", "target"]), inner, max_size=5)
    ),
)


@given(JSON)
def test_whatever_is_said_of_files_is_refused_or_a_workspace(said: Any) -> None:
    try:
        after = applied({}, checked(said))
    except BadFiles:
        return
    assert all(not path.startswith("/") and ".." not in path.split("/") for path in after)


def test_a_file_that_holds_a_secret_is_not_kept() -> None:
    traces = Traces({"key": "sesame-open-1"})
    outcome = Outcome("ok", value=1, files=[item_of("a", b"x sesame-open-1 y")])
    kept = traces.outcome(outcome, 100, 100)
    assert (kept.kind, kept.files) == ("error", None)
    assert "'a' holds a secret" in kept.error
    fine = Outcome("ok", value=1, files=[item_of("a", b"x"), ["b"]])
    assert traces.outcome(fine, 100, 100).files == fine.files


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a\n", "."])
def test_paths_that_were_spoilt_in_the_store_are_not_handed_out(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`understudy files --to` writes where they say."""

    async def spoilt(self: Run, checkpoint_id: str = "") -> Any:
        return {path: item_of(path, b"x")}

    monkeypatch.setattr(Run, "workspace", spoilt)
    with pytest.raises(BadFiles, match="is no path in a workspace"):
        asyncio.run(Run(MemoryStore(), "r").files())

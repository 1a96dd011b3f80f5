"""A graph that cannot run says so when its plan is built, with everything that is wrong and what to do."""

from typing import Annotated

import pytest
from pydantic import BaseModel, Field

from understudy import END, START, Context, Graph, append
from understudy.actors.errors import GraphError


class State(BaseModel):
    x: int = 0


def build(*nodes: str) -> Graph:
    graph = Graph("g", State)
    for name in nodes:
        graph.node(lambda state: None, name=name)
    return graph


def problems(graph: Graph) -> str:
    with pytest.raises(GraphError) as caught:
        graph.plan()
    return str(caught.value)


def test_unknown_node_is_named_with_the_nearest_one():
    graph = build("charge").edge(START, "charge").edge("charge", "chrage")
    assert "there is no node 'chrage'; did you mean 'charge'?" in problems(graph)


def test_unreachable_node_and_missing_end_are_told_together():
    graph = build("a", "b").edge(START, "a").edge("b", END)
    text = problems(graph)
    assert "node 'b' is never reached" in text
    assert "no way to END from 'a'" in text
    assert "graph.edge('a', END)" in text


def test_a_missing_end_is_told_of_the_last_node_alone():
    text = problems(build("a", "b").edge(START, "a").edge("a", "b"))
    assert "no way to END from 'b'; add graph.edge('b', END)" in text
    assert "from 'a'" not in text


def test_nothing_after_start():
    assert "add graph.edge(START, 'a')" in problems(build("a").edge("a", END))


def test_no_nodes():
    assert "add one with @graph.node" in problems(Graph("g", State))


def test_start_is_no_target_and_end_no_source():
    assert "START cannot be gone to" in problems(build("a").edge(START, "a").edge("a", START).edge("a", END))
    assert "nothing comes after END" in problems(build("a").edge(START, "a").edge("a", END).edge(END, "a"))


def test_a_loop_needs_a_way_out():
    graph = build("a", "b").edge(START, "a").edge("a", "b").edge("b", "a")
    assert "no way to END" in problems(graph)
    graph.branch("b", lambda state: END, [END])
    assert graph.plan().name == "g"


def test_goto_counts_as_edges():
    graph = Graph("g", State)
    graph.node(lambda state: None, name="a", goto=["b", END])
    graph.node(lambda state: None, name="b")
    graph.edge(START, "a").edge("b", END)
    assert set(graph.plan().nodes) == {"a", "b"}


def test_a_name_is_taken_once():
    graph = build("a")
    with pytest.raises(GraphError, match="has a node 'a' already"):
        graph.node(lambda state: None, name="a")


def test_a_name_is_one_that_every_store_can_hold():
    graph = Graph("g\ud800", State, version="1\0")
    graph.node(lambda state: None, name="n" * 1001)
    graph.edge(START, "n" * 1001).edge("n" * 1001, END)
    told = problems(graph)
    assert "its name 'g\\ud800' has a NUL or a lone surrogate" in told
    assert "its version '1\\x00' has a NUL" in told
    assert "has 1001 bytes, and 1000 is the limit" in told


def test_functions_stand_for_their_names():
    graph = Graph("g", State)

    @graph.node
    def first(state: State) -> None: ...

    @graph.node
    def second(state: State) -> None: ...

    graph.edge(START, first).edge(first, second).edge(second, END)
    assert graph.plan().edges["first"] == ("second",)


def test_how_a_node_wants_to_be_called():
    graph = Graph("g", State)

    @graph.node
    async def both(state: State, ctx: Context) -> None: ...

    @graph.node
    def alone() -> None: ...

    @graph.node
    def only_context(ctx: Context) -> None: ...

    @graph.node
    def bare(s, c): ...

    class Object:
        async def __call__(self, state: State) -> None: ...

    graph.node(Object(), name="object")
    graph.edge(START, "both").edge("both", "alone").edge("alone", "only_context").edge("only_context", "bare")
    graph.edge("bare", "object").edge("object", END)
    nodes = graph.plan().nodes
    assert (nodes["both"].takes_state, nodes["both"].context_name, nodes["both"].is_async) == (True, "ctx", True)
    assert (nodes["alone"].takes_state, nodes["alone"].context_name) == (False, "")
    assert (nodes["only_context"].takes_state, nodes["only_context"].context_name) == (False, "ctx")
    assert (nodes["object"].takes_state, nodes["object"].is_async) == (True, True)
    assert (nodes["bare"].takes_state, nodes["bare"].context_name) == (True, "c")


def test_too_many_parameters():
    with pytest.raises(GraphError, match=r"takes a, b, c; a node takes the state"):
        Graph("g", State).node(lambda a, b, c: None, name="n")


def test_channels_that_cannot_be():
    class Aliased(BaseModel):
        x: int = Field(alias="y")

    class NotAList(BaseModel):
        x: Annotated[int, append] = 0

    class Twice(BaseModel):
        x: Annotated[list[int], append, lambda a, b: b] = []

    for model, message in ((Aliased, "alias"), (NotAList, "has to be a list"), (Twice, "2 reducers")):
        graph = Graph("g", model)
        graph.node(lambda state: None, name="a")
        graph.edge(START, "a").edge("a", END)
        with pytest.raises(GraphError, match=message):
            graph.plan()


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: Graph("", State), "the name of a graph is ''; give a text"),
        (lambda: Graph("g", State, version=2), "the version of a graph is 2; give a text, e.g. '2'"),
        (lambda: Graph("g", int), "its state is <class 'int'>; give a pydantic model"),
        (lambda: Graph("g", State).branch("a", "b", ["b"]), "the branch after 'a' is chosen by 'b'; give a function"),
    ],
)
def test_what_is_no_graph_is_told_where_it_is_written(made, told):
    with pytest.raises(GraphError, match=told):
        made()

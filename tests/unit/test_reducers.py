"""Reducers: what a channel holds after writes, in the process that made them and in one that loads them."""

import json
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, create_model

import understudy
from support.stepping import Stepping, loop_of
from understudy import Graph, Remove, append, barrier, ephemeral, merge, messages, topic, union
from understudy.actors import reducers
from understudy.actors.errors import GraphError, InvalidWrite
from understudy.actors.values import Change


class Message(BaseModel):
    id: str
    text: str = ""


class Everything(BaseModel):
    log: Annotated[list[int], append] = []
    seen: Annotated[set[str], union] = set()
    ordered: Annotated[list[Any], union] = []
    by_name: Annotated[dict[str, int | None], merge] = {}
    chat: Annotated[list[Message], messages] = []
    news: Annotated[list[int], topic] = []
    flash: Annotated[int, ephemeral] = 7
    votes: Annotated[dict[str, bool], barrier("a", "b")] = {}
    longest: Annotated[str, max] = ""


ids = st.sampled_from(["m1", "m2", "m3", "m4"])
chat_writes = st.lists(st.builds(Message, id=ids, text=st.text(max_size=5)) | st.builds(Remove, ids), max_size=4)
shared_writes = st.fixed_dictionaries(
    {},
    optional={
        "log": st.lists(st.integers(), max_size=3),
        "seen": st.sets(st.text(max_size=3), max_size=3),
        "ordered": st.lists(st.integers(0, 5) | st.text(max_size=1) | st.none(), max_size=3),
        "by_name": st.dictionaries(st.text(max_size=2), st.none() | st.integers(), max_size=3),
        "chat": chat_writes,
        "news": st.lists(st.integers(), max_size=2),
        "longest": st.text(max_size=4),
    },
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(shared_writes, shared_writes), max_size=25))
def test_a_channel_holds_what_its_reducer_says_here_and_after_loading(steps: list[tuple[Any, Any]]) -> None:
    """The stored deltas are merged as JSON, without the reducers: both have to come to the same."""
    stepping = Stepping(loop_of(Everything, "a", "b"))
    expected: dict[str, Any] = Everything().model_dump() | {"chat": []}
    for a, b in steps:
        stepping.step({"a": a, "b": b})
        expected["news"] = []
        for writes in (a, b):
            for name, value in writes.items():
                reducer = Everything.model_fields[name].metadata[0]
                expected[name] = reducer(expected[name], value)
        for state in (stepping.state(), stepping.restored()):
            assert {name: getattr(state, name) for name in expected} == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(chat_writes, min_size=1, max_size=12), st.data())
def test_an_earlier_value_stays_what_it_was(steps: list[Any], data: st.DataObject) -> None:
    """Values share what was written before; one that is read late, or from which another line goes on, is its own."""
    stepping = Stepping(loop_of(Everything, "a"))
    kept, read_early = [], []
    for writes in steps:
        kept.append(stepping.step({"a": {"chat": writes, "log": [len(kept)]}}).values)
        if data.draw(st.booleans()):
            kept[data.draw(st.integers(0, len(kept) - 1))]["chat"]
        read_early.append(stepping.restored().chat)
    channel = stepping.plan.channels["chat"]
    for values, early in zip(kept, read_early, strict=True):
        assert channel.decode(values["chat"]) == early
    fork = data.draw(st.integers(0, len(kept) - 1))
    forked = kept[fork].after({"log": Change("[-1]", "append")})
    assert json.loads(forked["log"]) == [*range(fork + 1), -1]
    assert json.loads(kept[-1]["log"]) == list(range(len(kept)))


def test_a_message_is_replaced_in_its_place_and_can_be_taken_out():
    stepping = Stepping(loop_of(Everything, "a"), {"chat": [{"id": "m1", "text": "one"}, {"id": "m2", "text": "two"}]})
    stepping.step({"a": {"chat": [Message(id="m3"), Message(id="m1", text="new")]}})
    assert [(m.id, m.text) for m in stepping.restored().chat] == [("m1", "new"), ("m2", "two"), ("m3", "")]
    stepping.step({"a": {"chat": [Remove("m2"), Remove("never there")]}})
    stepping.step({"a": {"chat": [Remove("m1"), Message(id="m1", text="last")]}})
    assert [m.id for m in stepping.restored().chat] == [m.id for m in stepping.state().chat] == ["m3", "m1"]


def test_what_grows_stores_what_is_written_to_it():
    stepping = Stepping(loop_of(Everything, "a", "b"))
    many = {
        "log": list(range(100)),
        "seen": {str(n) for n in range(100)},
        "by_name": {str(n): n for n in range(100)},
        "chat": [Message(id=f"m{n}") for n in range(100)],
    }
    stepping.step({"a": many})
    one = {"log": [1], "seen": {"x"}, "by_name": {"y": None}, "chat": [Message(id="m5", text="new"), Remove("m6")]}
    stepping.step({"a": one, "b": {"log": [2], "seen": {"x"}}})
    body = stepping.bodies()[-1]
    assert body["append"] == {"log": [1, 2]}
    assert body["union"] == {"seen": ["x", "x"]}
    assert body["merge"] == {"by_name": {"y": None}}
    assert body["messages"] == {"chat": [{"id": "m5", "text": "new"}, ["m6"]]}
    assert len(stepping.rows[-1].body) < 500


def test_a_topic_holds_what_the_last_superstep_wrote():
    stepping = Stepping(loop_of(Everything, "a", "b"), {"news": [0]})
    assert stepping.state().news == [0]
    stepping.step({"a": {"news": [1]}, "b": {"news": [2, 3]}})
    assert stepping.state().news == stepping.restored().news == [1, 2, 3]
    stepping.step({})
    assert stepping.state().news == stepping.restored().news == []


def test_an_ephemeral_value_is_seen_once():
    stepping = Stepping(loop_of(Everything, "a", "b"), {"flash": 1})
    assert stepping.state().flash == 1
    stepping.step({"a": {"flash": 2}})
    assert stepping.state().flash == stepping.restored().flash == 2
    stepping.step({})
    assert stepping.state().flash == stepping.restored().flash == 7, "back to its default"
    with pytest.raises(InvalidWrite, match=r"'flash' got 2 writes .*'a', 'b'"):
        stepping.step({"a": {"flash": 1}, "b": {"flash": 2}})


class Required(BaseModel):
    flash: Annotated[int, ephemeral]
    other: int = 0


def test_an_ephemeral_channel_without_a_default_has_no_value_afterwards():
    stepping = Stepping(loop_of(Required, "a"), {"flash": 1})
    stepping.step({})
    assert "flash" not in stepping.now.values
    assert stepping.restored().model_dump() == {"other": 0}
    with pytest.raises(AttributeError, match="flash"):
        _ = stepping.restored().flash


def test_a_barrier_has_a_value_once_all_have_written():
    stepping = Stepping(loop_of(Everything, "a", "b"))
    stepping.step({"a": {"votes": True}})
    assert stepping.state().votes == stepping.restored().votes == {}
    stepping.step({"a": {"votes": False}})
    assert stepping.restored().votes == {}
    stepping.step({"b": {"votes": True}})
    assert stepping.state().votes == stepping.restored().votes == {"a": False, "b": True}
    stepping.step({})
    assert stepping.restored().votes == {"a": False, "b": True}, "it stays until the next round"
    stepping.step({"b": {"votes": False}})
    assert stepping.restored().votes == {}
    stepping.step({"a": {"votes": True}, "b": {"votes": True}})
    assert stepping.restored().votes == {"a": True, "b": True}


def test_a_barrier_refuses_who_is_not_named():
    with pytest.raises(InvalidWrite, match=r"node 'c' .*'votes'.* waits for a, b only; add 'c'"):
        Stepping(loop_of(Everything, "a", "c")).step({"c": {"votes": True}})
    with pytest.raises(InvalidWrite, match=r"'votes'.*at a: .*boolean"):
        Stepping(loop_of(Everything, "a", "c")).step({"a": {"votes": "perhaps"}})


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ([Message.model_construct(id=None)], "at 0: .*id: Input should be a valid string"),
        (Message(id="m"), "list of messages"),
        ([Message(id="a"), {"text": "x"}], "at 1: id: Field required"),
        ([Remove(None)], "at 0: the id of a message"),
    ],
)
def test_a_message_needs_an_id(written: Any, message: str) -> None:
    with pytest.raises(InvalidWrite, match=message):
        Stepping(loop_of(Everything, "a")).step({"a": {"chat": written}})


class Loose(BaseModel):
    chat: Annotated[list[dict[str, Any]], messages] = []


def test_messages_may_be_dicts():
    stepping = Stepping(loop_of(Loose, "a"), {"chat": [{"id": 1, "role": "user"}]})
    stepping.step({"a": {"chat": [{"id": 1, "role": "tool"}, {"id": "1"}]}})
    assert stepping.restored().chat == [{"id": 1, "role": "tool"}, {"id": "1"}]
    with pytest.raises(InvalidWrite, match="at 0: a message needs an `id`"):
        stepping.step({"a": {"chat": [{"role": "user"}]}})


class Short(BaseModel):
    last_three: Annotated[list[int], append, Field(max_length=3)] = []


def test_a_limit_on_the_whole_holds_for_the_whole():
    stepping = Stepping(loop_of(Short, "a"))
    stepping.step({"a": {"last_three": [1, 2]}})
    with pytest.raises(InvalidWrite, match="at most 3 items"):
        stepping.step({"a": {"last_three": [3, 4]}})


def _graph_of(annotation: Any, default: Any = None) -> Graph:
    graph = loop_of(create_model("Made", cell=(annotation, default)), "a")
    graph.plan()
    return graph


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (Annotated[str, append], "reducer append, so it has to be a list"),
        (Annotated[list[int] | None, append], "has to be a list"),
        (Annotated[dict[str, int], union], "has to be a set or frozenset or list"),
        (Annotated[list[int], merge], "has to be a dict"),
        (Annotated[set[int], messages], "has to be a list"),
        (Annotated[list[int], barrier("a")], "has to be a dict"),
        (Annotated[dict[str, int], barrier()], "barrier without writers"),
        (Annotated[list[int], append, union], "has 2 reducers"),
        (Annotated[list[int], topic, Field(max_length=3)], "put it on the items"),
    ],
)
def test_a_reducer_that_does_not_fit_is_refused(annotation: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        _graph_of(annotation, [])


def test_all_reducers_are_public_names():
    for name in ("append", "add", "union", "merge", "messages", "Remove", "topic", "ephemeral", "barrier"):
        assert getattr(understudy, name) is getattr(reducers, name)

"""Checkpoints: what is stored is in proportion to what is new, and what is read back is what was written."""

import json
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from understudy import END, START, Graph, add, append
from understudy.actors.chain import SEGMENT_ROWS
from understudy.actors.channels import channels_of
from understudy.actors.checkpoint import Checkpoint, following, restore, seed
from understudy.actors.errors import InvalidWrite
from understudy.actors.records import CheckpointRow, NewCheckpoint
from understudy.actors.step import TaskResult, apply, opening, result_of, tasks_of
from understudy.actors.values import Change, Values, joined


class Chat(BaseModel):
    messages: Annotated[list[str], append] = []
    count: Annotated[int, add] = 0
    last: str | None = None


def loop() -> Graph:
    graph = Graph("chat", Chat, step_limit=100_000)
    graph.node(lambda state: None, name="say")
    graph.edge(START, "say").branch("say", lambda state: "say", ["say", END])
    return graph


def as_row(new: NewCheckpoint) -> CheckpointRow:
    return CheckpointRow(new.checkpoint_id, new.parent, new.step, new.snapshot, new.body, "r00-x", 0.0, since=new.since)


def play(
    steps: list[dict[str, Any]], given_input: dict[str, Any] | None = None
) -> tuple[Checkpoint, list[CheckpointRow]]:
    """Run a one-node loop over these writes; the last checkpoint, and all rows."""
    plan = loop().plan()
    text = json.dumps({"values": {}, "defaults": {"messages": [], "count": 0, "last": None}})
    current = opening(plan, Checkpoint(), text)
    rows = []
    for writes in steps:
        (task,) = tasks_of(current, "r00-x")
        result = result_of(plan, plan.nodes["say"], writes)
        values, changes, frontier, arrived = apply(plan, current, [(task, result)])
        current, new = following(current, "r00-x", values, changes, frontier, arrived, plan.fingerprint)
        rows.append(as_row(new))
    return current, rows


def play_deltas(steps: list[dict[str, Any]]) -> int:
    """N of the law: the bytes that deltas alone would take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("understudy.actors.checkpoint.SEGMENT_ROWS", 10**9)
        patch.setattr("understudy.actors.checkpoint.SNAPSHOT_ROWS_MIN", 10**9)
        patch.setattr("understudy.actors.checkpoint.SNAPSHOT_ROWS_MAX", 10**9)
        return sum(len(row.body) for row in play(steps)[1][1:])


def chain_to(rows: list[CheckpointRow], index: int) -> list[CheckpointRow]:
    """What a store loads."""
    known = {row.checkpoint_id: row for row in rows[: index + 1]}
    chain = [rows[index]]
    while chain[-1].stands_on:
        chain.append(known[chain[-1].stands_on])
    return chain[::-1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "messages": st.lists(st.text(), max_size=3),
                "count": st.integers(-(10**20), 10**20),
                "last": st.none() | st.text(),
            },
        ),
        max_size=120,
    )
)
def test_every_checkpoint_restores_to_what_it_was(steps: list[dict[str, Any]]) -> None:
    plan = loop().plan()
    messages: list[str] = []
    count, last = 0, None
    _, rows = play(steps)
    for index, writes in enumerate(steps):
        messages = messages + writes.get("messages", [])
        count += writes.get("count", 0)
        last = writes.get("last", last)
        values = restore(chain_to(rows, index)).values
        decoded = {name: plan.channels[name].decode(text) for name, text in values.items()}
        assert decoded == {"messages": messages, "count": count, "last": last}


def test_bytes_are_in_proportion_to_the_new_data():
    """Law 8: a list that only grows is stored twice, and what goes with each superstep."""
    message = "m" * 500
    _, rows = play([{"messages": [message]} for _ in range(3000)])
    stored = sum(len(row.body) for row in rows)
    assert stored < 2 * 3000 * (500 + 100)
    deltas = [len(row.body) for row in rows if not row.snapshot and not row.since]
    assert max(deltas) < 700, "a delta holds the new message alone, at the end as at the beginning"
    segments = [len(row.body) for row in rows if row.since]
    assert max(segments) < 32 * (500 + 20) + 200
    assert not any(row.snapshot for row in rows[1:])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries({"messages": st.lists(st.just("m" * 40), max_size=3)})
        | st.fixed_dictionaries({"last": st.integers(0, 3000).map(lambda n: "x" * n)})
        | st.fixed_dictionaries({"count": st.just(1)}),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 200),
)
def test_snapshots_are_paid_for_by_deltas(pattern: list[dict[str, Any]], times: int) -> None:
    """The numbers of the law, whatever is written: 3.1 N at most, beside the very first snapshot."""
    _, rows = play(pattern * times)
    deltas = play_deltas(pattern * times)
    assert sum(len(row.body) for row in rows[1:]) <= 3.1 * deltas + 2 * len(rows[0].body) + 4000


def test_small_changes_of_a_large_state_are_small():
    _, rows = play([{"last": "x" * 100_000}, *({"count": 1} for _ in range(300))])
    assert sum(1 for row in rows if row.snapshot) <= 3
    assert all(len(row.body) < 400 for row in rows[9:] if not row.snapshot)


@pytest.mark.parametrize("write", [{"count": 1}, {"messages": ["m" * 200]}, {"last": "x" * 50}])
def test_loading_is_bounded(write: dict[str, Any]):
    first = {"last": "x" * 100_000, "messages": ["m" * 100_000]}
    _, rows = play([first, *(write for _ in range(3000))])
    for index in range(0, len(rows), 7):
        assert len(chain_to(rows, index)) <= index / SEGMENT_ROWS + SEGMENT_ROWS + 1


def test_what_is_loaded_is_in_proportion_to_the_state():
    """Also of one that is overwritten again and again: never more than twice the state, and the deltas of a segment."""
    _, rows = play([{"last": "x" * 5000}, *({"last": f"{n}".ljust(5000)} for n in range(300))])
    delta = max(len(row.body) for row in rows)
    for index in range(len(rows)):
        assert sum(len(row.body) for row in chain_to(rows, index)) <= 2 * delta + (SEGMENT_ROWS - 1) * delta


def test_a_chain_of_many_segments_begins_anew(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("understudy.actors.checkpoint.SNAPSHOT_ROWS_MAX", 50)
    _, rows = play([{"last": "x" * 5000}, *({"count": 1} for _ in range(3000))])
    assert max(len(chain_to(rows, index)) for index in range(len(rows))) <= 51
    assert sum(row.snapshot for row in rows) <= 1 + 3000 / SEGMENT_ROWS / (50 - SEGMENT_ROWS)


def test_a_restored_checkpoint_goes_on_where_it_was_stored():
    """Whoever takes a run up goes on with the same chain, wherever in a segment it was left."""
    plan, writes = loop().plan(), [{"messages": ["m" * n], "count": n} for n in range(100)]
    whole, rows = play(writes)
    for index in (0, 5, 31, 32, 33, 63, 64, 98):
        current, went_on = restore(chain_to(rows, index)), rows[: index + 1]
        for n, expected in enumerate(rows[index + 1 :], index + 1):
            (task,) = tasks_of(current, "r00-x")
            result = result_of(plan, plan.nodes["say"], writes[n])
            values, changes, frontier, arrived = apply(plan, current, [(task, result)])
            current, new = following(current, "r00-x", values, changes, frontier, arrived, plan.fingerprint)
            assert new.checkpoint_id == expected.checkpoint_id
            went_on = [*rows[: index + 1], *went_on[index + 1 :], as_row(new)]
        assert dict(current.values) == dict(whole.values) == dict(restore(chain_to(went_on, 99)).values)


def test_the_same_step_makes_the_same_checkpoint():
    first, _ = play([{"count": 1}, {"count": 2}])
    again, _ = play([{"count": 1}, {"count": 2}])
    assert first.checkpoint_id == again.checkpoint_id


def test_a_second_run_of_a_thread_writes_its_input_as_a_delta():
    plan = loop().plan()
    head, _ = play([{"messages": ["m" * 1000]} for _ in range(20)])
    opened = opening(plan, head, '{"values":{"messages":["hello"]},"defaults":{"count":7,"last":"no"}}')
    assert plan.channels["messages"].decode(opened.values["messages"])[-1] == "hello"
    assert opened.values["count"] == "0", "a default is no write"
    (task,) = tasks_of(opened, "r00-y")
    values, changes, frontier, arrived = apply(plan, opened, [(task, TaskResult({"messages": '["there"]'}))])
    assert changes["messages"] == Change('["hello","there"]', "append")
    after, new = following(opened, "r00-y", values, changes, frontier, arrived, plan.fingerprint)
    assert after.values["messages"].endswith('"hello","there"]')
    assert new.snapshot or len(new.body) < 300


def test_a_fork_stands_on_its_own():
    origin, _ = play([{"messages": ["a"]}, {"messages": ["b"]}])
    row = as_row(seed(Values({**origin.values, "last": '"changed"'}), origin, "r00-f"))
    forked = restore([row])
    assert forked.values["last"] == '"changed"'
    assert forked.frontier == origin.frontier
    assert forked.checkpoint_id != origin.checkpoint_id
    assert {t.task_id for t in tasks_of(forked, "r00-f")}.isdisjoint({t.task_id for t in tasks_of(origin, "r00-x")})


@given(st.lists(st.integers()), st.lists(st.text()))
def test_joined_arrays_are_the_concatenation(first: list[int], second: list[str]) -> None:
    assert json.loads(joined(json.dumps(first), json.dumps(second))) == [*first, *second]


class Odd(BaseModel):
    number: float = 0.0
    tags: set[str] = set()
    blob: bytes = b""
    any: Any = None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("number", float("nan"), "cannot be read back|come back"),
        ("number", "many", "number"),
        ("any", object(), "any"),
        ("any", {1, 2}, "come back"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_place(name: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidWrite, match=message):
        channels_of(Odd)[name].encode(value, "node 'n'")


def test_what_can_be_stored_comes_back_equal():
    channels = channels_of(Odd)
    assert channels["tags"].decode(channels["tags"].encode({"a", "b"}, "n")) == {"a", "b"}
    assert channels["blob"].decode(channels["blob"].encode(b"abc", "n")) == b"abc"
    assert channels["number"].decode(channels["number"].encode(1e308, "n")) == 1e308

"""What is read back equals what was written, types included; what could not is refused with its place."""

import collections
import dataclasses
import datetime
import decimal
import enum
import math
import uuid
from typing import Annotated, Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, create_model

from support.stepping import Stepping, loop_of
from understudy import END, START, Graph, Send, append, merge, union
from understudy.actors.alike import difference
from understudy.actors.checkpoint import restore
from understudy.actors.errors import InvalidWrite
from understudy.actors.plan import Node


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: float


class Leaf(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    name: str = ""
    at: datetime.datetime | None = None
    raw: bytes = b""


class Tree(BaseModel):
    kind: Literal["tree"] = "tree"
    leaves: list[Leaf] = []
    below: "Tree | None" = None


class Rock(BaseModel):
    kind: Literal["rock"] = "rock"
    weight: decimal.Decimal = decimal.Decimal(0)


@dataclasses.dataclass
class Pair:
    left: int
    right: str | None = None


text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
offsets = st.integers(-23 * 60, 23 * 60).map(lambda m: datetime.timezone(datetime.timedelta(minutes=m)))
zones = st.none() | offsets | st.sampled_from([datetime.UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")])
moments = st.datetimes(datetime.datetime(1950, 1, 1), datetime.datetime(2200, 1, 1), timezones=zones).filter(
    # An hour that comes twice equals nothing in another zone (PEP 495), so what is read back: such a write is refused.
    lambda at: at.replace(fold=0).utcoffset() == at.replace(fold=1).utcoffset()
)
decimals = st.decimals(allow_nan=False, allow_infinity=False, places=None)
leaves = st.builds(Leaf, name=text, at=st.none() | moments, raw=st.binary(max_size=12))
trees = st.recursive(
    st.builds(Tree, leaves=st.lists(leaves, max_size=2)),
    lambda below: st.builds(Tree, leaves=st.lists(leaves, max_size=2), below=below),
    max_leaves=4,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | text, lambda x: st.lists(x) | st.dictionaries(text, x), max_leaves=5
)

LEAF_TYPES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers() | st.integers(-(10**400), 10**400)),
    (bool, st.booleans()),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (str, text),
    (bytes, st.binary(max_size=30)),
    (None, st.none()),
    (decimal.Decimal, decimals),
    (uuid.UUID, st.uuids()),
    (datetime.datetime, moments),
    (datetime.date, st.dates()),
    (datetime.time, st.times(timezones=st.none() | offsets)),
    (datetime.timedelta, st.timedeltas(datetime.timedelta(days=-99_999), datetime.timedelta(days=99_999))),
    (Color, st.sampled_from(Color)),
    (Level, st.sampled_from(Level)),
    (Literal["a", 1, None], st.sampled_from(["a", 1, None])),
    (Point, st.builds(Point, st.integers(), st.floats(allow_nan=False, allow_infinity=False))),
    (Pair, st.builds(Pair, st.integers(), st.none() | text)),
    (Leaf, leaves),
    (Tree, trees),
    (
        Annotated[Tree | Rock, Field(discriminator="kind")],
        st.builds(Rock, weight=decimals) | st.builds(Tree, leaves=st.lists(leaves, max_size=1)),
    ),
    (int | bool | float | str, st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | text),
    (Any, json_values),
]
HASHABLE = LEAF_TYPES[:14]

Made = tuple[Any, st.SearchStrategy[Any]]


def _wrapped(inner: st.SearchStrategy[Made]) -> st.SearchStrategy[Made]:
    """Types made of types."""
    return st.one_of(
        inner.map(lambda made: (list[made[0]], st.lists(made[1], max_size=3))),
        inner.map(lambda made: (tuple[made[0], ...], st.lists(made[1], max_size=3).map(tuple))),
        st.tuples(inner, inner).map(lambda two: (tuple[two[0][0], two[1][0]], st.tuples(two[0][1], two[1][1]))),
        st.tuples(st.sampled_from(["text", "int", "color", "date"]), inner).map(_dict_of),
        inner.map(lambda made: (made[0] | None if made[0] is not None else made[0], st.none() | made[1])),
        inner.map(_model_of),
    )


KEYS: dict[str, Made] = {
    "text": (str, text),
    "int": (int, st.integers()),
    "color": (Color, st.sampled_from(Color)),
    "date": (datetime.date, st.dates()),
}


def _dict_of(drawn: tuple[str, Made]) -> Made:
    key, keys = KEYS[drawn[0]]
    return dict[key, drawn[1][0]], st.dictionaries(keys, drawn[1][1], max_size=3)


def _model_of(made: Made) -> Made:
    base64 = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    model: Any = create_model("Inner", __config__=base64, field=(made[0], ...), n=(int, 0))
    return model, st.builds(lambda field, n: model.model_construct(field=field, n=n), made[1], st.integers())


scalars = st.sampled_from(LEAF_TYPES)
sets = st.sampled_from(HASHABLE).flatmap(
    lambda made: st.sampled_from(
        [(set[made[0]], st.sets(made[1], max_size=3)), (frozenset[made[0]], st.frozensets(made[1], max_size=3))]
    )
)
types = st.recursive(scalars | sets, _wrapped, max_leaves=3)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_what_is_read_back_is_what_was_written(data: st.DataObject) -> None:
    annotation, strategy = data.draw(types)
    written = data.draw(strategy)
    model = create_model("Made", cell=(annotation, ...), log=(Annotated[list[annotation], append], []))
    stepping = Stepping(loop_of(model, "a"), model.model_construct(cell=written, log=[]))
    stepping.step({"a": {"cell": written}})
    stepping.step({"a": {"log": [written]}})
    stepping.step({"a": {"log": [written]}})
    for state in (stepping.state(), stepping.restored()):
        assert difference(_as_checked(stepping, "cell", written), state.cell) is None
        assert difference(_as_checked(stepping, "log", [written, written]), state.log) is None


def _as_checked(stepping: Stepping, name: str, value: Any) -> Any:
    """What the field makes of it (1 for a float is 1.0): nodes see that, and no more may change."""
    return stepping.plan.channels[name].adapter.validate_python(value)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_sets_and_maps_of_any_type_grow_as_in_python(data: st.DataObject) -> None:
    keys, strategy = data.draw(st.sampled_from([made for made in HASHABLE if made[0] not in (Point, float)]))
    held, values = data.draw(st.sampled_from(LEAF_TYPES))
    keyed = keys is not None and keys is not bool
    model = create_model(
        "Made",
        seen=(Annotated[set[keys], union], set()),
        by=(Annotated[dict[keys if keyed else str, held], merge], {}),
    )
    stepping = Stepping(loop_of(model, "a"))
    seen: set[Any] = set()
    by: dict[Any, Any] = {}
    for _ in range(3):
        more = data.draw(st.sets(strategy, max_size=3))
        pairs = data.draw(st.dictionaries(strategy if keyed else text, values, max_size=3))
        stepping.step({"a": {"seen": more, "by": pairs}})
        seen, by = seen | more, by | pairs
        for state in (stepping.state(), stepping.restored()):
            assert state.seen == _as_checked(stepping, "seen", seen)
            assert difference(_as_checked(stepping, "by", by), state.by) is None


@pytest.mark.parametrize(
    ("one", "other", "where"),
    [
        (1, True, ""),
        (1, 1.0, ""),
        (0.0, -0.0, ""),
        ([1, 2], (1, 2), ""),
        ({"a": [1, {"b": 1}]}, {"a": [1, {"b": True}]}, "a.1.b"),
        ({1: "x"}, {True: "x"}, ""),
        ({1}, {True}, ""),
        (decimal.Decimal("1.0"), decimal.Decimal("1.00"), ""),
        (collections.deque([1], maxlen=3), collections.deque([1]), ""),
        (collections.deque([2, 1]), collections.deque([2, True]), "1"),
        (Leaf(name="x"), Leaf(name="y"), "name"),
        (Pair(1, "x"), Pair(1, None), "right"),
        (Point(1, 1.0), (1, 1.0), ""),
        (Color.RED, "red", ""),
        (Level.LOW, 1, ""),
        (datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC), datetime.datetime(2026, 1, 1, 12), ""),
        (
            datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC),
            datetime.datetime(2026, 1, 1, 13, tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
            "",
        ),
        (math.nan, math.nan, ""),
    ],
)
def test_what_is_equal_to_python_may_differ(one: Any, other: Any, where: str) -> None:
    assert difference(one, other) == where
    assert one != one or difference(one, one) is None


class Inner(BaseModel):
    raw: bytes = b""
    ratio: float = 0.0


class SubInner(Inner):
    more: int = 0


class Keeping(BaseModel):
    number: float = 0.0
    name: str = ""
    any: Any = None
    inner: Inner = Inner()
    many: list[Inner] = []
    zoned: datetime.time = datetime.time(0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("number", math.nan, r"wrote nan to channel 'number' \(float\): .*valid number"),
        ("number", math.inf, "'number'"),
        ("any", math.nan, "nan would come back as None"),
        ("any", {"deep": [1, math.inf]}, r"at deep\.1"),
        ("any", {1: "x"}, "come back"),
        ("any", (1, 2), r"\(1, 2\) would come back as \[1, 2\]"),
        ("any", {"a": (1,)}, "at a: "),
        ("any", b"x", "come back as 'eA=='"),
        ("any", object(), "serialize"),
        ("name", "\ud800", "surrogates not allowed|utf-8"),
        ("many", [Inner(), Inner(ratio=math.nan)], r"many\.1\.ratio|1\.ratio"),
        ("inner", Inner(raw=b"\xff"), r"utf-8.*ConfigDict\(ser_json_bytes=\"base64\""),
        ("inner", SubInner(more=1), "would come back as Inner"),
        ("zoned", datetime.time(1, tzinfo=ZoneInfo("Europe/Berlin")), "come back"),
        ("number", 10**400, "number"),
        ("any", [10**5000], "number out of range"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_place(name: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidWrite, match=message) as refused:
        Stepping(loop_of(Keeping, "a")).step({"a": {name: value}})
    assert f"channel {name!r}" in str(refused.value)
    assert "node 'a'" in str(refused.value)


class Item(BaseModel):
    raw: bytes = b""


@pytest.mark.parametrize(
    ("annotation", "sent", "message"),
    [
        (Any, (1, 2), "sends .* to node 'work', where it would come as another value or type; annotate"),
        (Any, {"a": [(1,)]}, r"where what lies at a\.0 of it would come"),
        (Any, Leaf(), "another value or type"),
        (float, math.nan, "cannot take it: .*valid number"),
        (Item, Item(raw=b"\xff"), "cannot take it: .*utf-8"),
    ],
)
def test_what_is_sent_comes_as_it_was_sent_or_not_at_all(annotation: Any, sent: Any, message: str) -> None:
    with pytest.raises(InvalidWrite, match=message):
        _sent(annotation, sent)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_what_is_sent_is_what_comes(data: st.DataObject) -> None:
    annotation, strategy = data.draw(types)
    sent = data.draw(strategy)
    node, text = _sent(annotation, sent)
    assert difference(node.arg_adapter.validate_python(sent), node.arg_adapter.validate_json(text)) is None


def _sent(annotation: Any, value: Any) -> tuple[Node, str]:
    """Through a graph in which every superstep sends the value to `work`; as the next checkpoint has it."""

    def work(item: Any) -> None: ...

    work.__annotations__["item"] = annotation
    graph = Graph("sending", Keeping)
    graph.node(work)
    graph.edge(START, "work").branch("work", lambda state: [Send("work", value), END], ["work", END])
    stepping = Stepping(graph)
    stepping.step({})
    (spec,) = restore(stepping.chain()).frontier
    assert spec.arg is not None
    return stepping.plan.nodes["work"], spec.arg

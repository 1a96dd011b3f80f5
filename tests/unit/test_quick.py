"""What is made in one go is what would have been made field by field."""

import copy
import dataclasses
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.actors.events import COMMIT_BUCKETS_S, Observed, histogram
from understudy.actors.quick import quick
from understudy.actors.spelling import compact, to_ascii


@dataclasses.dataclass(frozen=True)
class Slow:
    a: int
    b: str = "b"
    c: list[int] = dataclasses.field(default_factory=list)
    d: int = dataclasses.field(default=4, kw_only=True)


@quick
@dataclasses.dataclass(frozen=True)
class Quick:
    a: int
    b: str = "b"
    c: list[int] = dataclasses.field(default_factory=list)
    d: int = dataclasses.field(default=4, kw_only=True)


def test_a_quick_value_is_as_any_frozen_one() -> None:
    one = Quick(1, d=5)
    assert vars(one) == vars(Slow(1, d=5))
    assert one.c is not Quick(1).c
    assert dataclasses.replace(one, a=2) == Quick(2, "b", [], d=5) != one
    assert pickle.loads(pickle.dumps(one)) == one == copy.deepcopy(one)
    assert repr(one) == "Quick(a=1, b='b', c=[], d=5)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.a = 3  # type: ignore[misc]
    for wrong in ((), (1, "b", [], 4), (1, 2, 3, 4, 5)):
        with pytest.raises(TypeError, match=r"__init__\(\) (missing|takes)"):
            Quick(*wrong)  # type: ignore[arg-type]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_json_is_written_as_the_standard_library_does(value: Any) -> None:
    assert compact(value) == json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert to_ascii(value) == json.dumps(value, separators=(",", ":"))


def test_what_is_no_json_is_told_as_the_standard_library_does() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="Circular"):
        compact(loop)
    with pytest.raises(TypeError, match="object is not JSON"):
        compact({"a": [object()]})
    assert compact({1: (2, 3), None: True}) == '{"1":[2,3],"null":true}'


@given(st.lists(st.floats(0, 2), min_size=1))
def test_observations_are_counted_together_as_they_would_be_one_by_one(values: list[float]) -> None:
    observed, expected = Observed("x_seconds", COMMIT_BUCKETS_S), dict[str, float]()
    assert not observed
    for value in values:
        observed.add(value)
        for name, amount in histogram("x_seconds", COMMIT_BUCKETS_S, value).items():
            expected[name] = expected.get(name, 0.0) + amount
    assert observed.take() == expected
    assert not observed

"""The state that a node gets reads its fields when they are asked for, and cannot be told from a plain instance."""

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, PrivateAttr, TypeAdapter, computed_field

from understudy.actors.channels import Channel, channels_of
from understudy.actors.lazy import state_of


class State(BaseModel):
    a: int = 1
    b: list[str] = []
    c: str = "c"
    d: dict[str, int] | None = None
    _private: int = PrivateAttr(default=3)

    def clone(self) -> "State":
        return type(self)(a=self.a, b=self.b)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def both(self) -> str:
        return f"{self.a}{self.b}"

    def __len__(self) -> int:
        return len(self.b)


class Around(BaseModel):
    state: State
    either: State | int = 0


CHANNELS = channels_of(State)
TEXTS = {"b": '["x"]', "a": "5"}


def lazy() -> State:
    found = state_of(State, CHANNELS, TEXTS)
    assert isinstance(found, State)
    return found


def plain() -> State:
    return State.model_construct(a=5, b=["x"])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the channels that were decoded."""
    names: list[str] = []
    decode = Channel.decode

    def noting(self: Channel, text: str) -> Any:
        names.append(self.name)
        return decode(self, text)

    monkeypatch.setattr(Channel, "decode", noting)
    return names


def test_only_what_is_read_is_decoded(decoded: list[str]) -> None:
    state = lazy()
    assert isinstance(state, State)
    assert decoded == []
    assert (state.a, state.a) == (5, 5)
    assert decoded == ["a"]
    assert state.b is state.b
    assert decoded == ["a", "b"]
    assert state.c == "c", "a channel without a value has its default"


QUESTIONS: list[Callable[[Any], Any]] = [
    repr,
    str,
    len,
    dict,
    vars,
    dir,
    bool,
    lambda state: state.model_dump(),
    lambda state: state.model_dump(exclude_unset=True),
    lambda state: state.model_dump_json(),
    lambda state: state.model_fields_set,
    lambda state: state.model_copy(update={"a": 9}),
    lambda state: state.model_copy(deep=True),
    lambda state: state.__dict__,
    lambda state: list(state.__dict__),
    lambda state: state._private,
    lambda state: state.both,
    lambda state: state.clone(),
    lambda state: type(state.clone()) is State,
    lambda state: copy.copy(state),
    lambda state: copy.deepcopy(state),
    lambda state: pickle.loads(pickle.dumps(state)),
    lambda state: state.__class__,
    lambda state: hasattr(state, "nothing"),
    lambda state: Around(state=state, either=state),
    lambda state: Around(state=state, either=state).model_dump_json(),
    lambda state: Around.model_construct(state=state, either=state).model_dump(),
    lambda state: TypeAdapter(Any).dump_json(state),
    lambda state: TypeAdapter(State | int).dump_python(state),
    lambda state: State.model_validate(state),
    lambda state: TypeAdapter(State).validate_python(state, strict=True),
    lambda state: state == plain(),
    lambda state: plain() == state,
    lambda state: state == lazy(),
    lambda state: state != State(),
    lambda state: state in [State(), plain()],
]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("before", [lambda state: None, lambda state: state.b, lambda state: (state.b, state.a)])
def test_it_answers_as_a_plain_instance(question: Callable[[Any], Any], before: Callable[[Any], Any]) -> None:
    state = lazy()
    before(state)
    answer, expected = question(state), question(plain())
    assert answer == expected
    assert type(answer) is type(expected)


def test_it_changes_as_a_plain_instance():
    state, other = lazy(), plain()
    for each in (state, other):
        each.c = "new"
        each.b.append("y")
    assert state == other
    assert state.model_fields_set == other.model_fields_set == {"a", "b", "c"}
    state, other = lazy(), plain()
    for each in (state, other):
        del each.a
    assert vars(state) == vars(other)
    with pytest.raises(AttributeError, match="'State' object has no attribute 'nothing'"):
        _ = lazy().nothing  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="no field"):
        lazy().nothing = 1  # type: ignore[attr-defined]


def test_it_matches_patterns():
    match lazy():
        case State(a=5, b=[one]):
            assert one == "x"
        case other:
            pytest.fail(f"{other!r} did not match")


def test_each_node_has_objects_of_its_own():
    first, second = lazy(), lazy()
    first.b.append("mine")
    assert second.b == ["x"]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)
    a: int = 0


def test_a_frozen_model_stays_frozen_and_hashable():
    state = state_of(Frozen, channels_of(Frozen), {"a": "3"})
    assert hash(state) == hash(Frozen(a=3))
    with pytest.raises(ValueError, match="frozen"):
        state_of(Frozen, channels_of(Frozen), {"a": "3"}).a = 4  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="unhashable"):
        hash(lazy())


class Attentive(BaseModel):
    a: int = 0
    double: int = 0

    def model_post_init(self, context: Any, /) -> None:
        self.double = 2 * self.a


def test_a_model_that_looks_at_itself_is_complete_when_it_does():
    assert state_of(Attentive, channels_of(Attentive), {"a": "3"}).double == 6  # type: ignore[attr-defined]


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int = 0


def test_extra_fields_of_a_node_s_own():
    state: Any = state_of(Extra, channels_of(Extra), {"a": "3"})
    state.more = 1
    assert state.model_dump() == {"a": 3, "more": 1}


def test_two_threads_that_read_at_once_see_one_object():
    for _ in range(50):
        state = lazy()
        ready, found = threading.Barrier(2, timeout=10), []

        def read(state: State = state, ready: threading.Barrier = ready, found: list[Any] = found) -> None:
            ready.wait()
            found.append(state.b)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert found[0] is found[1]

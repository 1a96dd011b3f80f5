"""Arguments of types that JSON has arrive in a sandbox without pydantic, and as pydantic would have given them."""

import json
import subprocess
import sys
from datetime import date
from typing import Annotated, Any, Literal, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter

from understudy.actors.sandbox.runner import _is_json, validated
from understudy.actors.tool import tool

LEAVES: list[Any] = [str, int, float, bool, type(None), Literal["a", 2, True, None]]
TYPES = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: (
        inner.map(lambda t: list[t])  # type: ignore[valid-type]
        | inner.map(lambda t: dict[str, t])  # type: ignore[valid-type]
        | st.tuples(inner, inner).map(lambda pair: Union[pair])  # noqa: UP007
    ),
    max_leaves=5,
)


@given(TYPES, st.data())
def test_what_json_has_is_what_pydantic_gives(annotation: Any, data: Any) -> None:
    def function(**given: Any) -> None: ...

    value = data.draw(st.from_type(annotation))
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    crossed = json.loads(json.dumps(adapter.dump_python(adapter.validate_python(value), mode="json")))
    function.__annotations__ = {"x": annotation}
    assert _is_json(annotation)
    assert repr(validated(function, {"x": crossed})["x"]) == repr(adapter.validate_json(json.dumps(crossed)))


@pytest.mark.parametrize(
    "annotation",
    [
        date,
        tuple[int, ...],
        set[str],
        dict[int, str],
        list[date],
        dict[str, list[date]],
        int | date,
        Literal[b"x"],
        Annotated[int, Field(gt=1)],
        Annotated[list[int], Field(max_length=1)],
        list[Annotated[int, Field(gt=1)]],
    ],
)
def test_other_types_are_asked_of_pydantic(annotation: Any) -> None:
    assert not _is_json(annotation)


def test_they_are_converted() -> None:
    def function(day: date, places: tuple[int, ...]) -> None: ...

    args = tool(function).encode({"day": date(2026, 1, 2), "places": (1, 2)})
    assert validated(function, args) == {"day": date(2026, 1, 2), "places": (1, 2)}


def test_pydantic_is_not_loaded_for_json() -> None:
    code = """
import sys
from typing import Literal, Optional
from understudy.actors.sandbox.runner import validated
def function(a: list[int], b: dict[str, list[float]], c: Literal["x"], d: Optional[str], e: int | None): ...
args = dict(a=[1], b={"k": [1.0]}, c="x", d=None, e=3)
assert validated(function, args) is args
print("pydantic" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout == "False\n"

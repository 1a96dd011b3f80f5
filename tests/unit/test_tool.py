"""Tools: what crosses into the sandbox and back is checked, and what does not fit is told on one line."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from understudy import tool
from understudy.actors.errors import CallerError
from understudy.actors.mcp.server import mcp_server


class Line(BaseModel):
    name: str
    qty: int


@tool
def order(lines: list[Line], note: str = "") -> Line:
    return lines[0]


def test_arguments_become_json_values_with_their_defaults():
    assert order.encode({"lines": [Line(name="a", qty=1)]}) == {"lines": [{"name": "a", "qty": 1}], "note": ""}


def test_an_argument_that_does_not_fit_is_told_with_its_place():
    with pytest.raises(CallerError) as caught:
        order.encode({"lines": [{"name": "a", "qty": "many"}]})
    wanted = "0.qty: Input should be a valid integer, unable to parse string as an integer"
    assert str(caught.value) == f"tool 'order', argument 'lines': what is given (a list) does not fit: {wanted}"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", {"deep": ["\udc00"]}])
def test_an_argument_that_no_json_is_is_told(value: object) -> None:
    @tool
    def measured(x: float | str | dict[str, list[str]]) -> None: ...

    for made in (measured, mcp_server("m", command=["m"]).tool("measured")):
        with pytest.raises(CallerError, match=r"tool '.*measured': its arguments"):
            made.encode({"x": value})


def test_an_argument_that_is_missing_is_told_with_the_signature():
    with pytest.raises(CallerError, match=r"tool 'order': missing a required argument: 'lines'; it takes \(lines: "):
        order.encode({})


def test_an_answer_of_another_kind_is_told_on_one_line():
    with pytest.raises(CallerError) as caught:
        order.decode("no")
    assert str(caught.value).startswith("tool 'order' answered 'no': Input should be ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("made", [lambda: tool(3), lambda: tool(idempotent=True)("pay")])
def test_a_tool_is_made_of_a_function(made):
    with pytest.raises(CallerError, match="a tool is made of a function, not of"):
        made()


def test_a_tool_whose_file_is_another_one_by_now_has_a_version_all_the_same(tmp_path: Path) -> None:
    """Python 3.13 finds fault with lines that are no code, and says so."""
    source = "# one\n# two\ndef pay() -> None:\n    pass\n"
    path = tmp_path / "tools.py"
    path.write_text("# one\n# two\n'never ends\n")
    names: dict[str, Any] = {}
    exec(compile(source, str(path), "exec"), names)
    assert len(tool(names["pay"]).version) == 16

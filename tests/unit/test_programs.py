"""Commands and code: what went wrong in them is an answer."""

from typing import Any

import pytest
from pydantic import BaseModel

from understudy import END, START, Context, Graph, ToolError, python, shell
from understudy.actors.programs import run_code
from understudy.policies.permission import Ask, Request, decide
from understudy.policies.policy_file import load_policy

sh, py = shell("sh"), python("py")


class Answers(BaseModel):
    found: list[Any] = []


def answers_of(*calls: tuple[Any, dict[str, Any]]) -> list[Any]:
    graph = Graph("programs", Answers, version="1")

    @graph.node
    async def work(state: Answers, ctx: Context) -> dict[str, Any]:
        return {"found": [vars(await ctx.call(tool, **args)) for tool, args in calls]}

    return list(graph.edge(START, "work").edge("work", END).run_inline({}).found)


def test_a_command_and_code_share_the_workspace() -> None:
    line = {"command": "printf hello > a.txt; cat missing; exit 3"}
    first, second, third = answers_of(
        (sh, line), (sh, {"command": ["cat", "a.txt"]}), (py, {"code": "open('a.txt').read() * n", "inputs": {"n": 2}})
    )
    assert (first["status"], first["stdout"]) == (3, "")
    assert "missing" in first["stderr"]
    assert second == {"status": 0, "stdout": "hello", "stderr": ""}
    assert third == {"printed": "", "value": "hellohello", "shown": "", "error": ""}


def test_with_check_a_failed_command_is_an_error() -> None:
    graph = Graph("checked", Answers, version="1")

    @graph.node
    async def work(state: Answers, ctx: Context) -> None:
        with pytest.raises(ToolError, match="exit status 3: words"):
            await ctx.call(sh, command="echo words >&2; exit 3", check=True)

    graph.edge(START, "work").edge("work", END).run_inline({})


def test_code_gives_its_result_what_it_printed_or_the_traceback_of_its_own_frames() -> None:
    told: Any = run_code("print('one')\nresult = {'a': 1}\n3")
    assert (told["printed"], told["value"]) == ("one\n", {"a": 1})
    told = run_code("object()")
    assert told["value"] is None
    assert told["shown"].startswith("<object")
    told = run_code("def f():\n    return 1 / 0\nf()")
    assert told["error"].startswith('Traceback (most recent call last):\n  File "<code>", line 3')
    assert "return 1 / 0" in told["error"]
    assert "programs.py" not in told["error"]
    assert "SyntaxError" in run_code("def")["error"]  # type: ignore[index]
    assert "SystemExit" in run_code("raise SystemExit(1)")["error"]  # type: ignore[index]


def test_a_line_that_nobody_can_parse_is_asked_about() -> None:
    policy = load_policy("policy: p\nversion: 1\nrules: [{id: sh, effect: allow, tool: sh}]", source="p")
    for command, asked in (("ls -l", False), (["ls", "-l"], False), ("ls `id`", True)):
        request = Request(tool="sh", args={"command": command}, run_id="r", graph="g", digest="d", shell=sh.shell)
        assert isinstance(decide([policy], request, 0.0), Ask) is asked

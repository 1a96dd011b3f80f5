"""The rules between modules, read from the source: who may import whom, and what is pure.

A pure module decides and does nothing else, so it may not reach the network, other processes, the clock or chance;
`now` is an argument. That is what makes recovery testable without time and replay the same every time.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("policies", "actors", "cluster")  # each may import those before it

# Everything in policies/ is pure, and of actors/ these. Add yours.
PURE_ACTORS = (
    "attempts",
    "alike",
    "answers",
    "approvals",
    "channels",
    "checkpoint",
    "effects",
    "environment",
    "errors",
    "events",
    "files",
    "forks",
    "graph",
    "interrupts",
    "lazy",
    "outcome",
    "paid",
    "plan",
    "reconciled",
    "records",
    "reducers",
    "run",
    "sandbox.uses",
    "step",
    "take_up",
    "tool",
    "values",
)

DOORS = {("understudy.actors.graph", "understudy.actors.inline")}
"""Imports inside a method of a pure module that lead out of it on purpose: nothing that decides calls such a method."""

IMPURE = {"ray", "redis", "asyncio", "subprocess", "time", "random", "secrets", "socket", "threading"}
IMPURE_CALLS = {"now", "utcnow", "today", "uuid1", "uuid4", "urandom"}  # of datetime, uuid and os, which are else fine
# In a fresh interpreter. Not `time` and `random`: the interpreter and pydantic load those for themselves.
NEVER_LOADED = {"ray", "redis", "asyncio", "subprocess"}


@dataclass(frozen=True)
class Import:
    module: str  # as written: `from a import b` is both "a" and, when that is a module, "a.b"
    line: int
    at_run_time: bool  # not under `if TYPE_CHECKING:`
    at_module_level: bool  # runs when the module is imported


@cache
def modules() -> dict[str, Path]:
    """All our modules, by dotted name."""
    found = {"understudy": ROOT / "src/understudy/__init__.py"}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(("understudy", *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(), str(modules()[module]))


@cache
def imports(module: str) -> tuple[Import, ...]:
    return tuple(_imports(tree(module).body, at_run_time=True, at_module_level=True))


def _imports(nodes: list[ast.stmt], at_run_time: bool, at_module_level: bool) -> Iterator[Import]:
    for node in nodes:
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(alias.name, node.lineno, at_run_time, at_module_level)
            case ast.ImportFrom():
                base = "." * node.level + (node.module or "")
                yield Import(base, node.lineno, at_run_time, at_module_level)
                for alias in node.names:
                    if f"{base}.{alias.name}" in modules():
                        yield Import(f"{base}.{alias.name}", node.lineno, at_run_time, at_module_level)
            case ast.If(test=ast.Name("TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                yield from _imports(node.body, False, at_module_level)
                yield from _imports(node.orelse, at_run_time, at_module_level)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from _imports(node.body, at_run_time, False)
            case _:
                for block in ast.iter_child_nodes(node):
                    inner = block.body if isinstance(block, ast.ExceptHandler | ast.match_case) else [block]
                    statements = [child for child in inner if isinstance(child, ast.stmt)]
                    yield from _imports(statements, at_run_time, at_module_level)


def pure_modules() -> list[str]:
    policies = [name for name in modules() if name.split(".")[1:2] == ["policies"]]
    return policies + [f"understudy.actors.{name}" for name in PURE_ACTORS]


def room_of(module: str) -> str | None:
    """The room that a dotted name leads to; None for what is not ours, or is `understudy` itself."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "understudy" and rest else None


def where(module: str, line: int) -> str:
    return f"{modules()[module].relative_to(ROOT)}:{line}"


def test_imports_run_one_way() -> None:
    """policies <- actors <- cluster; and nobody below cluster takes the public names, which lead to all three."""
    wrong = [
        f"{where(module, found.line)} imports {found.module}"
        for module in modules()
        if (room := room_of(module)) in ROOMS
        for found in imports(module)
        if room_of(found.module) in ROOMS[ROOMS.index(room) + 1 :]
        or (found.module == "understudy" and room != "cluster")
    ]
    assert not wrong, "\n".join(wrong)


def test_every_import_has_one_spelling() -> None:
    """Always `from understudy.room.module import name`: another spelling makes a second copy of the same classes."""
    wrong = [
        f"{where(module, found.line)} imports {found.module}"
        for module in modules()
        for found in imports(module)
        if found.module.startswith(".") or found.module.partition(".")[0] in ROOMS
    ]
    assert not wrong, "\n".join(wrong)


def test_modules_do_not_import_each_other_in_circles() -> None:
    graph = {
        module: sorted(
            {found.module for found in imports(module) if found.at_run_time and found.at_module_level}
            & modules().keys() - {module}
        )
        for module in modules()
    }
    done: set[str] = set()

    def follow(path: tuple[str, ...]) -> None:
        module = path[-1]
        circle = path[path.index(module) :]
        assert len(circle) == 1, "modules import each other in a circle: " + " -> ".join(circle)
        if module not in done:
            for target in graph[module]:
                follow((*path, target))
            done.add(module)

    for module in graph:
        follow((module,))


def test_every_pure_module_exists() -> None:
    missing = sorted(set(pure_modules()) - modules().keys())
    assert not missing, f"PURE_ACTORS names modules that are not there: {missing}"


@pytest.mark.parametrize("pure", pure_modules())
def test_a_pure_module_reaches_nothing_impure(pure: str) -> None:
    """Neither itself nor through any module of ours that it imports."""
    reached: dict[str, str] = {pure: pure}
    waiting = [pure]
    while waiting:
        module = waiting.pop()
        for found in imports(module):
            if found.at_run_time:
                assert found.module.partition(".")[0] not in IMPURE, (
                    f"{where(module, found.line)} imports {found.module} (reached by {reached[module]})"
                )
                leaves = (module, found.module) in DOORS and not found.at_module_level
                if found.module in modules() and found.module not in reached and not leaves:
                    reached[found.module] = f"{reached[module]} -> {found.module}"
                    waiting.append(found.module)


@pytest.mark.parametrize("pure", pure_modules())
def test_a_pure_module_asks_neither_clock_nor_chance(pure: str) -> None:
    for node in ast.walk(tree(pure)):
        match node:
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)) if name in IMPURE_CALLS:
                pytest.fail(f"{where(pure, node.lineno)} calls {name}(); take the value as an argument")


def test_pure_modules_load_nothing_impure() -> None:
    """Each in an interpreter of its own, since one that loads ray would hide behind the next."""
    probe = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sorted(sys.modules))"
    started = {
        pure: subprocess.Popen([sys.executable, "-c", probe, pure], stdout=subprocess.PIPE, text=True)
        for pure in pure_modules()
    }
    wrong = []
    for pure, process in started.items():
        loaded = set(process.communicate()[0].split())
        if process.returncode != 0:
            wrong.append(f"{pure} cannot be imported on its own")
        if loaded & NEVER_LOADED:
            wrong.append(f"{pure} loads {sorted(loaded & NEVER_LOADED)}")
    assert not wrong, "\n".join(wrong)

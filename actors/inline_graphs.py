"""The graphs of a script or a notebook, which no other process can import: they are found where nodes see them.

A run is often taken up by a process that did not start it, the next day's `python script.py` for one. Its root's graph
is at hand there; the graph of a child that waits is the one that its parent's nodes name.
"""

import secrets
from collections.abc import Iterator
from datetime import timedelta
from types import CodeType, FunctionType
from typing import Any

from understudy.actors.code import Code, locate
from understudy.actors.errors import CodeError
from understudy.actors.graph import Graph
from understudy.policies.retry import Retry

_MARK = ":inline"
_PLAIN = (str, int, float, bool, bytes, type(None), timedelta, Retry)
_DEEPEST = 5
"""Functions in closures of functions that are compared; what lies deeper has to be the very same."""


class Shelf:
    """The graphs of a play, by the text of their code. Two that differ in anything have no code in common, though both
    may have one name; one that a node makes anew whenever it runs is one."""

    def __init__(self) -> None:
        self._graphs: dict[str, Graph] = {}
        self._token = secrets.token_hex(4)
        """Of this process: another one numbers its graphs otherwise."""

    def put(self, graph: Graph) -> Code:
        """How runs refer to it."""
        for text, other in self._graphs.items():
            if other is graph or _are_alike(other, graph):
                return Code.read(text)
        code = locate(graph) or Code(ref=f"{graph.name}:{self._token}.{len(self._graphs)}{_MARK}")
        self._graphs[code.text()] = graph
        return code

    def name(self, text: str, graph: Graph) -> None:
        """It is known under this code as well, which another process gave it."""
        self._graphs[text] = graph

    def find(self, text: str) -> Graph | None:
        """None: it is to be imported. Raises CodeError: another process had it, and no node here names it, or several
        that differ."""
        code = Code.read(text)
        if text in self._graphs or not code.ref.endswith(_MARK):
            return self._graphs.get(text)
        name = code.ref.removesuffix(_MARK).rpartition(":")[0]
        known = [*self._graphs.values()]
        for graph in known:  # grows as it goes
            known += [found for found in _named_in(graph) if not any(found is other for other in known)]
        fits = [graph for graph in known if graph.name == name]
        if not fits or not all(_are_alike(fits[0], other) for other in fits):
            raise CodeError(
                f"a run of graph {name!r} was started by another process, and there are {len(fits)} graphs of that "
                f"name which its parents' nodes see; keep it in a module, or in one variable that the node which "
                f"starts it names, under a name of its own"
            )
        self._graphs[text] = fits[0]
        return fits[0]


def _are_alike(one: Graph, other: Graph) -> bool:
    """They do the same: every function of them is the same code, and sees the same values."""
    return one is other or _same(_parts(one), _parts(other))


def _parts(graph: Graph) -> tuple[Any, ...]:
    plan = graph.plan()
    nodes = [(n.name, n.fn, n.goto, n.retry, n.timeout_s, n.fallback) for n in plan.nodes.values()]
    branches = [(branch.source, branch.choose, branch.targets) for branch in plan.branches]
    joins = [(join.sources, join.target) for join in plan.joins]
    migrations = [(each.from_, each.to, each.fn) for each in plan.migrations.values()]
    return plan.name, plan.version, plan.state, dict(plan.edges), nodes, branches, joins, migrations


def _same(one: Any, other: Any, depth: int = 0) -> bool:
    if one is other:
        return True
    if isinstance(one, _PLAIN) and type(one) is type(other):
        return bool(one == other)
    match one, other:
        case (tuple() | list(), tuple() | list()):
            return len(one) == len(other) and all(_same(a, b, depth) for a, b in zip(one, other, strict=True))
        case (dict(), dict()):
            return one.keys() == other.keys() and all(_same(one[key], other[key], depth) for key in one)
        case (FunctionType(), FunctionType()) if depth < _DEEPEST:
            return one.__code__ is other.__code__ and _same(_seen_by(one), _seen_by(other), depth + 1)
    return False


def _seen_by(fn: FunctionType) -> tuple[Any, ...]:
    return fn.__defaults__, fn.__kwdefaults__, [*_cells(fn)]


def _cells(fn: FunctionType) -> Iterator[Any]:
    for cell in fn.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not bound yet
            yield None


def _named_in(graph: Graph) -> Iterator[Graph]:
    """Graphs among the globals and the closures of its nodes."""
    for node in graph.nodes.values():
        fn: Any = getattr(node.fn, "__wrapped__", node.fn)
        if not isinstance(fn, FunctionType):  # what it sees is its own affair
            continue
        seen = [*(fn.__globals__.get(name) for name in _names(fn.__code__)), *_cells(fn)]
        yield from (value for value in seen if isinstance(value, Graph))


def _names(code: CodeType) -> Iterator[str]:
    """What a function names, also in the functions inside it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)

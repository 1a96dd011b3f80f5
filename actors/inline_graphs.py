"""The graphs of a script or a notebook, which no other process can import: they are found where nodes see them.

A run is often taken up by a process that did not start it, the next day's `python script.py` for one. Its root's graph
is at hand there; the graph of a child that waits is the one that its parent's nodes name.
"""

from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any

from understudy.actors.code import Code
from understudy.actors.errors import CodeError
from understudy.actors.graph import Graph

_MARK = ":inline"


def code_here(graph: Graph) -> Code:
    """How a run refers to a graph that is in no module."""
    return Code(ref=graph.name + _MARK)


def is_of_here(code: Code) -> bool:
    return code.ref.endswith(_MARK)


def named_by(graphs: Iterable[Graph], code: Code) -> Graph:
    """The graph of this code among those that the nodes of `graphs` name, and the nodes of these.

    Raises CodeError: there is none, or there are several.
    """
    known = list(graphs)
    for graph in known:  # grows as it goes
        known += [found for found in _named_in(graph) if not any(found is other for other in known)]
    name = code.ref.removesuffix(_MARK)
    fits = [graph for graph in known if graph.name == name]
    if len(fits) != 1:
        raise CodeError(
            f"a run of graph {name!r} was started by another process, and there are {len(fits)} graphs of that name "
            f"which its parents' nodes see; keep it in a module, or in one variable that the node which starts it names"
        )
    return fits[0]


def _named_in(graph: Graph) -> Iterator[Graph]:
    """Graphs among the globals and the closures of its nodes."""
    for node in graph.nodes.values():
        fn: Any = getattr(node.fn, "__wrapped__", node.fn)
        code = getattr(fn, "__code__", None)
        if code is None:  # no function: what it sees is its own affair
            continue
        seen = [fn.__globals__.get(name) for name in _names(code)]
        for cell in fn.__closure__ or ():
            try:
                seen.append(cell.cell_contents)
            except ValueError:  # not bound yet
                continue
        yield from (value for value in seen if isinstance(value, Graph))


def _names(code: CodeType) -> Iterator[str]:
    """What a function names, also in the functions inside it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)

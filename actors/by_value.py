"""Code by value: a cloudpickle that needs none of the user's own modules where it is loaded."""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from understudy.actors.graph import Graph
from understudy.actors.outcome import ToolCode
from understudy.actors.tool import Tool


def homes_of(graph: Graph) -> tuple[str, ...]:
    """Names of the modules that a graph's own code comes from, installed or not: with all of their packages, so that
    what the functions of a graph call is taken along too. Of understudy itself, only those that hold a node."""
    functions = [node.fn for node in graph.nodes.values()]
    functions += [branch.choose for branch in graph.plan().branches]
    functions += [migration.fn for migration in graph.plan().migrations.values()]
    names = {getattr(thing, "__module__", "") for thing in (graph.state, *functions)} - {"", "__main__"}
    tops = {name if name.split(".")[0] == "understudy" else name.split(".")[0] for name in names}
    return tuple(sorted(tops))


def pickled(thing: Any, modules: Collection[str] = ()) -> bytes:
    """A cloudpickle that needs none of the user's own modules, nor of those named, where it is loaded."""
    import cloudpickle

    mine = [module for module in list(sys.modules.values()) if _is_users(module)]
    mine += [sys.modules[name] for name in modules if name in sys.modules and sys.modules[name] not in mine]
    for module in mine:
        cloudpickle.register_pickle_by_value(module)
    # A model that is defined inside a function remembers every local of it (pydantic, for forward references): an open
    # store or a loop among them cannot be pickled, and none of it is needed.
    model: Any = getattr(thing, "state", None)
    remembered = model.__dict__.get("__pydantic_parent_namespace__") if isinstance(model, type) else None
    try:
        if remembered:
            model.__pydantic_parent_namespace__ = None
        return bytes(cloudpickle.dumps(thing))
    finally:
        if remembered:
            model.__pydantic_parent_namespace__ = remembered
        for module in mine:
            cloudpickle.unregister_pickle_by_value(module)


def _is_users(module: Any) -> bool:
    name = getattr(module, "__name__", "")
    file = getattr(module, "__file__", None)
    if not file or name == "__main__" or name.split(".")[0] == "understudy" or name not in sys.modules:
        return False
    path = str(Path(file).resolve())
    inside = any(path.startswith(str(Path(prefix).resolve()) + "/") for prefix in (sys.prefix, sys.base_prefix))
    return not inside and "site-packages" not in path and "dist-packages" not in path


def tool_code(tool: Tool[Any, Any]) -> ToolCode:
    """By reference for tools of installed packages, which the sandbox can see; by value for the user's own."""
    environment = tool.environment.text if tool.environment else ""
    module = sys.modules.get(tool.fn.__module__)
    holder: Any = module
    for part in tool.fn.__qualname__.split("."):
        holder = getattr(holder, part, None)
    # The very function: a pinned graph brings its own, and the module may hold a newer one.
    importable = tool.fn in (holder, getattr(holder, "fn", None))
    if importable and module is not None and tool.fn.__module__ != "__main__" and not _is_users(module):
        return ToolCode(ref=f"{tool.fn.__module__}:{tool.fn.__qualname__}", environment=environment)
    return ToolCode(blob=pickled(tool.fn), environment=environment)

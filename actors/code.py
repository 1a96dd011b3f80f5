"""Where the code of a run is found: by reference (`module:attribute`), or by value, stored by content hash and signed.

Law 6: a graph that lives in a script or a notebook (`__main__`) is shipped as a cloudpickle; its HMAC is verified
before it is loaded, so a store that was written to by somebody else cannot make a run actor execute anything.
"""

import hashlib
import hmac
import importlib
import json
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from understudy.actors.errors import CodeError, GraphError
from understudy.actors.graph import Graph

CodeMode = Literal["migrate", "latest", "pin"]
"""How a run follows the code that is deployed. `migrate`: the deployed version, its migrations applied to the run's
state; `latest`: the deployed version, but never migrated; `pin`: the very code that it was started with."""

MODES: tuple[CodeMode, ...] = get_args(CodeMode)


@dataclass(frozen=True)
class Code:
    """How a graph is found. `paths`: folders that go on the import path first, for modules that are not installed."""

    ref: str = ""
    blob: str = ""
    paths: tuple[str, ...] = ()
    mode: CodeMode = "migrate"

    def text(self) -> str:
        return json.dumps({"ref": self.ref, "blob": self.blob, "paths": list(self.paths), "mode": self.mode})

    @staticmethod
    def read(text: str) -> "Code":
        raw = json.loads(text)
        return Code(raw["ref"], raw["blob"], tuple(raw["paths"]), raw.get("mode", "migrate"))


def sign_blob(data: bytes, secret: bytes) -> bytes:
    """HMAC-SHA256, then the data."""
    return hmac.digest(secret, data, "sha256") + data


def open_blob(signed: bytes, secret: bytes, what: str) -> bytes:
    """The data of a signed blob. Raises CodeError if the signature does not verify."""
    tag, data = signed[:32], signed[32:]
    if not hmac.compare_digest(tag, hmac.digest(secret, data, "sha256")):
        raise CodeError(
            f"{what} is not signed with this deployment's key, or was altered; it is not loaded. Start the run again "
            f"from its source, with the same UNDERSTUDY_SECRET_FILE as the cluster"
        )
    return data


def locate(graph: Graph) -> Code | None:
    """The reference of a graph that a module holds; None if it has to be shipped by value.

    Several modules may hold it, by importing it from each other: the one that its nodes were written in comes first.
    """
    homes = {getattr(node.fn, "__module__", "") for node in graph.nodes.values()}
    script = sys.modules.get("__main__")  # also under the name that multiprocessing gives it, which others do not know
    modules = [(name, module) for name, module in list(sys.modules.items()) if module is not None]
    for name, module in sorted(modules, key=lambda found: found[0] not in homes):
        if module is not script:
            for attribute, value in list(getattr(module, "__dict__", {}).items()):
                if value is graph:
                    return Code(ref=f"{name}:{attribute}", paths=_import_paths(name, module))
    return None


def _import_paths(name: str, module: Any) -> tuple[str, ...]:
    """The folder a module was imported from, unless it is one that every interpreter has."""
    file = getattr(module, "__file__", None)
    if not file:
        return ()
    folder = Path(file).resolve().parent
    for _ in range(name.count(".") + (1 if Path(file).name == "__init__.py" else 0)):
        folder = folder.parent
    installed = any(part in ("site-packages", "dist-packages") for part in folder.parts)
    return () if installed or name.split(".")[0] == "understudy" else (str(folder),)


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Library:
    """Graphs that this process has loaded. Modules are loaded once; `is_stale` tells when their files have changed."""

    def __init__(self, secret: bytes, get_blob: Callable[[str], Awaitable[bytes]]) -> None:
        self._secret = secret
        self._get_blob = get_blob
        self._graphs: dict[str, Graph] = {}
        self._paths: tuple[str, ...] = ()
        self._files: dict[str, int] = {}

    async def graph(self, code: Code) -> Graph:
        """Raises CodeError: not found, not a graph, one that cannot run, or not signed with this deployment's key."""
        known = self._graphs.get(code.text())
        if known is None:
            known = load_ref(code.ref, code.paths) if code.ref else await self._by_value(code.blob)
            self._paths += code.paths
            self._note_files()  # first: a graph that is mended makes this process stale
            try:
                known.plan()
            except GraphError as error:
                raise CodeError(str(error)) from None
            self._graphs[code.text()] = known
        return known

    async def _by_value(self, blob: str) -> Graph:
        data = open_blob(await self._get_blob(blob), self._secret, f"graph blob {blob[:12]}")
        if digest_of(data) != blob:
            raise CodeError(f"graph blob {blob[:12]} has other contents than its name says; it is not loaded")
        import cloudpickle

        try:
            graph = cloudpickle.loads(data)
        except Exception as error:  # a module that it needs is not there any more, or not as it was
            raise CodeError(f"graph blob {blob[:12]} cannot be loaded: {type(error).__name__}: {error}") from error
        if not isinstance(graph, Graph):
            raise CodeError(f"graph blob {blob[:12]} holds a {type(graph).__name__}, not a Graph")
        return graph

    def _note_files(self) -> None:
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None)
            if file and any(file.startswith(path + "/") for path in self._paths):
                self._files.setdefault(file, _mtime(file))

    def is_stale(self, code: Code) -> bool:
        """A file of a user's module changed since it was imported here, or a module of that name came from another
        folder: this process cannot take the run; a fresh one can."""
        self._note_files()
        if any(_mtime(file) != seen for file, seen in self._files.items()):
            return True
        module = sys.modules.get(code.ref.partition(":")[0]) if code.ref and code.paths else None
        file = getattr(module, "__file__", None)
        return bool(file) and not any(str(file).startswith(path + "/") for path in code.paths)


def _mtime(file: str) -> int:
    try:
        return Path(file).stat().st_mtime_ns
    except OSError:
        return 0


def load_ref(ref: str, paths: tuple[str, ...] = ()) -> Graph:
    """The graph that `module:attribute` names. Raises CodeError with the remedy."""
    module_name, _, attribute = ref.partition(":")
    if not module_name or not attribute:
        raise CodeError(f"{ref!r} does not name a graph; write MODULE:GRAPH, e.g. flows.refund:graph")
    if "/" in module_name:
        raise _names_a_file(module_name, attribute)
    for path in reversed(paths):
        if path not in sys.path:
            sys.path.insert(0, path)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            where = ", ".join(paths) or "the import path"
            if module_name.endswith(".py"):
                raise _names_a_file(module_name, attribute) from None
            raise CodeError(
                f"there is no module {module_name!r} in {where}; run from the folder that holds it, or set PYTHONPATH"
            ) from None
        raise CodeError(f"module {module_name!r} cannot be imported: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a script that ends with sys.exit() would end its actor, again and again
        raise CodeError(
            f"module {module_name!r} cannot be imported: {type(error).__name__}: {error}{_place_of(error)}"
        ) from error
    graph = getattr(module, attribute, None)
    if isinstance(graph, Graph):
        return graph
    graphs = [name for name, value in vars(module).items() if isinstance(value, Graph)]
    hint = f"its graphs: {', '.join(graphs)}" if graphs else "it has no Graph"
    if graph is None:
        raise CodeError(f"module {module_name!r} has no attribute {attribute!r}; {hint}")
    what = "class" if isinstance(graph, type) else type(graph).__name__
    raise CodeError(f"module {module_name!r} holds a {what} in {attribute!r}; {hint}")


def _names_a_file(path: str, attribute: str) -> CodeError:
    named = path.removesuffix(".py").strip("./").replace("/", ".")
    return CodeError(f"{path!r} is a file, and modules are named without .py; write {named}:{attribute}")


def _place_of(error: BaseException) -> str:
    """Where the user's own code raised it, as ` (flows.py:12)`; a SyntaxError says that by itself."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen importlib")]
    frames = [f for f in frames if "/understudy/actors/" not in f.filename and "/importlib/" not in f.filename]
    if isinstance(error, SyntaxError) or not frames:
        return ""
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})"

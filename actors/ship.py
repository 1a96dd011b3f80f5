"""How the code of a graph gets to other processes: by its name where a module holds it, else by value, signed."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from understudy.actors.by_value import homes_of, pickled
from understudy.actors.code import MODES, Code, CodeMode, digest_of, load_ref, locate, sign_blob
from understudy.actors.errors import CallerError
from understudy.actors.graph import Graph
from understudy.actors.plan import Plan
from understudy.actors.store import Store

SHIPPED_MAX = 64
_PICKLER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ships-graphs")
"""Not the loop's own threads: `def` nodes sit in those while they wait for the very child whose graph is shipped."""


async def ship_graph(
    graph: Graph | str, *, store: Store, secret: bytes, mode: CodeMode = "migrate"
) -> tuple[Code, Graph]:
    """Where every process finds the code from now on, and the graph.

    Args:
        graph: a Graph, or `module:attribute`.
        secret: this deployment's key, which signs what is shipped by value.
        mode: with `pin`, it is shipped by value even if a module holds it.
    Raises CallerError: it is no graph, or cannot be pickled. CodeError: there is none of this name.
    """
    if mode not in MODES:
        raise CallerError(f"code={mode!r} is none of {', '.join(MODES)}")
    code, loaded = _referred(graph)
    if code is not None and mode != "pin":
        return replace(code, mode=mode), loaded
    try:
        modules = homes_of(loaded) if mode == "pin" else ()
        data = await asyncio.get_running_loop().run_in_executor(_PICKLER, pickled, loaded, modules)
    except Exception as error:
        if code is not None:
            raise CallerError(
                f"graph {loaded.name!r} cannot be pinned, as it cannot be shipped by value: {error}; start it with "
                f"code='migrate' or 'latest', or keep what it cannot take along out of its modules' functions"
            ) from error
        raise CallerError(
            f"graph {loaded.name!r} is not in a module, and cannot be shipped by value: {error}; put it in a module "
            f"as a global name"
        ) from error
    digest = digest_of(data)
    await keep_signed(store, digest, sign_blob(data, secret), f"the code of graph {loaded.name!r}")
    return Code(blob=digest, mode=mode), loaded


async def keep_signed(store: Store, digest: str, signed: bytes, what: str) -> None:
    """See to it that the store has signed data under the digest of what was signed. Raises CallerError: it has the same
    with another signature, which nobody here could use."""
    await store.put_blob(digest, signed, time.time())
    if await store.get_blob(digest) != signed:
        raise CallerError(
            f"{what} is in this store already, and not signed with this deployment's key: the store was moved without "
            f"its secret, or somebody has altered it; name the secret that belongs to the store with "
            f"UNDERSTUDY_SECRET_FILE, or give {what} another version"
        )


class Shipper:
    """Ships the graphs of children from a run actor: each once, however many runs of it are started there."""

    def __init__(self, store: Store, secret: bytes) -> None:
        self._store = store
        self._secret = secret
        self._shipped: dict[int, tuple[Plan, Code, bytes]] = {}
        """By the plan, which is another one once the graph was changed."""

    async def __call__(self, graph: Graph | str) -> tuple[Code, Graph]:
        """See `ship_graph`."""
        if not isinstance(graph, Graph):
            return await ship_graph(graph, store=self._store, secret=self._secret)
        plan = graph.plan()
        known = self._shipped.get(id(plan))
        if known is None:
            code, _ = await ship_graph(graph, store=self._store, secret=self._secret)
            data = await self._store.get_blob(code.blob) if code.blob else b""
            self._shipped[id(plan)] = (plan, code, data)
            if len(self._shipped) > SHIPPED_MAX:
                del self._shipped[next(iter(self._shipped))]
            return code, graph
        _, code, data = known
        if code.blob:  # again: what nobody has named for a day is swept
            await self._store.put_blob(code.blob, data, time.time())
        return code, graph


async def refer_to(graph: Graph | str) -> tuple[Code, Graph]:
    """The same without a key to sign with: only what is found by its name. Raises CallerError, CodeError."""
    code, loaded = _referred(graph)
    if code is None:
        raise CallerError(f"graph {loaded.name!r} is in no module; put it in one, as a global name")
    return code, loaded


def _referred(graph: Graph | str) -> tuple[Code | None, Graph]:
    if isinstance(graph, str):
        loaded = load_ref(graph)
        found = locate(loaded)
        return Code(ref=graph, paths=found.paths if found else ()), loaded
    if not isinstance(graph, Graph):
        raise CallerError(f"start takes a Graph or MODULE:GRAPH, not {graph!r:.80}")
    return locate(graph), graph

"""Code is found by reference or loaded by value, and a blob that was not signed here is never loaded (law 6)."""

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from support.waiting import run_async
from understudy import END, START, Graph, tool
from understudy.actors.by_value import pickled, tool_code
from understudy.actors.code import Code, Library, digest_of, load_ref, locate, open_blob, sign_blob
from understudy.actors.errors import CodeError
from understudy.actors.memory import MemoryStore
from understudy.actors.ship import Shipper
from understudy.actors.store import BLOB_KEPT_S
from understudy.cluster.demo import tools as installed
from understudy.cluster.demo.graph import graph as installed_graph

SECRET = b"s" * 32


class State(BaseModel):
    word: str = ""


def one(word: str) -> Graph:
    graph = Graph("one", State)
    graph.node(lambda state: {"word": word}, name="say")
    return graph.edge(START, "say").edge("say", END)


def library(blobs: dict[str, bytes]) -> Library:
    async def get_blob(digest: str) -> bytes:
        return blobs[digest]

    return Library(SECRET, get_blob)


def loaded(blobs: dict[str, bytes], digest: str) -> Graph:
    return run_async(library(blobs).graph(Code(blob=digest)))


def test_a_graph_by_value_comes_back():
    data = pickled(one("hello"))
    graph = loaded({digest_of(data): sign_blob(data, SECRET)}, digest_of(data))
    assert graph.plan().nodes["say"].fn(State()) == {"word": "hello"}


def test_what_is_not_signed_here_is_not_loaded(tmp_path: Path):
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "boom"),)

    data = pickled(Bomb())
    name = digest_of(data)
    for signed in (sign_blob(data, b"x" * 32), data, b"", sign_blob(data, SECRET)[:-1] + b"!"):
        with pytest.raises(CodeError, match="not signed with this deployment's key, or was altered"):
            loaded({name: signed}, name)
    with pytest.raises(CodeError, match="other contents than its name says"):
        loaded({"0" * 64: sign_blob(data, SECRET)}, "0" * 64)
    assert not (tmp_path / "boom").exists()


def test_a_signed_blob_that_is_no_graph():
    data = pickled(["not", "a", "graph"])
    with pytest.raises(CodeError, match="holds a list, not a Graph"):
        loaded({digest_of(data): sign_blob(data, SECRET)}, digest_of(data))


class Needs:
    """Unpickled, it asks for a module that is not there any more."""

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, ("gone_of_test_code",)


def test_a_signed_blob_that_needs_what_is_gone():
    data = pickled(Needs())
    with pytest.raises(
        CodeError, match=r"blob .* cannot be loaded: ModuleNotFoundError: No module named 'gone_of_test"
    ):
        loaded({digest_of(data): sign_blob(data, SECRET)}, digest_of(data))


def test_a_signature_is_of_these_bytes():
    assert open_blob(sign_blob(b"data", SECRET), SECRET, "it") == b"data"
    with pytest.raises(CodeError):
        open_blob(sign_blob(b"data", SECRET) + b"more", SECRET, "it")


def test_references_that_lead_nowhere_teach(tmp_path: Path):
    (tmp_path / "flow_of_test_code.py").write_text("from understudy import Graph\nvalue = 3\n")
    (tmp_path / "broken_of_test_code.py").write_text("1 / 0\n")
    (tmp_path / "script_of_test_code.py").write_text("import sys\nsys.exit(3)\n")
    paths = (str(tmp_path),)
    try:
        for ref, message in (
            ("nothing", "write MODULE:GRAPH"),
            ("no_such_module_anywhere:graph", "there is no module 'no_such_module_anywhere'"),
            ("flow_of_test_code:graph", "has no attribute 'graph'; it has no Graph"),
            ("flow_of_test_code:value", "holds a int"),
            ("flow_of_test_code:Graph", "holds a class in 'Graph'"),
            ("broken_of_test_code:graph", r"cannot be imported: ZeroDivisionError: .* \(broken_of_test_code.py:1\)"),
            ("script_of_test_code:graph", r"cannot be imported: SystemExit: 3 \(script_of_test_code.py:2\)"),
            ("flow_of_test_code.py:graph", "is a file, .*; write flow_of_test_code:graph"),
            ("./acme/flows.py:graph", "is a file, .*; write acme.flows:graph"),
            ("understudy.cluster.demo.graph:grahp", "its graphs: graph"),
        ):
            with pytest.raises(CodeError, match=message):
                load_ref(ref, paths)
    finally:
        sys.path.remove(str(tmp_path))


def test_installed_code_goes_by_reference_and_the_users_own_by_value():
    code = locate(installed_graph)
    assert code is not None
    assert code.paths == ()
    assert tool_code(installed.read_metadata).ref == "understudy.cluster.demo.tools:read_metadata"
    assert locate(one("local")) is None

    @tool
    def mine() -> int:
        return 1

    assert tool_code(mine).blob


def test_a_graph_that_cannot_run_is_refused_and_a_mended_one_noticed(tmp_path: Path):
    module = tmp_path / "mended_of_test_code.py"
    module.write_text("from understudy import *\nfrom pydantic import BaseModel\nclass S(BaseModel): pass\n"
                      "graph = Graph('g', S)\n")  # fmt: skip
    code = Code(ref="mended_of_test_code:graph", paths=(str(tmp_path),))
    try:
        shelf = library({})
        for _ in range(2):
            with pytest.raises(CodeError, match="graph 'g' cannot run: it has no nodes"):
                run_async(shelf.graph(code))
        assert not shelf.is_stale(code)
        os.utime(module, ns=(1, 1))
        assert shelf.is_stale(code)
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("mended_of_test_code", None)


def test_a_changed_file_makes_a_process_stale(tmp_path: Path):
    module = tmp_path / "stale_of_test_code.py"
    module.write_text("from understudy import *\nfrom pydantic import BaseModel\nclass S(BaseModel): pass\n"
                      "graph = Graph('g', S)\ngraph.node(lambda s: None, name='n')\n"
                      "graph.edge(START, 'n').edge('n', END)\n")  # fmt: skip
    code = Code(ref="stale_of_test_code:graph", paths=(str(tmp_path),))
    try:
        shelf = library({})
        assert not shelf.is_stale(code)
        run_async(shelf.graph(code))
        assert not shelf.is_stale(code)
        os.utime(module, ns=(1, 1))
        assert shelf.is_stale(code)
        elsewhere = Code(ref="stale_of_test_code:graph", paths=(str(tmp_path / "other"),))
        assert shelf.is_stale(elsewhere), "a module of that name came from another folder"
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("stale_of_test_code", None)


def test_a_graph_of_a_script_goes_by_value_whatever_else_the_script_is_called(tmp_path: Path):
    """multiprocessing, which Ray imports, knows `__main__` by a second name that no other process has."""
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "from pydantic import BaseModel\n"
        "from understudy import END, START, Graph\n"
        "from understudy.actors.code import locate\n"
        "class State(BaseModel): pass\n"
        "graph = Graph('script', State)\n"
        "graph.node(lambda state: None, name='say')\n"
        "graph.edge(START, 'say').edge('say', END)\n"
        "print('__mp_main__' in sys.modules, locate(graph))\n"
    )
    told = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.split() == ["True", "None"]


def test_a_child_of_one_graph_is_pickled_once_and_its_blob_outlives_a_sweep():
    async def shipped() -> None:
        store = MemoryStore()
        ship, graph = Shipper(store, SECRET), one("hello")
        code, _ = await ship(graph)
        await store.sweep(time.time() + 2 * BLOB_KEPT_S)
        assert await store.blobs() == []
        again, _ = await ship(graph)
        assert again == code
        assert (await Library(SECRET, store.get_blob).graph(again)).name == "one"
        graph.node(lambda state: {}, name="more")
        graph.edge("say", "more").edge("more", END)
        changed, _ = await ship(graph)
        assert changed != code, "a graph that was changed is another one"

    run_async(shipped())

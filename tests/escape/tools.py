"""Ordinary tools, as users write them, carried into a sandbox by value."""

import asyncio
import os
import sys
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from understudy.actors.tool import tool


@tool
def decorated(a: int, b: int) -> int:
    return a + b


async def waits(a: int) -> int:
    await asyncio.sleep(0)
    return a + 1


class Order(BaseModel):
    id: str
    amount: Decimal
    paid: bool = False


def pays(order: Order) -> Order:
    return order.model_copy(update={"paid": True})


@dataclass
class Count:
    day: date
    distinct: int


def counts(day: date, more: set[str]) -> Count:
    return Count(day + timedelta(days=1), len(more))


def echoes(value: Any) -> Any:
    return value


def measures(value: str) -> int:
    return len(value)


def free_bytes(folder: str) -> int:
    found = os.statvfs(folder)
    return found.f_blocks * found.f_frsize


def contents(path: str) -> str:
    return Path(path).read_text()


def append_line(path: str, line: str) -> int:
    with open(path, "a+") as file:
        file.write(line + "\n")
        file.seek(0)
        return len(file.readlines())


def does_much(namespaces: bool) -> dict[str, Any]:
    """What ordinary libraries do, and a filter that is too narrow breaks.

    Without namespaces there is no memory to share, and no file's time is changed.
    """
    import concurrent.futures
    import shutil
    import sqlite3
    import subprocess
    import tempfile
    import threading

    async def shell() -> str:
        process = await asyncio.create_subprocess_shell("echo a b | tr a-z A-Z | cat", stdout=asyncio.subprocess.PIPE)
        return (await process.communicate())[0].decode().strip()

    seen: dict[str, Any] = {"shell": asyncio.run(shell())}
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        seen["threads"] = list(threads.map(abs, [-1, -2]))
    if namespaces:
        with concurrent.futures.ProcessPoolExecutor(2) as processes:
            seen["processes"] = list(processes.map(abs, [-3, -4]))
    with tempfile.TemporaryDirectory() as folder:
        database = sqlite3.connect(f"{folder}/db")
        database.execute("pragma journal_mode = wal")
        database.execute("create table t (a)")
        database.execute("insert into t values (5)")
        database.commit()
        seen["sqlite"] = database.execute("select a from t").fetchone()[0]
        database.close()
        if namespaces:
            shutil.copytree(folder, "copy")
        else:
            Path("copy").mkdir()
            shutil.copy(f"{folder}/db", "copy")
        shutil.make_archive("archive", "gztar", "copy")
        shutil.unpack_archive("archive.tar.gz", "unpacked")
    seen["files"] = sorted(path.name for path in Path().iterdir())
    git = shutil.which("git")
    if git:
        subprocess.run([git, "init", "-q", "repo"], check=True)
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run([git, "-C", "repo", *author, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    found_by_itself = "pydantic" if sys.prefix != sys.base_prefix else "sqlite3"  # it has its packages, or ours only
    seen["python"] = subprocess.run([sys.executable, "-c", f"import {found_by_itself}"]).returncode
    seen["lock"] = threading.Lock().acquire(timeout=1)
    return seen


def fails() -> None:
    print("on stdout")
    print("on stderr", file=sys.stderr)
    raise KeyError("no such order")


def chance() -> list[float]:
    """Of this process, of a thread, and of a process that it forks."""
    import random
    import threading

    found = [random.random()]
    thread = threading.Thread(target=lambda: found.append(random.random()))
    thread.start()
    thread.join()
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, str(random.random()).encode())
        os._exit(0)
    os.wait()
    return [*found, float(os.read(reading, 100))]


def loads_for_a_model() -> list[str]:
    """The modules that a first model costs."""
    before = set(sys.modules)
    from pydantic import BaseModel, TypeAdapter

    class Parcel(BaseModel):
        lines: dict[str, list[int]]

    parcel = TypeAdapter(Parcel).validate_python({"lines": {"a": ["1"]}})
    assert parcel.model_dump_json() == '{"lines":{"a":[1]}}'
    return sorted(set(sys.modules) - before)


def is_loaded(name: str) -> bool:
    return name in sys.modules


def imports() -> dict[str, Any]:
    """How a tool finds packages, and which."""
    import importlib
    import sys

    found: dict[str, Any] = {"path": sys.path, "prefix": sys.prefix, "python": sys.executable}
    found["finders"] = [getattr(each, "__name__", type(each).__name__) for each in sys.meta_path]
    for name in ("own", "pydantic", "typing_extensions", "cloudpickle", "yaml", "understudy.actors.tool"):
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            found[name] = type(error).__name__
        else:
            found[name] = module.__file__, getattr(module, "VERSION", "")
    return found

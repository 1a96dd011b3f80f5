"""Names are refused where they are given, and on every store alike."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from support import graphs
from understudy.actors.errors import CallerError
from understudy.actors.names import LABELS_MAX, NAME_BYTES_MAX
from understudy.cluster.client import connect
from understudy.cluster.settings import Settings

NUL, HALF, LONG = "a\0b", "\ud800", "ä" * (NAME_BYTES_MAX // 2 + 1)


@pytest.mark.parametrize("name", [NUL, HALF, LONG], ids=["nul", "surrogate", "long"])
def test_what_is_no_name_for_every_store_is_refused_by_any(tmp_path: Path, name: str) -> None:
    async def tried() -> None:
        async with connect(
            f"sqlite://{tmp_path}/u.db", settings=Settings(state_dir=tmp_path), embedded=False
        ) as cluster:
            given = {"folder": str(tmp_path)}
            refused: list[dict[str, Any]] = [{"key": name}, {"thread": name}, {"labels": {name: "x"}}]
            for what in [
                *refused,
                {"labels": {"x": name}},
                {"labels": dict.fromkeys(map(str, range(LABELS_MAX + 1)), "")},
            ]:
                with pytest.raises(CallerError, match=r"no text for every store|limit|at most"):
                    await cluster.start(graphs.short, given, **what)
            assert await cluster.runs() == []
            run = await cluster.start(graphs.short, given, key="k" * NAME_BYTES_MAX, thread="t" * NAME_BYTES_MAX)
            with pytest.raises(CallerError, match=r"the message's id .*(no text for every store|limit)"):
                await run.send("hello", id=name)
            assert await run.send("hello", id="i" * NAME_BYTES_MAX) == 1

    asyncio.run(tried())


def test_what_start_is_given_of_another_kind_is_named(tmp_path: Path) -> None:
    async def tried() -> None:
        async with connect(
            f"sqlite://{tmp_path}/u.db", settings=Settings(state_dir=tmp_path), embedded=False
        ) as cluster:
            wrong: list[tuple[dict[str, Any], str]] = [
                ({"key": 5}, r"5, and has to be a text: write '5'"),
                ({"labels": {"customer": 7}}, r"'customer', is 7, and has to be a text"),
                ({"busy": "wait"}, r"busy='wait' is none of enqueue, "),
                ({"policy": {"policy": "p"}}, r"the policy is \{.*; give a Path to its file"),
                ({"policy": "policy.yaml"}, r"is a text, not a file; write policy=Path\('policy.yaml'\)"),
            ]
            for what, told in wrong:
                with pytest.raises(CallerError, match=told):
                    await cluster.start(graphs.short, {"folder": str(tmp_path)}, **what)
            assert await cluster.runs() == []

    asyncio.run(tried())

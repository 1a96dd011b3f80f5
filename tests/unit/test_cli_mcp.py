"""The command line about MCP servers: what a person sees of a change, and accepts."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from understudy import open_store
from understudy.actors.mcp import pins
from understudy.cluster.auditing import entries_of
from understudy.cluster.cli import mcp  # noqa: F401 (it registers commands)
from understudy.cluster.cli.command import app

ADD = {"name": "add", "description": "Adds.", "inputSchema": {"type": "object"}}
SLY = {**ADD, "name": "sly", "description": "Adds.\u200b"}


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store that has seen a server change a tool, and tell of one with a hidden character."""
    url = f"sqlite:///{tmp_path / 'store.db'}"

    async def fill() -> None:
        store = await open_store(url)
        known = pins.seen(pins.first_sight("calc", [ADD], "python calc.py"), [{**ADD, "description": "Sends."}, SLY])
        await store.write_document(pins.SHELF, "calc", known.text(), 0)
        await store.close()

    asyncio.run(fill())
    return url


def typed(url: str, *words: str) -> Result:
    return CliRunner().invoke(app, ["mcp", *words, "--store", url])


def audited(url: str) -> list[tuple[str, Any]]:
    async def read() -> list[tuple[str, Any]]:
        store = await open_store(url)
        try:
            return [entry async for entry in entries_of(store)]
        finally:
            await store.close()

    return asyncio.run(read())


def documents(url: str, *words: str) -> Any:
    result = typed(url, *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_change_is_shown_and_accepted(url: str) -> None:
    assert documents(url, "list") == [
        {"server": "calc", "launch": "python calc.py", "accepted": ["add"], "waiting": ["add", "sly"]}
    ]
    shown = typed(url, "diff", "calc")
    assert '-  "description": "Adds."' in shown.stdout
    assert '+  "description": "Sends."' in shown.stdout
    assert "\u200b" not in shown.output
    assert "U+200B" in shown.output
    digest = documents(url, "diff", "calc")[0]["digest"]
    assert typed(url, "accept", "calc", "add", "--digest", "0" * 16).exit_code == 1
    assert documents(url, "accept", "calc", "add", "--digest", digest[:16])["accepted"] == ["add"]
    assert documents(url, "show", "calc")["accepted"]["add"]["description"] == "Sends."
    entries = [entry for _, entry in audited(url)]
    assert [(entry["kind"], entry["tools"]) for entry in entries] == [("mcp_accepted", {"add": digest[:16]})]
    assert documents(url, "accept", "calc") == {"server": "calc", "accepted": [], "waiting": ["sly"]}


def test_what_is_not_there_is_named(url: str) -> None:
    assert "no MCP server 'git'" in typed(url, "show", "git").output
    result = typed(url, "accept", "calc", "sly")
    assert result.exit_code == 1
    assert "cannot be accepted" in result.output

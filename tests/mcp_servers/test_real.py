"""MCP servers from the registries, used by a run in sandboxes: git, time and fetch in Python, two of them of node."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from support.stage import Stage
from support.upstream import OK, upstream
from support.waiting import run_async
from support.walled import walled
from understudy import END, START, Context, Graph
from understudy.actors.mcp.server import McpServer, mcp_server
from understudy.actors.memory import MemoryStore
from understudy.actors.outcome import Outcome
from understudy.policies.profile import Limits, Profile

pytestmark = [pytest.mark.timeout(240)]
LIMITS = Limits(wall_s=60.0, memory_bytes=1 << 30)


class Nothing(BaseModel):
    """No state."""


def node(name: str, *words: str) -> McpServer:
    script = Path(sys.prefix, "mcp/node_modules/@modelcontextprotocol", f"server-{name}", "dist/index.js")
    return mcp_server(name, command=["node", str(script), *words])


def outcomes(
    folder: Path, *calls: tuple[McpServer, str, dict[str, Any]], network: tuple[str, ...] = ()
) -> list[Outcome]:
    """Of these calls, by one run whose policy lets them write to this folder, reach these places, and nothing else."""
    ended: list[Outcome] = []

    async def work(state: Nothing, ctx: Context) -> None:
        for server, tool, args in calls:
            ended.append(await ctx.outcome(server.tool(tool), **args))

    async def played() -> None:
        graph = Graph("real", Nothing)
        graph.node(work, name="work")
        graph.edge(START, "work").edge("work", END)
        stage = walled(
            Stage(MemoryStore(), graph), Profile(write=(str(folder),), limits=LIMITS, tier="cold", network=network)
        )
        assert await stage.drive(await stage.start({})) == "succeeded"

    run_async(played(), timeout_s=200)
    return ended


def test_git(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / "notes.txt").write_text("hello")
    repo = {"repo_path": str(tmp_path)}
    git = mcp_server("git", command=["python", "-m", "mcp_server_git"])
    added, status, elsewhere = outcomes(
        tmp_path,
        (git, "git_add", {**repo, "files": ["notes.txt"]}),
        (git, "git_status", repo),
        (git, "git_status", {"repo_path": "/root"}),
    )
    assert added.kind == "ok", added
    assert "new file:   notes.txt" in str(status.value)
    assert elsewhere.kind == "error"
    told = subprocess.run(["git", "-C", str(tmp_path), "status", "--short"], capture_output=True, text=True, check=True)
    assert told.stdout == "A  notes.txt\n", "it was really done, on the host"


def test_time_and_fetch(tmp_path: Path) -> None:
    time = mcp_server("time", command=["python", "-m", "mcp_server_time"])
    words = ["--allow-private-ips", "--ignore-robots-txt"]
    fetch = mcp_server("fetch", command=["python", "-m", "mcp_server_fetch", *words])
    plain = OK.replace(b"Connection", b"Content-Type: text/plain\r\nConnection")
    with upstream(plain) as granted, upstream() as other:
        now, page, refused = outcomes(
            tmp_path,
            (time, "get_current_time", {"timezone": "Europe/Berlin"}),
            (fetch, "fetch", {"url": f"http://127.0.0.1:{granted.port}/a?b=c"}),
            (fetch, "fetch", {"url": f"http://127.0.0.1:{other.port}/"}),
            network=(f"127.0.0.1:{granted.port}",),
        )
    value = now.value if isinstance(now.value, dict) else json.loads(now.value)
    assert value["timezone"] == "Europe/Berlin"
    assert page.kind == "ok", page
    assert "hello" in str(page.value)
    assert granted.heard[0].startswith(b"GET /a?b=c HTTP/1.1"), "through the proxy, and written anew"
    assert (refused.kind, refused.error_type, other.heard) == ("error", "McpError", [])
    assert "status code 403" in refused.error


def test_filesystem_and_everything(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    files, everything = node("filesystem", str(tmp_path)), node("everything", "stdio")
    read, written, outside, echo, image, environment = outcomes(
        tmp_path,
        (files, "read_text_file", {"path": str(tmp_path / "a.txt")}),
        (files, "write_file", {"path": str(tmp_path / "b.txt"), "content": "there"}),
        (files, "read_text_file", {"path": "/etc/shadow"}),
        (everything, "echo", {"message": "hi"}),
        (everything, "get-tiny-image", {}),
        (everything, "get-env", {}),
    )
    assert "hello" in json.dumps(read.value)
    assert written.kind == "ok", written
    assert (tmp_path / "b.txt").read_text() == "there"
    assert (tmp_path / "b.txt").stat().st_uid == os.geteuid()
    assert outside.kind == "error"
    assert echo.value == "Echo: hi"
    assert [part["mimeType"] for part in image.value["content"] if part["type"] == "image"] == ["image/png"]
    assert "UNDERSTUDY" not in str(environment.value)

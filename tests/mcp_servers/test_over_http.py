"""MCP over streamable HTTP, with the proxy of a call as the only way out: granted, refused, lost in the middle."""

import hashlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from support.hostile_mcp import TOOL
from support.mcp_over_http import Hostile, Real, hostile, real
from support.stage import Stage
from support.upstream import certificate
from support.waiting import run_async
from understudy import END, START, Context, Graph
from understudy.actors.errors import ToolError
from understudy.actors.mcp import over_http, pins
from understudy.actors.mcp.inside import Ask
from understudy.actors.mcp.server import Era, Listing, McpServer, McpTool, mcp_server
from understudy.actors.memory import MemoryStore
from understudy.actors.outcome import Outcome, ToolCall
from understudy.actors.sandbox.bubblewrap import BubblewrapBackend
from understudy.actors.sandbox.egress.injection import Injection
from understudy.actors.sandbox.egress.proxy import Proxy
from understudy.actors.sandbox.egress.way_out import WayOut
from understudy.policies.hosts import read_host_pattern
from understudy.policies.profile import Limits, Profile

pytestmark = [pytest.mark.timeout(120)]
TOKEN = "a token that no tool sees"
PINNED = {**TOOL, "outputSchema": None, "annotations": None}


@pytest.fixture(scope="module")
def calc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    with real(tmp_path_factory.mktemp("calc")) as served:
        yield served


async def behind_walls(tool: Any, port: int, *network: str, limits: Limits | None = None, **args: Any) -> Outcome:
    """One call in a sandbox of tier cold; the proxy puts a token into what goes to that port."""
    there = read_host_pattern(f"127.0.0.1:{port}")
    way_out = WayOut(injections=[Injection("token", there, "Authorization", TOKEN, tls=False)])
    call = ToolCall("the key", tool.judged_as, tool._shipped, args)
    profile = Profile(network=network, tier="cold", limits=limits or Limits(wall_s=60))
    return await BubblewrapBackend().execute(call, profile, way_out)


@asynccontextmanager
async def proxied(monkeypatch: pytest.MonkeyPatch, *network: str, **how: Any) -> AsyncIterator[Proxy]:
    """A real proxy, for clients in this process."""
    listener = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(over_http, "PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
    monkeypatch.setenv("HTTP_PROXY", over_http.PROXY)
    proxy = Proxy(network, Limits(), **how)
    await proxy.open(listener)
    try:
        yield proxy
    finally:
        await proxy.close()


# --- behind walls ---------------------------------------------------------------------------------------------------


def test_a_granted_server_is_called_and_the_proxy_puts_the_token_in(calc: Real) -> None:
    server = mcp_server("calc", url=calc.url)

    async def played() -> None:
        there = f"127.0.0.1:{calc.port}"
        listed = await behind_walls(Listing(server), calc.port, there)
        assert listed.kind == "ok", listed
        told = next(told for told in listed.value if told["name"] == "whoami")
        asked = await behind_walls(McpTool(server, "whoami", told=told), calc.port, there)
        assert asked.value == {"result": hashlib.sha256(TOKEN.encode()).hexdigest()}, asked
        assert TOKEN not in repr((listed, asked))

    run_async(played())


@pytest.mark.parametrize("network", [(), ("127.0.0.1:1",)])
def test_what_is_not_granted_is_refused_in_words(calc: Real, network: tuple[str, ...]) -> None:
    outcome = run_async(behind_walls(Listing(mcp_server("calc", url=calc.url)), calc.port, *network))
    assert (outcome.kind, outcome.error_type) == ("error", "NotGranted"), outcome
    words = "grants no network; let it say network:" if not network else "is not granted; the grant lists 127.0.0.1:1"
    assert f"127.0.0.1:{calc.port}" in outcome.error
    assert words in outcome.error


def test_a_flood_ends_with_the_bytes_that_are_granted() -> None:
    with hostile("floods") as served:
        tool = pinned_tool(mcp_server("s", url=served.url, era="legacy"))
        few = Limits(wall_s=60, network_bytes=1 << 20)
        outcome = run_async(behind_walls(tool, served.port, f"127.0.0.1:{served.port}", limits=few, a=1))
    assert (outcome.kind, outcome.error_type) == ("unknown", "ServerLost"), outcome


def pinned_tool(server: McpServer) -> Any:
    return McpTool(server, "add", told=PINNED)


@pytest.mark.parametrize("era", ["auto", "legacy", "2026-07-28"])
def test_each_era_goes_through_the_proxy(calc: Real, era: Era, monkeypatch: pytest.MonkeyPatch) -> None:
    async def played() -> None:
        server = mcp_server("calc", url=calc.url, era=era)
        async with proxied(monkeypatch, f"127.0.0.1:{calc.port}") as proxy:
            told = next(told for told in await Listing(server).fn() if told["name"] == "add")
            assert await McpTool(server, "add", told=told).fn(a=1) == {"result": 3}
        assert {each.decision for each in proxy.log.kept} == {"allow"}

    run_async(played())


# --- what becomes of a call -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "raises"),
    [
        ("fine", ""),
        ("changed", "ToolChanged"),
        ("no", "MCPError"),
        ("garbage", "MCPError"),
        ("other kind", "MCPError"),
        ("nested", "MCPError"),
        ("moved", "MCPError"),
        ("hangs up", "ServerLost"),
        ("half", "ServerLost"),
        ("half a stream", "ServerLost"),
        ("bad gateway", "ServerLost"),
        ("pretends", "ServerRefused"),
    ],
)
def test_only_a_server_that_is_lost_with_the_call_leaves_it_unknown(
    how: str, raises: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def played(served: Hostile) -> Any:
        server = mcp_server("s", url=served.url, era="legacy")
        async with proxied(monkeypatch, f"127.0.0.1:{served.port}"):
            return await Ask(server.plain(), "add", pins.digest("s", PINNED))(a=1)

    with hostile(how) as served, hostile("fine") as other:
        served.elsewhere = other.url
        if not raises:
            assert run_async(played(served)) == "3"
            return
        with pytest.raises(Exception, match=r".") as found:
            run_async(played(served))
        assert type(found.value).__name__ == raises, repr(found.value)
        assert getattr(found.value, "leaves_unknown", False) == (raises == "ServerLost")
        assert served.heard.count("tools/call") == (raises != "ToolChanged")
        assert other.heard == [], "it is not followed"


def test_with_https_the_proxy_speaks_tls_and_puts_the_token_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, tls = certificate(tmp_path, "mcp.example")

    async def resolve(host: str) -> list[Any]:
        return [ip_address("127.0.0.1")]

    async def played(served: Hostile) -> Any:
        places = (f"mcp.example:{served.port}", f"127.0.0.1:{served.port}")
        token = Injection("token", read_host_pattern(places[0]), "Authorization", TOKEN)
        how = {"tls": ssl.create_default_context(cafile=str(cert)), "resolve": resolve, "injections": [token]}
        async with proxied(monkeypatch, *places, **how) as proxy:
            url = f"https://mcp.example:{served.port}/mcp"
            server = mcp_server("s", url=url, era="legacy")
            value = await Ask(server.plain(), "add", pins.digest("s", PINNED))(a=1)
        assert {(each.method, each.secrets) for each in proxy.log.kept} <= {("POST", ("token",)), ("GET", ("token",))}
        return value

    with hostile("fine", tls) as served:
        assert run_async(played(served)) == "3"
        assert served.tokens == {TOKEN}


def test_a_server_that_nobody_is_at_was_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def played(port: int) -> None:
        async with proxied(monkeypatch, f"127.0.0.1:{port}"):
            await Listing(mcp_server("s", url=f"http://127.0.0.1:{port}/mcp")).fn()

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(over_http.Unreachable, match="cannot be reached, so it was not asked"):
        run_async(played(port))


# --- unknown, as declared -------------------------------------------------------------------------------------------


class State(BaseModel):
    said: str = ""


async def played_on(served: Real, tool: str, then: Callable[[Stage, Any], Awaitable[None]], **declared: Any) -> None:
    """A run that makes one call; the client is in this process, the server a real one."""
    graph = Graph("unknown", State)

    async def work(state: State, ctx: Context) -> dict[str, str]:
        try:
            answer = await ctx.call(mcp_server("calc", url=served.url).tool(tool, **declared))
        except ToolError as error:
            answer = {"result": str(error)}
        return {"said": answer["result"]}

    graph.node(work, name="work")
    graph.edge(START, "work").edge("work", END)
    stage = Stage(MemoryStore(), graph)
    await then(stage, await stage.start({}))


def test_a_call_whose_server_died_of_it_is_for_a_person_to_settle(tmp_path: Path) -> None:
    async def then(stage: Stage, run: Any) -> None:
        assert await stage.drive(run) == "waiting"
        (question,) = (await run.record()).interrupts
        assert question.kind == "unknown"
        assert (
            "this call lost sight of what it had begun: ServerLost: MCP server 'calc'" in question.payload["question"]
        )
        assert "while it had the call of 'die'" in question.payload["question"]
        await run.resume({"value": {"result": "I looked: it is done"}})
        assert await stage.drive(run) == "succeeded"
        assert (await run.state())["said"] == "I looked: it is done"
        kinds = await stage.kinds(run)
        assert kinds.index("mcp_tools") < kinds.index("interrupted")

    with real(tmp_path) as served:
        run_async(played_on(served, "die", then))
        assert served.noted == ["died"], "it was called once"


def test_an_idempotent_call_is_made_again_under_its_key(tmp_path: Path) -> None:
    async def then(stage: Stage, run: Any) -> None:
        assert await stage.drive(run) == "succeeded"
        assert (await run.state())["said"] == "survived"

    with real(tmp_path) as served:
        run_async(played_on(served, "die_once", then, idempotent=True))
        first, second = served.noted
        assert first == second


def test_an_idempotent_call_that_kills_its_server_each_time_is_not_made_for_ever(tmp_path: Path) -> None:
    async def then(stage: Stage, run: Any) -> None:
        assert await stage.drive(run) == "succeeded"
        assert "was lost while it had the call" in (await run.state())["said"]
        (receipt,) = [each for each in await stage.store.receipts(run.run_id) if each.tool == "mcp:calc/die"]
        assert receipt.standing == "unknown"

    with real(tmp_path) as served:
        run_async(played_on(served, "die", then, idempotent=True))
        assert len(served.noted) == 3

"""Tools with packages of their own, and of an MCP server, through Ray, the policy, a cold sandbox, its proxy."""

import tempfile
from pathlib import Path

import pytest

from support import tool_kinds
from support.mcp_over_http import real
from support.waiting import run_async
from support.wheels import left_pad
from understudy import connect
from understudy.actors.sandbox.build import build
from understudy.actors.sandbox.environments import Environments
from understudy.cluster.auditing import entries_of
from understudy.cluster.settings import Settings

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]


def test_an_environment_is_found_and_a_server_over_http_is_called_with_a_token_and_lost_with_a_call() -> None:
    async def played(folder: Path, url: str, port: int) -> None:
        settings = Settings(
            state_dir=folder,
            store=f"sqlite://{folder}/test.db",
            secrets=folder / "secrets",
            run_actors=1,
            spare_actors=0,
        )
        left_pad(folder)
        build(Environments(str(settings.environments)), tool_kinds.PAD, ["--no-index", "--find-links", str(folder)])
        async with connect(settings=settings, embedded=True, policy=tool_kinds.POLICY % port) as cluster:
            run = await cluster.start(tool_kinds.kinds, {"url": url})
            record = await run.wait(90, until={"waiting", "failed"})
            assert record.status == "waiting", record.error
            (question,) = record.interrupts
            assert question.kind == "unknown"
            assert "was lost while it had the call of 'die'" in question.payload["question"]
            await run.resume({"value": {"result": "it is done"}})
            state = await run.result()
            assert state.said == ["    x", tool_kinds.hashed("Bearer a-planted-token"), "it is done"]
            events = [event async for event in run.events(follow=False)]
            (seen,) = [event.data for event in events if event.kind == "mcp_tools"]
            assert (seen["launch"], seen["first"], "whoami" in seen["accepted"]) == (url, True, True)
            entries = [entry async for _, entry in entries_of(cluster.store, run.run_id)]
            connected = [entry for entry in entries if entry["kind"] == "connection"]
            assert {(each["decision"], each["host"], each["port"]) for each in connected} == {
                ("allow", "127.0.0.1", port)
            }
            assert all(each["secrets"] == ["token"] for each in connected)
            assert "a-planted-token" not in repr((entries, events, state))

    with tempfile.TemporaryDirectory(prefix="understudy-test-") as name, real(Path(name)) as served:
        secrets = Path(name, "secrets")
        secrets.touch(mode=0o600)
        secrets.write_text(f"token: {{value: a-planted-token, hosts: ['http://127.0.0.1:{served.port}']}}\n")
        run_async(played(Path(name), served.url, served.port), 200)
        assert served.noted == ["died"], "it was called once"

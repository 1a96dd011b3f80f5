"""Effects on real parts: processes that are killed at work, real sandboxes and rules, people who decide, and a fork."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.effect_graphs import keeping, posting, spending, transferring
from support.waiting import run_async, wait_until_async
from understudy import connect
from understudy.cluster.client import Cluster, Run
from understudy.cluster.settings import Settings
from understudy.policies.policy_file import load_policy

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

RULES = """
policy: effects
version: 1
rules:
  - id: transfer
    effect: allow
    tool: transfer
    when: {folder: {under: "${folder}"}}
    files: {write: ["${folder}"]}
    limits: {wall: 60s, memory: 256MiB}
  - id: spend
    effect: ask
    tool: spend
    reason: money leaves the house
  - id: too-much
    effect: deny
    tool: spend
    when: {amount: {gt: 100}}
    reason: nobody may approve that much
  - id: jot
    effect: allow
    tool: jot
    workspace: write
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """With names that a sandbox may be given."""
    with tempfile.TemporaryDirectory(prefix="understudy-test-") as name:
        yield Path(name)


def opened(folder: Path) -> Path:
    """A folder that the node writes as root, and the tool as somebody else."""
    folder.mkdir()
    folder.chmod(0o777)
    return folder


async def there(path: Path, run: Run) -> None:
    """The run makes this file."""

    async def found() -> bool:
        record = await run.record()
        assert not record.final, f"{record.status}: {record.error}"
        return path.exists()  # noqa: ASYNC240 (made by another process)

    await wait_until_async(found, 60, f"{path.name} to be there")


def test_effects_on_real_parts(folder: Path) -> None:
    async def played() -> None:
        settings = Settings(
            state_dir=folder / "state", store=f"sqlite://{folder}/state/e.db", run_actors=2, spare_actors=1, lease_s=3.0
        )
        rules = load_policy(RULES, source="test", variables={"folder": str(folder)})
        async with connect(settings=settings, policy=rules, embedded=True) as cluster:
            await the_other_side_is_asked_in_a_sandbox(cluster, folder)
            await an_effect_whose_process_died_is_asked_about_outside(cluster, folder)
            await a_workspace_follows_its_run(cluster, folder)
            await a_changed_call_is_judged_by_the_real_rules(cluster)
            await a_fork_takes_what_was_done(cluster, folder)

    run_async(played(), 280)


async def the_other_side_is_asked_in_a_sandbox(cluster: Cluster, folder: Path) -> None:
    """The sandbox is killed after the transfer arrived: it is not made again, and nobody is asked."""
    here = opened(folder / "transfer")
    run = await cluster.start(transferring, {"folder": str(here)})
    await there(here / "transferred", run)
    assert cluster.host is not None
    services = (await cluster.host.report())["services"]
    os.kill(next(pid for name, pid in services.items() if "sandbox" in name), signal.SIGKILL)
    assert (await run.result(90)).seen == ["it had arrived"]
    assert len(list(here.glob("bank-*"))) == 1
    told = [(e.kind, e.data.get("by")) async for e in run.events(follow=False) if e.kind == "reconciled"]
    assert told == [("reconciled", "reconcile")]
    receipts = {r.tool: r.standing for r in await cluster.store.receipts(run.run_id)}
    assert receipts == {"transfer": "done", "transfer#reconcile": "done"}


async def an_effect_whose_process_died_is_asked_about_outside(cluster: Cluster, folder: Path) -> None:
    here = opened(folder / "post")
    run = await cluster.start(posting, {"folder": str(here)})
    await there(here / "posted", run)
    record = await run.record()
    os.kill(int(record.owner.rpartition("/")[2]), signal.SIGKILL)
    assert (await run.result(90)).seen == ["prepared", "sent before the crash"]
    assert len((here / "posted").read_text().splitlines()) == 1
    outcomes = [e.data["outcome"] async for e in run.events(follow=False) if e.kind == "effect_finished"]
    assert outcomes == ["unknown"]


async def a_workspace_follows_its_run(cluster: Cluster, folder: Path) -> None:
    """To another process, from the checkpoint and from the receipts of calls that no checkpoint has yet."""
    here = opened(folder / "keeping")
    run = await cluster.start(keeping, {"folder": str(here)}, files={"notes/log": "given\n"})
    await there(here / "ran", run)
    first = (await run.record()).owner
    os.kill(int(first.rpartition("/")[2]), signal.SIGKILL)

    async def taken_up() -> bool:
        return len((here / "ran").read_text().splitlines()) == 2

    await wait_until_async(taken_up, 60, "another actor to come to the same place")
    assert (await run.record()).owner != first
    (here / "go").touch()
    assert (await run.result(60)).seen == ["given", "begun", "kept", "ended"]
    assert await run.files() == {"notes/log": b"given\nbegun\nkept\nended\n"}


async def decided(cluster: Cluster, ask: int, **how: Any) -> tuple[Run, list[Any]]:
    """A payment that somebody decides on, and what came of it."""
    run = await cluster.start(spending, {"ask": ask})
    await run.wait(60, {"waiting"})
    (call,) = await run.questions()
    if "value" in how:
        await run.answer_call(call.interrupt_id, how["value"])
    else:
        await run.approve(call.interrupt_id, **how)
    return run, (await run.result(60)).seen


async def a_changed_call_is_judged_by_the_real_rules(cluster: Cluster) -> None:
    """Its grant is for the digest of the changed call: the sandbox checks it."""
    assert (await decided(cluster, 50, args={"amount": 40}))[1] == ["spent 40"]
    assert (await decided(cluster, 50, value="by hand"))[1] == ["by hand"]
    assert (await decided(cluster, 50, args={"amount": 500}))[1] == [
        "tool 'spend': denied: nobody may approve that much"
    ]


async def a_fork_takes_what_was_done(cluster: Cluster, folder: Path) -> None:
    here = opened(folder / "forked")
    (here / "go").touch()
    run = await cluster.start(posting, {"folder": str(here)})
    assert (await run.result(60)).seen == ["prepared", "sent"]
    first = next(row.checkpoint_id for row in await run.history() if row.step == 1)
    (beyond,) = await run.beyond(first)
    assert (beyond.name, beyond.standing) == ("effect:post", "done")
    reusing = await run.fork(first, effects="reuse")
    asking = await run.fork(first)
    assert (await reusing.result(60)).seen == ["prepared", "sent"]
    await asking.wait(60, {"waiting"})
    assert [question.kind for question in await asking.questions()] == ["repeat"]
    assert len((here / "posted").read_text().splitlines()) == 1
    await asking.resume("repeat")
    assert (await asking.result(60)).seen == ["prepared", "sent"]
    assert len((here / "posted").read_text().splitlines()) == 2

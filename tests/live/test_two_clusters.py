"""Two Ray clusters serve one store: a run changes from one to the other while a tool of it is at work over there."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import graphs
from support.processes import start_program
from support.waiting import run_async, wait_until_async
from understudy import connect
from understudy.actors.store import Store
from understudy.cluster.settings import Settings
from understudy.policies.policy_file import load_policy

pytestmark = [pytest.mark.live, pytest.mark.timeout(300), pytest.mark.xdist_group("runs")]

OTHER = """
import asyncio, sys
from pathlib import Path
from understudy import connect
from understudy.cluster.settings import Settings

async def serve():
    settings = Settings(state_dir=Path(sys.argv[1]), store=sys.argv[2], run_actors=1, spare_actors=0, lease_s=3.0)
    async with connect(settings=settings, embedded=True):
        await asyncio.Event().wait()

asyncio.run(serve())
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Open to sandboxes, which run as somebody else."""
    with tempfile.TemporaryDirectory(prefix="understudy-test-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


def start_other(folder: Path, url: str) -> subprocess.Popen[bytes]:
    """The other cluster: a process with a Ray of its own."""
    with open(folder / "other.log", "wb") as log:
        return start_program([sys.executable, "-c", OTHER, str(folder / "state"), url], Path.cwd(), log, None)


async def supervisors(store: Store) -> dict[str, Any]:
    """What each living one said last, by its pid."""
    told = [json.loads(data) for _, data in (await store.beats()).values()]
    return {str(said["pid"]): said for said in told if said.get("role") == "supervisor"}


async def last_sign(store: Store, pid: str) -> float:
    """When this supervisor gave its last sign of life."""
    return max(at for at, data in (await store.beats()).values() if str(json.loads(data).get("pid")) == pid)


def test_a_call_in_the_sandbox_of_another_living_cluster_is_waited_for(folder: Path) -> None:
    """It was taken for dead: here, too, was a sandbox of that name, and it knew of no such call."""
    url = f"sqlite://{folder}/state/two.db"

    async def played() -> None:
        settings = Settings(state_dir=folder / "state", store=url, run_actors=2, spare_actors=1, lease_s=3.0)
        settings.secret()  # made once, for both
        rules = load_policy(graphs.POLICY, source="test", variables={"folder": str(folder)})
        other = start_other(folder, url)
        async with connect(settings=settings, policy=rules, embedded=False) as client:
            run = await client.start(graphs.lasting, {"folder": str(folder)})

            async def begun() -> bool:
                assert other.poll() is None, (folder / "other.log").read_text()
                return (folder / "slow-began").exists()

            await wait_until_async(begun, 90, "the tool to begin in the other cluster")
            (theirs,) = await supervisors(client.store)
            (before,) = await client.store.receipts(run.run_id)

            async with connect(settings=settings, embedded=True):

                async def spare() -> bool:
                    found = await supervisors(client.store)
                    return any(
                        pid != theirs and any(actor["ready"] for actor in said["actors"]) for pid, said in found.items()
                    )

                await wait_until_async(spare, 90, "an actor of this cluster to stand ready")
                owner = ""

                async def here() -> bool:
                    """The run's actor over there is killed, as often as it is, until this cluster has the run."""
                    nonlocal owner
                    record = await run.record()
                    if record.status != "running" or record.owner == owner:
                        return False
                    owner = record.owner
                    if owner.split(":")[1] != theirs:
                        return True
                    os.kill(int(owner.rpartition("/")[2]), signal.SIGKILL)
                    return False

                await wait_until_async(here, 60, "this cluster to take the run over")

                async def again() -> bool:
                    return len((folder / "ran").read_text().splitlines()) >= 2

                await wait_until_async(again, 30, "the node to run again")
                before_s = await last_sign(client.store, theirs)

                async def goes_on() -> bool:
                    return await last_sign(client.store, theirs) > before_s + 1.5

                await wait_until_async(goes_on, 30, "the other cluster to give more signs of life")
                record = await run.record()
                assert (record.status, record.interrupts) == ("running", ())
                (receipt,) = await client.store.receipts(run.run_id)
                assert receipt == before, "the very same start, still at work over there"
                (folder / "slow-go").touch()
                assert (await run.result(60)).seen == ["done"]
                kinds = [event.kind async for event in run.events(follow=False)]
                assert (kinds.count("tool_started"), kinds.count("tool_finished")) == (1, 1)
                other.kill()
                other.wait(30)

    run_async(played(), 280)

"""A host holds a Ray and the supervisor in it, and puts a new supervisor in place whenever the old one dies.

The only place that starts Ray. It is Ray on loopback, without dashboard and without usage reports, unless
`ray_address` names a cluster.
"""

import asyncio
import contextlib
import functools
import hashlib
import logging
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from understudy.actors.errors import CallerError
from understudy.actors.policy_source import PoliciesUnusable, source_of
from understudy.actors.store import Store
from understudy.cluster.guard import Guard
from understudy.cluster.lean_ray import without_extras
from understudy.cluster.settings import Settings
from understudy.cluster.stores import open_store
from understudy.policies.restart import RestartPolicy

if TYPE_CHECKING:  # the supervisor imports Ray, most of a second; who only reads a store does not pay for it
    from understudy.actors.supervisor import SupervisorConfig

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 80 * 1024 * 1024


def store_opener(settings: Settings) -> Callable[[], Awaitable[Store]]:
    """A picklable function that opens the deployment's store, in any process."""
    return functools.partial(open_store, settings.store_url, allow_volatile=settings.allow_volatile)


def supervisor_config(settings: Settings) -> "SupervisorConfig":
    from understudy.actors.supervisor import SupervisorConfig

    secret = settings.secret()
    try:
        policies = source_of(settings.policy)
    except PoliciesUnusable as error:
        raise CallerError(f"the policy {settings.policy} cannot be used: {error}") from None
    return SupervisorConfig(
        deployment="understudy-" + hashlib.sha256(settings.store_url.encode() + secret).hexdigest()[:8],
        open_store=store_opener(settings),
        secret=secret,
        policies=policies,
        run_actors=settings.run_actors,
        spare_actors=settings.spare_actors,
        runs_per_actor=settings.runs_per_actor,
        sandbox_actors=settings.sandbox_actors,
        calls_per_sandbox=settings.calls_per_sandbox,
        lease_s=settings.lease_s,
        hang_after_s=settings.hang_after_s,
        cancel_within_s=settings.cancel_within_s,
        secrets_path=str(settings.secrets.absolute()) if settings.secrets else None,
        environments_path=str(settings.environments),
        preload=settings.preload,
        restart=RestartPolicy(intensity=settings.restart_intensity, period_s=settings.restart_period_s),
    )


def prepare_ray(settings: Settings) -> None:
    """Set what Ray reads when it is imported; so this module imports it nowhere at its top."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not settings.ray_address:
        # Without it, Ray turns 127.0.0.1 into the machine's outer address, and serves the network. (It is the switch
        # that makes Ray local on desktops.)
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Ray has its workers give way to everything (niceness 15). Beside a busy program, leases are then late.
        os.environ.setdefault("RAY_worker_niceness", "0")


class Host:
    """Start with `start`, end with `stop`; both may be called twice."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._watching: asyncio.Task[None] | None = None
        self._supervisor: Any = None
        self._ours = False
        self.session = ""
        """Folder of logs and sockets of the Ray that was started here; empty: none was."""
        self.guard: Guard | None = None

    async def start(self) -> None:
        """Ray and the supervisor are up when this returns. Raises CallerError if Ray cannot start."""
        if self._watching is not None:
            return
        prepare_ray(self._settings)
        config = supervisor_config(self._settings)
        await asyncio.to_thread(self._start_ray)
        self._supervisor = self._new_supervisor(config)
        await self._supervisor.status.remote()
        if self.guard is not None:
            self.guard.watch_over(process.pid for started in _ray_processes().values() for process in started)
        self._watching = asyncio.ensure_future(self._watch(config))

    async def report(self) -> dict[str, Any]:
        """The supervisor's own account of its actors."""
        report: dict[str, Any] = await self._supervisor.status.remote()
        return report

    async def ray_dies(self) -> str:
        """Wait until one of the two processes is dead without which Ray cannot go on; its name.

        Actors that live go on without them for a while, and none can be created: it looks well and is not.
        """
        while True:
            await asyncio.sleep(1.0)
            for name, started in _ray_processes().items():
                if name in ("raylet", "gcs_server") and any(process.poll() is not None for process in started):
                    return name

    async def stop(self) -> None:
        """End Ray, if it was started here, with everything in it. Runs stay as the store has them (law 9)."""
        if self._watching is None:
            return
        self._watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watching
        self._watching = None
        await asyncio.to_thread(self._stop_ray)

    def _start_ray(self) -> None:
        import ray

        if ray.is_initialized():
            return
        try:
            if self._settings.ray_address:
                ray.init(address=self._settings.ray_address, namespace="understudy", log_to_driver=False)
            else:
                self.guard = Guard()
                with without_extras():
                    context: Any = ray.init(
                        address="local",
                        namespace="understudy",
                        include_dashboard=False,
                        log_to_driver=False,
                        configure_logging=True,
                        logging_level=logging.ERROR,
                        object_store_memory=OBJECT_STORE_BYTES,
                        _node_ip_address="127.0.0.1",
                    )
                self._ours = True
                self.session = context.address_info["session_dir"]
            # Ray prints a paragraph on stdout for every actor that dies. Deaths are told by our events and our log, and
            # stdout belongs to the program (`--json` prints one document). There is no public switch.
            if hasattr(ray._private.worker, "_worker_logs_enabled"):
                ray._private.worker._worker_logs_enabled = False
        except (ConnectionError, ValueError, OSError, RuntimeError) as error:
            where = self._settings.ray_address or "this machine"
            raise CallerError(f"Ray does not start on {where}: {error}") from None

    def _stop_ray(self) -> None:
        import ray

        from understudy.actors.sandbox.tiers import end_leftovers

        if self._ours:
            ray.shutdown()
            self._ours = False
            if self.guard is not None:
                self.guard.end()
            end_leftovers()  # e.g. empty cgroups, of sandboxes that waited for a call
            shutil.rmtree(self.session, ignore_errors=True)  # Ray keeps the logs of every session for ever (law 8)
        else:
            with contextlib.suppress(Exception):
                ray.kill(self._supervisor)

    def _new_supervisor(self, config: "SupervisorConfig") -> Any:
        import ray

        from understudy.actors.supervisor import Supervisor

        actor = ray.remote(Supervisor).options(num_cpus=0, max_restarts=0, max_concurrency=1000)
        return actor.remote(config)

    async def _watch(self, config: "SupervisorConfig") -> None:
        """Hold the supervisor's pending call; a death is known here in milliseconds."""
        from ray.exceptions import RayActorError, RayTaskError

        while True:
            looking = asyncio.ensure_future(self._end_if_hanging(self._supervisor))
            try:
                await self._supervisor.watch.remote()
            except RayActorError:
                log.warning("the supervisor died; a new one takes over")
            except RayTaskError as error:
                log.error("the supervisor failed: %s", error)
                import ray

                with contextlib.suppress(Exception):
                    ray.kill(self._supervisor)
                await asyncio.sleep(0.5)
            finally:
                looking.cancel()
            self._supervisor = self._new_supervisor(config)

    async def _end_if_hanging(self, supervisor: Any) -> None:
        """Kill a supervisor that answers no more, for example a stopped one; its pending call then fails."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        from understudy.actors.ports import in_time
        from understudy.actors.process import end
        from understudy.actors.supervisor import START_S

        process, within_s = "", START_S
        with contextlib.suppress(RayActorError, RayTaskError):
            try:
                while True:
                    report = await in_time(supervisor.status.remote(), within_s)
                    process, within_s = report["process"], self._settings.hang_after_s
                    await asyncio.sleep(1.0)
            except TimeoutError:
                log.warning("the supervisor does not answer; it is killed")
                with contextlib.suppress(Exception):
                    ray.kill(supervisor)
                end(process)


def _ray_processes() -> "dict[str, list[subprocess.Popen[bytes]]]":
    """What this process has started of Ray. There is no public list."""
    from ray._private import worker

    started = getattr(worker._global_node, "all_processes", {})
    return {name: [info.process for info in infos] for name, infos in started.items()}

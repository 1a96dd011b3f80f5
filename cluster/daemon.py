"""The daemon is a host and an exporter in a process of their own; `understudy up` starts it and `down` ends it.

It holds nothing that the store does not (law 9): killed at any line, the next one takes up every unfinished run.

- One daemon per state folder: it holds a lock on `daemon.lock` as long as it lives, which the kernel gives back.
- `daemon.json` says who and where it is. It is written when the daemon is ready, and removed at an orderly end; whoever
  reads it compares the time of birth, because a pid alone may belong to somebody else by now.
- What a killed daemon leaves behind is ended by its guard, or else by the next `up` or `down`.
- When Ray's own processes die, the daemon starts over, under the same pid.
"""

import asyncio
import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

from understudy.actors.errors import CallerError, UnderstudyError
from understudy.actors.process import born
from understudy.actors.store import Store
from understudy.cluster.guard import Guard, end_all
from understudy.cluster.settings import Settings, read_settings

log = logging.getLogger("understudy.daemon")

START_TIMEOUT_S = 90.0
"""Ray alone takes 4 to 14 s on two cores; more on a busy machine."""
STOP_TIMEOUT_S = 30.0
"""How long an orderly end may take before it is a killing."""
FIRST_BEAT_TIMEOUT_S = 60.0
LOCK_PATIENCE_S = 0.5
"""Whoever looks whether there is a daemon holds the lock for an instant."""
LOG_TAIL_LINES = 15
ERROR = "error: "
"""Begins the line, in JSON, by which a daemon that cannot start says why."""
SESSIONS = "ray-sessions"
"""In the state folder: Ray's folders of the daemons that were here, the last line is the newest."""
FROM_STDIN = "--settings-from-stdin"
COMMAND = [sys.executable, "-m", "understudy.cluster.daemon", FROM_STDIN]


@dataclass(frozen=True)
class Daemon:
    """What `daemon.json` says."""

    pid: int
    born: str
    store: str
    """URL without credentials."""
    metrics_url: str
    ray_address: str
    guarded: dict[int, str]
    """Ray's processes, which are not to outlive it (`understudy.cluster.guard`)."""
    started_at: float

    @property
    def alive(self) -> bool:
        return born(self.pid) == self.born


def json_path(settings: Settings) -> Path:
    return settings.state_dir / "daemon.json"


def log_path(settings: Settings) -> Path:
    return settings.state_dir / "daemon.log"


def read_daemon(settings: Settings) -> Daemon | None:
    """What the last daemon of this state folder wrote; it may be dead (`alive`)."""
    try:
        found = json.loads(json_path(settings).read_text())
        guarded = {int(pid): since for pid, since in found.pop("guarded").items()}
        return Daemon(**found, guarded=guarded)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def running_daemon(settings: Settings) -> Daemon | None:
    daemon = read_daemon(settings)
    return daemon if daemon is not None and daemon.alive else None


# --- what `up` and `down` do ---------------------------------------------------------------------------------------


def start(settings: Settings) -> Daemon:
    """Start a daemon and wait until it is ready. Raises CallerError with the reason it gave, if it ends before."""
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    sweep_up(settings)
    settings = _absolute(settings)
    with log_path(settings).open("ab") as output:
        began = output.tell()
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            cwd=settings.state_dir,
            start_new_session=True,
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        # Not as arguments: a store URL may hold a password, and everyone may read a command line.
        process.stdin.write(settings.model_dump_json().encode())
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        daemon = running_daemon(settings)
        if daemon is not None and daemon.pid == process.pid:
            return daemon
        if process.poll() is not None:
            raise CallerError(f"the daemon does not start: {_reason(settings, began)}")
        time.sleep(0.05)
    process.kill()
    process.wait()
    raise CallerError(f"the daemon was not ready after {START_TIMEOUT_S:.0f} s: {_reason(settings, began)}")


def stop(settings: Settings) -> Daemon | None:
    """End the daemon: orderly, or else by force. The one that ran; None if there was none.

    One that is just starting is waited for: until it is ready, nobody could tell all that it leaves behind.
    """
    until = time.monotonic() + START_TIMEOUT_S
    while (daemon := running_daemon(settings)) is None and _is_held(settings) and time.monotonic() < until:
        time.sleep(0.05)
    if daemon is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon.pid, signal.SIGTERM)
            if not _gone(daemon, STOP_TIMEOUT_S):
                os.kill(daemon.pid, signal.SIGKILL)
                _gone(daemon, 5.0)
    sweep_up(settings)
    return daemon


def sweep_up(settings: Settings) -> None:
    """End what a dead daemon left behind."""
    daemon = read_daemon(settings)
    if daemon is not None and not daemon.alive:
        end_all(daemon.guarded, patience_s=0.0)
        json_path(settings).unlink(missing_ok=True)


def _gone(daemon: Daemon, timeout_s: float) -> bool:
    until = time.monotonic() + timeout_s
    while daemon.alive and time.monotonic() < until:
        time.sleep(0.05)
    return not daemon.alive


def _absolute(settings: Settings) -> Settings:
    """The daemon lives in another folder."""
    paths = {name: value for name, value in settings if isinstance(value, Path)}
    return settings.model_copy(update={name: path.absolute() for name, path in paths.items()})


def _reason(settings: Settings, began: int) -> str:
    """What the daemon wrote since it was started: its error, or else the end of its log."""
    with log_path(settings).open("rb") as file:
        file.seek(began)
        lines = file.read().decode(errors="replace").strip().splitlines()
    said = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    if said:
        return str(json.loads(said[-1]))
    tail = "\n  ".join(lines[-LOG_TAIL_LINES:]) or "it wrote nothing"
    return f"see {log_path(settings)}; its last lines:\n  {tail}"


# --- the daemon itself ---------------------------------------------------------------------------------------------


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises CallerError, StoreUnavailable if it cannot start."""
    from understudy.cluster.audit_keeping import keep_pruning
    from understudy.cluster.belonging import take_into_service
    from understudy.cluster.exporter import Exporter
    from understudy.cluster.host import Host, store_opener

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    store = await store_opener(settings)()
    where = (await store.info()).where
    try:
        await take_into_service(store, settings)
    except BaseException:
        await store.close()
        raise
    host = Host(settings)
    exporter = Exporter(store_opener(settings), settings.metrics_port)
    pruning = asyncio.ensure_future(keep_pruning(store, settings))
    try:
        metrics_url = exporter.start()
        await host.start()
        # After Ray, which sets a handler of its own.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        await _first_beat(store)
        guarded = dict(host.guard.guarded) if host.guard is not None else {}
        me = os.getpid()
        keep_last_session(settings.state_dir / SESSIONS, host.session)
        _announce(settings, Daemon(me, born(me), where, metrics_url, _ray_address(), guarded, time.time()))
        log.info("ready; store %s, metrics %s", where, metrics_url)
        died = asyncio.ensure_future(host.ray_dies())
        asked = asyncio.ensure_future(ended.wait())
        await asyncio.wait((died, asked), return_when=asyncio.FIRST_COMPLETED)
        if died.done() and not asked.done():
            log.error("Ray's %s died; starting over", died.result())
            _start_over(settings, host.guard)
        died.cancel()
        log.info("asked to end")
    finally:
        pruning.cancel()
        await asyncio.wait([pruning])
        await store.close()
        exporter.stop()
        await host.stop()
        json_path(settings).unlink(missing_ok=True)
    log.info("ended")


def keep_last_session(path: Path, session: str) -> None:
    """Note Ray's folder of this daemon, and remove those of daemons, and of Rays, that died before; the last one stays,
    for its logs say why (law 8: without this, each death left one for ever)."""
    known = path.read_text().splitlines() if path.exists() else []
    for folder in known[:-1]:
        if Path(folder).name.startswith("session_"):
            shutil.rmtree(folder, ignore_errors=True)
    path.write_text("".join(f"{folder}\n" for folder in [*known[-1:], *([session] if session else [])]))


def _start_over(settings: Settings, guard: Guard | None) -> NoReturn:
    """Become a new daemon in this process: a driver's Ray does not survive the death of its raylet or GCS."""
    if guard is not None:
        guard.end()
    if os.getsid(0) == os.getpid():  # as `up` starts it; then nobody else is in this session
        end_all({pid: born(pid) for pid in _session() if pid != os.getpid()}, patience_s=0.0)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    told = os.memfd_create("settings")
    os.write(told, settings.model_dump_json().encode())
    os.lseek(told, 0, os.SEEK_SET)
    os.dup2(told, 0)
    os.execv(sys.executable, COMMAND)


def _session() -> Iterator[int]:
    """The living processes of this session: workers outlive their raylet."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(ValueError, ProcessLookupError):
            if os.getsid(int(entry.name)) == os.getsid(0):
                yield int(entry.name)


async def _first_beat(store: Store) -> None:
    """Ready means that whoever looks now finds the store served."""
    from understudy.cluster.client import is_served

    try:
        async with asyncio.timeout(FIRST_BEAT_TIMEOUT_S):
            while not await is_served(store, time.time()):  # noqa: ASYNC110 (it comes from another process)
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise CallerError(
            f"the supervisor gave no sign of life within {FIRST_BEAT_TIMEOUT_S:.0f} s; is the machine out of memory or "
            f"overloaded?"
        ) from None


def _ray_address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _announce(settings: Settings, daemon: Daemon) -> None:
    draft = json_path(settings).with_suffix(".draft")
    draft.write_text(json.dumps(dataclasses.asdict(daemon), indent=2))
    draft.replace(json_path(settings))


@contextlib.contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Hold the lock of the state folder. Raises CallerError if another daemon does."""
    path = settings.state_dir / "daemon.lock"
    with path.open("a") as file:
        until = time.monotonic() + LOCK_PATIENCE_S
        while not _locked(file):
            if time.monotonic() > until:
                raise CallerError(f"another daemon holds {path}; it may be starting or ending: see `understudy status`")
            time.sleep(0.05)
        yield


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_held(settings: Settings) -> bool:
    """Whether some daemon is starting, serving or ending."""
    path = settings.state_dir / "daemon.lock"
    if not path.exists():
        return False
    with path.open("a") as file:
        return not _locked(file)


def main() -> int:
    """`python -m understudy.cluster.daemon`: serve in the foreground, with the settings of the environment."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        told = FROM_STDIN in sys.argv
        settings = Settings.model_validate_json(sys.stdin.read()) if told else read_settings()
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _only_one(settings):
            asyncio.run(serve(settings))
    except UnderstudyError as error:
        sys.stderr.write(f"{ERROR}{json.dumps(str(error))}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What this node really gives: isolation, durability and capacity, each tried and not assumed, each with its remedy.

`fail` is what keeps understudy from doing its work safely; `warn` is weaker or smaller than it could be; `none` is not
here, and need not be.
"""

import asyncio
import os
import resource
import shutil
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from understudy.actors.errors import CallerError, StoreUnavailable
from understudy.cluster.daemon import running_daemon
from understudy.cluster.settings import Settings
from understudy.cluster.stores import open_store

if TYPE_CHECKING:
    from understudy.actors.sandbox.backend import Preflight

MIB = 1024 * 1024
ACTOR_BYTES = 55 * MIB
"""Own memory of a warm actor, measured."""
RAY_BYTES = 600 * MIB
"""Ray's own processes on one machine, measured."""
STORE_TIMEOUT_S = 20.0
DISK_FAIL_BYTES, DISK_WARN_BYTES = 100 * MIB, 1024 * MIB
SHM_WANTED_BYTES = 128 * MIB
FILES_WANTED = 4096


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `remedy` is empty when there is nothing to do; of `none`, it is how to have it."""

    name: str
    state: Literal["ok", "none", "warn", "fail"]
    found: str
    remedy: str = ""


async def examine(settings: Settings) -> list[Check]:
    """Everything, in the order in which it is told."""
    isolation, store = await asyncio.gather(check_isolation(settings.preload), check_store(settings))
    return [
        check_python(),
        check_ray(),
        *isolation,
        store,
        check_policy(settings),
        check_secret(settings),
        check_secrets(settings),
        check_environments(settings),
        check_disk(settings),
        check_memory(settings),
        check_shared_memory(),
        check_open_files(),
        check_daemon(settings),
    ]


def check_python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", "ok", f"{version} in {sys.prefix}")


def check_ray() -> Check:
    try:
        return Check("ray", "ok", metadata.version("ray"))
    except metadata.PackageNotFoundError:
        return Check("ray", "fail", "not installed", "pip install understudy again; it brings Ray")


async def check_isolation(preload: Sequence[str] = ()) -> list[Check]:
    """Makes a real call behind the walls of each tier, and looks at what it saw; in the end, what that comes to."""
    from understudy.actors.sandbox.tiers import Tiers, all_tiers

    tiers = Tiers(all_tiers(0, preload))
    try:
        each, whole = await tiers.preflights(), await tiers.preflight()
    finally:
        await tiers.close()
    checks = [_check_tier(tier, found, whole.available) for tier, found in each.items()]
    checks += _check_loaded(each["zygote"].details)
    checks.append(_check_memory(whole.details["memory"]))
    if not whole.available:
        return [*checks, Check("isolation", "fail", "untrusted tools are refused", whole.remedy)]
    standing = ", ".join(tier for tier, found in each.items() if found.available)
    return [*checks, Check("isolation", "ok", f"{standing}: no network and no files but granted ones, never root")]


def _check_loaded(details: Mapping[str, str]) -> list[Check]:
    """The modules that tools are to find loaded."""
    from understudy.actors.sandbox.backend import NOT_LOADED

    not_loaded = {key.removeprefix(NOT_LOADED): why for key, why in details.items() if key.startswith(NOT_LOADED)}
    remedy = "each call imports it anew; take it out of UNDERSTUDY_PRELOAD, or mend that"
    checks = [Check("preload", "warn", f"{name} is not loaded: {why}", remedy) for name, why in not_loaded.items()]
    return [*([Check("preload", "ok", details["loaded"])] if details.get("loaded") else []), *checks]


def _check_memory(told: str) -> Check:
    """Nothing is wrong with a node where the watchdog is alone; it looks fifty times a second."""
    found, _, remedy = told.partition("; ")
    return Check("call memory", "none" if remedy else "ok", found, remedy)


def _check_tier(tier: str, found: "Preflight", enough: bool) -> Check:
    if found.available:
        took = f"a call takes {found.details['duration_ms']} ms"
        network = f"network {found.details.get('network', 'cannot be given')}"
        return Check(f"tier {tier}", "ok", f"{found.details['backend']}, {took}, {network}")
    if enough:  # a policy may still want it, so how to get it is told; but nothing is wrong with the node
        return Check(f"tier {tier}", "none", found.reason, found.remedy)
    return Check(f"tier {tier}", "warn", found.reason, found.remedy)


async def check_store(settings: Settings) -> Check:
    if settings.store_url.startswith("memory:"):
        return Check("store", "fail", "memory:// is forgotten with its process", "choose another with --store URL")
    try:
        async with asyncio.timeout(STORE_TIMEOUT_S):
            store = await open_store(settings.store_url, allow_volatile=settings.allow_volatile)
            try:
                info = await store.info()
            finally:
                await store.close()
    except CallerError as error:
        return Check("store", "fail", str(error), "see above; or choose another store with --store URL")
    except StoreUnavailable as error:
        return Check("store", "fail", str(error), "start it, or choose another one with --store URL")
    except TimeoutError:
        return Check("store", "fail", f"no answer within {STORE_TIMEOUT_S:.0f} s", "is it overloaded or unreachable?")
    detail = ", ".join(f"{name} {value}" for name, value in info.detail.items() if name != "note")
    found = f"{info.where}: {detail}"
    evicts = info.detail.get("maxmemory_policy", "noeviction")
    if evicts not in ("noeviction", "unknown"):  # refused as soon as there is a maxmemory; until then it is but near
        return Check(
            "store",
            "warn",
            f"{found}; with a maxmemory, it would drop runs, and be refused",
            "`redis-cli CONFIG SET maxmemory-policy noeviction`, and the same in redis.conf",
        )
    note = info.detail.get("note", "")
    if info.durable:
        return Check("store", "warn" if note else "ok", found, note)
    remedy = note or "turn its durability on, see the words above"
    return Check("store", "warn", f"{found}; it may lose what it acknowledged", remedy)


def check_policy(settings: Settings) -> Check:
    from understudy.actors.policy_source import PoliciesUnusable, read_policies

    if settings.policy is None:
        return Check("policy", "ok", "none for the deployment; each run brings its own, and no rule means no")
    try:
        policies = read_policies(settings.policy)
    except PoliciesUnusable as error:
        remedy = f"mend {settings.policy}: `understudy policy check` tries it; a daemon that is up keeps what it had"
        return Check("policy", "fail", str(error), remedy)
    layers = "; ".join(f"{p.layer} {p.name!r} version {p.version}, {_rules(len(p.rules))}" for p in policies)
    return Check("policy", "ok", f"{settings.policy}: {layers}")


def check_secret(settings: Settings) -> Check:
    path = settings.secret_file or settings.state_dir / "secret"
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        settings.secret()
    except FileNotFoundError:
        return Check("secret", "ok", f"{path} is made on first use")
    except (OSError, CallerError) as error:
        return Check("secret", "fail", str(error), "mend it, or name another with UNDERSTUDY_SECRET_FILE")
    if mode & 0o077:
        return Check("secret", "fail", f"{path} can be read by others (mode {mode:04o})", f"chmod 600 {path}")
    return Check("secret", "ok", f"{path}, mode {mode:04o}")


def check_secrets(settings: Settings) -> Check:
    """Names only."""
    from understudy.actors.secret_file import SecretFile, SecretsUnusable

    if settings.secrets is None:
        return Check("secrets", "ok", "none for tools; UNDERSTUDY_SECRETS names a file of them")
    try:
        found = SecretFile(str(settings.secrets)).secrets()
        for secret in found.values():
            secret.value()
    except SecretsUnusable as error:
        return Check("secrets", "fail", str(error), "mend it; calls that are granted a secret fail until then")
    names = [f"{name} (by the proxy)" if found[name].hosts else name for name in sorted(found)]
    return Check("secrets", "ok", f"{settings.secrets}: {', '.join(names) or 'none'}")


def check_environments(settings: Settings) -> Check:
    """Verifies each, file by file."""
    from understudy.actors.sandbox.environments import Environments

    try:
        found = Environments(str(settings.environments)).all()
    except OSError as error:
        return Check("environments", "fail", str(error), "make it readable for this user, or choose another folder")
    broken = [each for each in found if each.problem]
    if broken:
        return Check("environments", "fail", broken[0].problem, "build it anew; calls of its tools fail until then")
    if not found:
        return Check("environments", "ok", "none is built; tools find the packages of the workers")
    return Check("environments", "ok", f"{len(found)} in {settings.environments}, each as it was built")


def check_disk(settings: Settings) -> Check:
    folder = settings.state_dir
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        return Check("disk", "fail", f"{folder} cannot be written", "choose another folder with --state-dir DIR")
    free = shutil.disk_usage(folder).free
    found = f"{_bytes(free)} free in {settings.state_dir}"
    if free >= DISK_WARN_BYTES:
        return Check("disk", "ok", found)
    remedy = "make room, or choose another folder with --state-dir DIR"
    return Check("disk", "fail" if free < DISK_FAIL_BYTES else "warn", found, remedy)


def check_memory(settings: Settings) -> Check:
    cores = len(os.sched_getaffinity(0))
    # The supervisor and the policy actor, beside those that are counted in the settings.
    actors = settings.run_actors + settings.spare_actors + settings.sandbox_actors + 2
    needed, available = RAY_BYTES + actors * ACTOR_BYTES, available_memory()
    found = (
        f"{cores} cores, {_bytes(available)} free; {settings.run_actors} run actors of {settings.runs_per_actor} "
        f"run(s) need {_bytes(needed)}"
    )
    if available >= needed:
        return Check("capacity", "ok", found)
    return Check("capacity", "warn", found, "lower UNDERSTUDY_RUN_ACTORS, or raise UNDERSTUDY_RUNS_PER_ACTOR instead")


def available_memory() -> int:
    """Bytes that this machine, or the container around us, still gives."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used))


def check_shared_memory() -> Check:
    try:
        total = shutil.disk_usage("/dev/shm").total
    except OSError:
        total = 0
    if total >= SHM_WANTED_BYTES:
        return Check("shared memory", "ok", f"/dev/shm has {_bytes(total)}")
    return Check(
        "shared memory",
        "warn",
        f"/dev/shm has {_bytes(total)}, so Ray keeps its objects on disk",
        "in a container: --shm-size=256m or more",
    )


def check_open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Ray raises the soft limit to the hard one by itself.
    if min(hard, FILES_WANTED) == FILES_WANTED or hard == resource.RLIM_INFINITY:
        return Check("open files", "ok", f"{soft} (at most {hard})")
    return Check("open files", "warn", f"at most {hard}; thousands of runs want more", f"ulimit -n {FILES_WANTED}")


def check_daemon(settings: Settings) -> Check:
    daemon = running_daemon(settings)
    if daemon is None:
        return Check("daemon", "ok", "down; `understudy up` starts it")
    return Check("daemon", "ok", f"up, pid {daemon.pid}, metrics {daemon.metrics_url}")


def _rules(count: int) -> str:
    return "1 rule" if count == 1 else f"{count} rules"


def _bytes(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB" if count >= 1024**3 else f"{count / MIB:.0f} MiB"

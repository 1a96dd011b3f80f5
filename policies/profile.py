"""A profile says what one sandboxed call may see and use; a grant carries it, a backend turns it into walls.

Pure values. Units stand in the names. Everything that is not listed is not there: no file, no network, no variable.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from operator import contains
from typing import Final, Literal, get_args

from understudy.policies.hosts import covers_host

Tier = Literal["landlock", "zygote", "cold", "gvisor"]
"""How a call is isolated, from the weakest to the strongest; see `actors/sandbox/backend.py`."""
TIERS: Final[tuple[Tier, ...]] = get_args(Tier)
Workspace = Literal["none", "read", "write"]
"""What a call has to do with the files of its run; what it changes of them is kept with `write` only."""
WORKSPACES: Final[tuple[Workspace, ...]] = get_args(Workspace)
DEFAULT_TIER: Final[Tier] = "zygote"
"""The least that a call gets of which no rule says more, or less: namespaces of its own."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one call. A limit reached is an outcome of its own, never a silent drop (law 8)."""

    wall_s: float = 30.0
    """Seconds until the call is ended with SIGKILL, whatever it ignores. Outcome `timeout`."""
    cpu_s: float = 60.0
    """CPU seconds of the whole process tree, with what has ended in it. Outcome `timeout`."""
    memory_bytes: int = 512 * 1024 * 1024
    """Resident memory of the whole process tree, and address space headroom of one process. Outcome `out_of_memory`."""
    processes: int = 64
    """Processes and threads at once. Reaching it makes fork fail inside; the call goes on or fails by itself."""
    open_files: int = 256
    """Descriptors of one process (RLIMIT_NOFILE)."""
    disk_bytes: int = 64 * 1024 * 1024
    """Bytes the private working folder holds, and the largest file. Writing more is ENOSPC or EFBIG inside."""
    output_bytes: int = 1024 * 1024
    """Bytes of printed output and, separately, of the JSON result. Outcome `output_too_large`."""
    network_bytes: int = 64 * 1024 * 1024
    """Bytes over the network, in and out together. Reaching it ends the connection that does; the call goes on."""
    connections: int = 32
    """Connections through the proxy at once. One more is refused."""


@dataclass(frozen=True)
class Profile:
    """What a call may see: paths of the host, each bound at the same place inside, and its limits."""

    read: tuple[str, ...] = ()
    """Absolute host paths (files or folders) visible read-only."""
    write: tuple[str, ...] = ()
    """Absolute host paths (files or folders) visible read-write; each has to exist."""
    limits: Limits = field(default_factory=Limits)
    tier: Tier = DEFAULT_TIER
    """The weakest isolation that will do. A stronger one may be used, a weaker one never."""
    network: tuple[str, ...] = ()
    """Hosts that may be reached, `name:port` (see `hosts.HostPattern`). Nothing else is there."""
    secrets: tuple[str, ...] = ()
    """Names of secrets that may be used."""
    workspace: Workspace = "none"
    """Whether it gets the files of its run, and whether what it changes is kept."""


def covers(folders: Sequence[str], path: str) -> bool:
    """Whether a path is one of these, or lies in one of these. Absolute, normalised paths."""
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def without_repeats(profile: Profile) -> Profile:
    """The same, said once and in order: what may be written may be read, so it need not be listed there too."""
    write = tuple(sorted(set(profile.write)))
    read = tuple(sorted(path for path in set(profile.read) if not covers(write, path)))
    network, secrets = tuple(sorted(set(profile.network))), tuple(sorted(set(profile.secrets)))
    return Profile(read, write, profile.limits, profile.tier, network, secrets, profile.workspace)


def strongest(tiers: Sequence[Tier]) -> Tier:
    """Of several least tiers, the one that satisfies all."""
    return max(tiers, key=TIERS.index)


def least(workspaces: Sequence[Workspace]) -> Workspace:
    """What all of several allow."""
    return min(workspaces, key=WORKSPACES.index)


def intersect(profiles: Sequence[Profile]) -> Profile:
    """What all grant: paths and hosts that each grants, itself or by one that covers it, the secrets of all, the least
    of every limit, the strongest tier."""
    readable = [(*profile.read, *profile.write) for profile in profiles]
    writable = [profile.write for profile in profiles]
    limits = {limit.name: min(getattr(profile.limits, limit.name) for profile in profiles) for limit in fields(Limits)}
    tier = strongest([profile.tier for profile in profiles])
    network = _in_all([profile.network for profile in profiles], covers_host)
    secrets = _in_all([profile.secrets for profile in profiles], contains)
    workspace = least([profile.workspace for profile in profiles])
    files = _in_all(readable, covers), _in_all(writable, covers)
    return without_repeats(Profile(*files, Limits(**limits), tier, network, secrets, workspace))


def _in_all(layers: Sequence[Sequence[str]], covered: Callable[[Sequence[str], str], bool]) -> tuple[str, ...]:
    return tuple(each for layer in layers for each in layer if all(covered(other, each) for other in layers))

"""A profile says what one sandboxed call may see and use; a grant carries it, a backend turns it into walls.

Pure values. Units stand in the names. Everything that is not listed is not there: no file, no network, no variable.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """Bounds of one call. A limit reached is an outcome of its own, never a silent drop (law 8)."""

    wall_s: float = 30.0
    """Seconds until the call is ended with SIGKILL, whatever it ignores. Outcome `timeout`."""
    cpu_s: float = 60.0
    """CPU seconds of one process (RLIMIT_CPU). Outcome `timeout`."""
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


@dataclass(frozen=True)
class Profile:
    """What a call may see: paths of the host, each bound at the same place inside, and its limits."""

    read: tuple[str, ...] = ()
    """Absolute host paths (files or folders) visible read-only."""
    write: tuple[str, ...] = ()
    """Absolute host paths (files or folders) visible read-write; each has to exist."""
    limits: Limits = field(default_factory=Limits)

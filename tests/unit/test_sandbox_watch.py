"""What a sandbox holds is not overstated while its processes end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest

from understudy.actors.sandbox import watch

MIB = 1 << 20

FAMILY = """
import os, signal, sys
held = b"x" * (64 << 20)
for _ in range(4):
    if os.fork() == 0:
        signal.pause()
print("forked", flush=True)
signal.pause()
"""


@contextmanager
def family() -> Iterator[int]:
    """A process with 64 MiB and four children that share them."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", FAMILY], stdout=subprocess.PIPE, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        try:
            assert parent.stdout.readline() == b"forked\n"
            yield parent.pid
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


def test_shared_pages_count_once() -> None:
    with family() as parent:
        assert 64 * MIB < watch.sample(parent, limit_bytes=1).memory_bytes < 100 * MIB
        assert watch.sample(parent, limit_bytes=1 << 40).memory_bytes > 320 * MIB, (
            "the sum is exact only where it decides"
        )


HIDING = """
import mmap, signal
held = mmap.mmap(-1, 96 << 20)
held.write(b"x" * (96 << 20))
held.madvise(mmap.MADV_DONTNEED)
{more}
print("hidden", flush=True)
signal.pause()
"""
UNMAPPED = """
import ctypes
start = ctypes.addressof(ctypes.c_char.from_buffer(held))
ctypes.CDLL(None).munmap(ctypes.c_void_p(start), ctypes.c_size_t(95 << 20))
"""


@pytest.mark.parametrize("more", ["", UNMAPPED])
def test_shared_memory_counts_that_is_in_nobodys_pages(more: str) -> None:
    """The tool that did so held ten times its limit, and nobody saw it."""
    line = [sys.executable, "-S", "-c", HIDING.format(more=more)]
    with subprocess.Popen(line, stdout=subprocess.PIPE) as hiding:
        assert hiding.stdout is not None
        try:
            assert hiding.stdout.readline() == b"hidden\n"
            assert watch.resident(hiding.pid) < 48 * MIB
            assert watch.machine_shared() >= 96 * MIB
            assert 96 * MIB <= watch.sample(hiding.pid, limit_bytes=64 * MIB).memory_bytes < 144 * MIB
            assert watch.sample(hiding.pid, limit_bytes=1 << 40).memory_bytes < 48 * MIB, "looked for where it decides"
        finally:
            hiding.kill()


SHARING = """
import mmap, os, signal
held = mmap.mmap(-1, 48 << 20)
held.write(b"x" * (48 << 20))
for _ in range(3):
    if os.fork() == 0:
        sum(held[at] for at in range(0, len(held), 4096))
        signal.pause()
print("shared", flush=True)
signal.pause()
"""


def test_shared_memory_that_many_have_in_their_pages_counts_once() -> None:
    line = [sys.executable, "-S", "-c", SHARING]
    with subprocess.Popen(line, stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout is not None
        try:
            assert parent.stdout.readline() == b"shared\n"
            assert 48 * MIB <= watch.sample(parent.pid, limit_bytes=80 * MIB).memory_bytes <= 80 * MIB
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


@pytest.mark.parametrize("when", [1, 2, 3, 4])
def test_processes_that_end_during_a_look_do_not_count_twice(monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    """Seen in a test that ended just then: 243 MiB where 80 were held, and the call was ended for it."""
    with family() as parent:
        readings = count(1)
        read = watch.proportional

        def read_and_end_the_others(pid: int) -> int | None:
            held = read(pid)
            if next(readings) == when:
                for child in watch.tree(parent)[1:]:
                    os.kill(child, signal.SIGKILL)
                while any(watch.resident(child) for child in watch.tree(parent)[1:]):
                    os.sched_yield()
            return held

        monkeypatch.setattr(watch, "proportional", read_and_end_the_others)
        assert watch.sample(parent, limit_bytes=90 * MIB).memory_bytes < 90 * MIB

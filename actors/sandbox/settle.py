"""Makes a process cheap to fork, once it has loaded what it will ever load. Standard library only.

A fork copies the table of all pages that are the process's own, and the description of each piece of its memory; its
end takes both down again. For a Python of 20 MiB, with some thirty shared libraries, that is a millisecond.

- What lies in a file, and nobody has written to since, is no page of the process's own. So its memory is written to a
  file, which is mapped in its place, privately: who writes to a page has a copy of it then, as before.
- A library is five pieces, for what in it may be read, executed or written. Two are enough: nothing in them is both
  writable and executable, but constants count as code, and tables that the linker has filled in as variables. To keep
  these apart makes a program's flaws harder to use; in a sandbox, whoever would use them may execute code anyway.
"""

import ctypes
import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, NamedTuple

LARGE_BYTES = 128 * 1024
"""Below it, a piece of memory is left where it is. So is all that the C library writes to while it maps others."""
MACHINES = ("x86_64", "aarch64")
_MAP_FIXED = 0x10
_CONTEXT_BYTES = 8192
"""Of a `ucontext_t`, at most: 968 and 4560, by the machine."""
_LINK = struct.Struct("@PPiP")
"""In it, behind a word of flags: the context that comes after it, and its stack: where that is, flags, bytes."""
_STACK_BYTES = 16384
_NAME = "understudy-memory"
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_c = ctypes.PyDLL(None, use_errno=True)
"""The C library, called without letting go of the interpreter's lock."""

Step = tuple[Callable[..., Any], tuple[int, ...]]
"""A function of the C library, and its arguments."""


class Piece(NamedTuple):
    """Of this process's memory: one row of /proc/self/maps."""

    start: int
    end: int
    rights: str
    offset: int
    file: str
    """Device and inode."""
    name: str

    def is_followed_by(self, other: "Piece") -> bool:
        """Whether both are one stretch, of one file."""
        together = self.end == other.start and self.offset + self.end - self.start == other.offset
        return together and self.file == other.file and not self.file.endswith(" 0")


def settle() -> None:
    """There may be one thread. Where it cannot be done, nothing is changed; it is only a matter of speed."""
    _join()
    if os.uname().machine in MACHINES:
        with suppress(OSError, AttributeError):  # no such files here; another C library
            _keep_in_file()


def pieces() -> Iterator[Piece]:
    with open("/proc/self/maps") as rows:
        for row in rows.read().splitlines():
            place, rights, offset, device, inode, *name = row.split(maxsplit=5)
            start, _, end = place.partition("-")
            yield Piece(int(start, 16), int(end, 16), rights, int(offset, 16), f"{device} {inode}", "".join(name))


def _join() -> None:
    """The kernel makes one of two neighbours that have become alike."""
    for below, above in pairwise(pieces()):
        if below.is_followed_by(above) and (below.rights, above.rights) == ("r--p", "rw-p"):
            _allow(below, mmap.PROT_READ | mmap.PROT_WRITE)
    for below, above in pairwise(pieces()):
        if below.is_followed_by(above):
            for one, other in ((below, above), (above, below)):
                if (one.rights, other.rights) == ("r--p", "r-xp"):
                    _allow(one, mmap.PROT_READ | mmap.PROT_EXEC)


def _allow(piece: Piece, rights: int) -> None:
    """Or else it stays as it is."""
    _c.mprotect(ctypes.c_void_p(piece.start), ctypes.c_size_t(piece.end - piece.start), rights)


def _keep_in_file() -> None:
    """Raises OSError, AttributeError; nothing is changed then."""
    fd = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        thread = ctypes.cast(_c.pthread_self, ctypes.CFUNCTYPE(ctypes.c_size_t))()
        large = [
            each
            for each in pieces()
            if each.rights == "rw-p" and each.name != "[stack]" and each.end - each.start >= LARGE_BYTES
            if not each.start <= thread < each.end
        ]
        os.posix_fallocate(fd, 0, sum(each.end - each.start for each in large))
        steps: list[Step] = []
        offset = 0
        for each in large:
            size = each.end - each.start
            steps.append((_c.pwrite, (fd, each.start, size, offset)))
            rights, kind = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _MAP_FIXED
            steps.append((_c.mmap, (each.start, size, rights, kind, fd, offset)))
            offset += size
        _in_a_row(steps)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    finally:
        os.close(fd)


def _in_a_row(steps: Sequence[Step]) -> None:
    """Make them with nothing in between. Python writes to its memory with whatever it does: what it wrote after a copy
    was made, and before that is mapped, would be lost. So each step is a context of its own, which ends in the next one
    (`makecontext`), and the last one here."""
    count = len(steps) + 1
    area = mmap.mmap(-1, count * (_CONTEXT_BYTES + _STACK_BYTES), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held = ctypes.c_char.from_buffer(area)
    base = ctypes.addressof(held)
    contexts = [ctypes.c_void_p(base + place * _CONTEXT_BYTES) for place in range(count)]
    stacks = base + count * _CONTEXT_BYTES
    for place, (function, arguments) in enumerate(steps):
        context = contexts[place]
        if _c.getcontext(context) != 0:
            raise OSError("there is no context")
        link = contexts[place + 1].value, stacks + place * _STACK_BYTES, 0, _STACK_BYTES
        _LINK.pack_into(area, place * _CONTEXT_BYTES + ctypes.sizeof(ctypes.c_void_p), *link)
        _c.makecontext(context, function, len(arguments), *map(ctypes.c_size_t, arguments))
    _c.swapcontext(contexts[-1], contexts[0])
    del held
    area.close()

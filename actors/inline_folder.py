"""The working folder of a call that has a workspace, in a process that makes other calls: it is that call's alone.

A folder belongs to a process, but Linux lets a thread have one of its own. Where it does not (a container that forbids
`unshare`), the process goes to the call's folder as long as the call takes.
"""

import ctypes
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from understudy.actors.calls import Order
from understudy.actors.files import BYTES_MAX, FILES_MAX
from understudy.actors.sandbox import unpack

T = TypeVar("T")

CLONE_FS = 0x200


def apart(call: Callable[[], T]) -> T:
    """Make a call in a thread whose working folder nobody else has."""
    with ThreadPoolExecutor(1, "inline-workspace", initializer=part_with_the_folder) as thread:
        return thread.submit(call).result()


def part_with_the_folder() -> bool:
    """From here on, `chdir` in this thread is for this thread. Whether the kernel allows it."""
    return bool(ctypes.CDLL(None).unshare(CLONE_FS) == 0)


@contextmanager
def workspace(order: Order) -> Iterator[Callable[[], Any]]:
    """Be in a folder with the files of the run, as long as the call; what is given tells what has changed there."""
    if order.call.files is None:
        yield lambda: None
        return
    items, before = json.loads(order.call.files), os.getcwd()
    with tempfile.TemporaryDirectory(prefix="understudy-inline-") as folder:
        unpack.lay_out(items, folder)
        os.chdir(folder)
        try:
            yield lambda: unpack.changed(items, folder, FILES_MAX, BYTES_MAX) if order.call.keeps else None
        finally:
            os.chdir(before)

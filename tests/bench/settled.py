"""A process that looks for garbage as a run actor's does, for the time of a measurement."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from understudy.actors.garbage import settle


@contextmanager
def settled() -> Iterator[None]:
    """Enter it once the store is open. (pytest has a million objects to look through, which no actor has.)"""
    usual = gc.get_threshold()
    settle()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*usual)

"""What a measurement without Ray has in common with an actor: the event loop, and when garbage is looked for."""

import gc
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TypeVar

import uvloop

from support.waiting import run_async
from understudy.actors.garbage import settle

T = TypeVar("T")


def run_as_actor(measured: Coroutine[object, object, T], timeout_s: float) -> T:
    """Run it on the loop that Ray gives an actor."""
    return run_async(measured, timeout_s, uvloop.new_event_loop)


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

"""How an actor is told of its store: a picklable function that opens it, so that actors/ need not know any backend."""

from collections.abc import Awaitable, Callable

from understudy.actors.store import Store

OpenStore = Callable[[], Awaitable[Store]]

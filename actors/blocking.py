"""The context of `def` nodes, which run in a thread: every call returns its result, not an awaitable."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from understudy.actors.children import ParentClose
from understudy.actors.context import Child, Context
from understudy.actors.graph import Graph
from understudy.actors.interrupts import OnTimeout
from understudy.actors.outcome import Outcome
from understudy.actors.tool import Tool

if TYPE_CHECKING:
    from understudy.actors.mcp.server import McpServer

R = TypeVar("R")


class BlockingContext:
    """What Context is for `async def` nodes."""

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._loop = loop
        self.run_id = context.run_id
        self.thread_id = context.thread_id
        self.node = context.node
        self.step = context.step

    def call(self, tool: "Tool[..., R]", /, **args: Any) -> R:
        """See Context.call."""
        return self._wait(lambda: self._context.call(tool, **args))

    def outcome(self, tool: "Tool[..., Any]", /, **args: Any) -> Outcome:
        """See Context.outcome."""
        return self._wait(lambda: self._context.outcome(tool, **args))

    def read_file(self, path: str) -> bytes:
        """See Context.read_file."""
        return self._context.read_file(path)

    def write_file(self, path: str, data: bytes | str, *, executable: bool = False) -> None:
        """See Context.write_file."""
        self._context.write_file(path, data, executable=executable)

    def tools(self, server: "McpServer") -> list[dict[str, Any]]:
        """See Context.tools."""
        return self._wait(lambda: self._context.tools(server))

    def effect(self, name: str, fn: Callable[..., Any], **more: Any) -> Any:
        """See Context.effect."""
        return self._wait(lambda: self._context.effect(name, fn, **more))

    def interrupt(
        self, payload: Any, *, deadline: timedelta | None = None, on_timeout: OnTimeout = None, schema: Any = None
    ) -> Any:
        """See Context.interrupt."""
        return self._wait(
            lambda: self._context.interrupt(payload, deadline=deadline, on_timeout=on_timeout, schema=schema)
        )

    def sleep(self, duration: timedelta) -> None:
        """See Context.sleep."""
        self._wait(lambda: self._context.sleep(duration))

    def receive(self, *, deadline: timedelta | None = None) -> Any:
        """See Context.receive."""
        return self._wait(lambda: self._context.receive(deadline=deadline))

    def start(
        self,
        graph: Graph | str,
        input: BaseModel | Mapping[str, Any] | None = None,
        *,
        key: str = "",
        labels: Mapping[str, str] | None = None,
        parent_close: ParentClose | None = None,
    ) -> "BlockingChild":
        """See Context.start."""
        how: dict[str, Any] = {"key": key, "labels": labels, "parent_close": parent_close}
        return BlockingChild(self, self._wait(lambda: self._context.start(graph, input, **how)))

    def run(
        self,
        graph: Graph | str,
        input: BaseModel | Mapping[str, Any] | None = None,
        *,
        key: str = "",
        labels: Mapping[str, str] | None = None,
        parent_close: ParentClose | None = None,
    ) -> Any:
        """See Context.run."""
        how: dict[str, Any] = {"key": key, "labels": labels, "parent_close": parent_close}
        return self._wait(lambda: self._context.run(graph, input, **how))

    def stream(self, chunk: Any) -> None:
        """See Context.stream."""

        async def put() -> None:
            self._context.stream(chunk)

        self._wait(put)

    def _wait(self, begin: Callable[[], Awaitable[R]]) -> R:
        async def waited() -> R:
            return await begin()

        return asyncio.run_coroutine_threadsafe(waited(), self._loop).result()


class BlockingChild:
    """The same as Child, for `def` nodes."""

    def __init__(self, context: BlockingContext, child: Child) -> None:
        self._context = context
        self._child = child
        self.run_id = child.run_id

    def result(self) -> Any:
        """See Child.result."""
        return self._context._wait(self._child.result)

    def cancel(self) -> None:
        """See Child.cancel."""
        self._context._wait(self._child.cancel)

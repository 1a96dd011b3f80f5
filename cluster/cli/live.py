"""A followed run on a screen: a line for each event, and what is streamed as running text between them."""

import json
from typing import Any

from rich.text import Text

from understudy.actors.records import Chunk, Event
from understudy.cluster.cli.screen import Screen
from understudy.cluster.cli.view import event_document, event_line, iso, short
from understudy.cluster.follow import Seen


class Live:
    """Texts go on where they stopped, until something else is to be said or another node speaks."""

    def __init__(self, console: Screen) -> None:
        self._console = console
        self._speaking = ""
        """Task whose text the line that is open belongs to."""

    def show(self, item: Event | Chunk) -> None:
        if isinstance(item, Event):
            self.end()
            self._console.print(event_line(item), soft_wrap=True)
        elif item.withdrawn:
            self.end()
            line = f"        what node {item.node!r} has streamed is withdrawn: it runs again"
            self._console.print(Text(line, "yellow"), soft_wrap=True)
        else:
            self._say(item)

    def end(self) -> None:
        """End the line that is open."""
        if self._speaking:
            self._console.print()
        self._speaking = ""

    def _say(self, chunk: Chunk) -> None:
        data = json.loads(chunk.data)
        text = data if isinstance(data, str) else short(data, 400) + "\n"
        if self._speaking != chunk.task_id:
            self.end()
            self._console.print(Text(f"{chunk.node}: ", "bold"), end="")
        self._console.print(Text(text), end="", soft_wrap=True)
        self._console.file.flush()
        self._speaking = "" if text.endswith("\n") else chunk.task_id


def seen_document(seen: Seen) -> dict[str, Any]:
    """An event or a chunk as `events --stream --json` prints it, with the cursor to come back with."""
    item = seen.item
    if isinstance(item, Event):
        return {**event_document(item), "cursor": str(seen.cursor)}
    return {
        "n": item.n,
        "at": iso(item.at),
        "kind": "withdrawn" if item.withdrawn else "chunk",
        "data": json.loads(item.data),
        "node": item.node,
        "task_id": item.task_id,
        "attempt": item.attempt,
        "cursor": str(seen.cursor),
    }

"""Asks the person at the terminal what a run asks. An empty answer, or Ctrl-C, leaves the question where it is."""

import json
import signal
from typing import TYPE_CHECKING, Any

from understudy.actors.errors import CallerError
from understudy.actors.process import user_name
from understudy.actors.records import Interrupt
from understudy.cluster.cli.command import say, stderr

if TYPE_CHECKING:
    from understudy.cluster.client import Run


async def ask(run: "Run", question: Interrupt) -> None:
    """Hand over the answer; if somebody else was faster, say so."""
    try:
        await _ask(run, question)
    except CallerError as error:
        say(str(error), "yellow")


async def _ask(run: "Run", question: Interrupt) -> None:
    if question.kind == "approval":
        answer = _read("Allow this call? [y]es, [n]o, empty for later: ").lower()
        if answer not in ("y", "yes", "n", "no"):
            return
        await (run.approve if answer.startswith("y") else run.deny)(question.interrupt_id, by=user_name())
        return
    text = _read("Answer (JSON or plain text, empty for later): ")
    if text:
        await run.resume(_value(text), question.interrupt_id)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read(words: str) -> str:
    # asyncio's own Ctrl-C would wait for the end of this blocking read.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stderr().print(words, end="", style="bold")
        return input().strip()
    except (EOFError, KeyboardInterrupt):
        say("")
        return ""
    finally:
        signal.signal(signal.SIGINT, before)

"""All the ways for a tool to end, once it has printed. Carried into a sandbox by value."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

PRINTED = "flushed\na line\nunflushed, from a grandchild, \ufffd\ufffd"


def prints(how: str, **args: Any) -> Any:
    """As tools print: flushed and not, in a program that it starts, and what is no text. Then it ends."""
    print("flushed", flush=True)
    print("a line")
    sys.stdout.write("unflushed, ")
    os.spawnl(os.P_WAIT, "/bin/echo", "echo", "-n", "from a grandchild, ")
    os.write(2, b"\xff\xfe")
    return WAYS[how](**args)


def returns() -> str:
    return "done"


def raises() -> None:
    raise LookupError("no such order")


class Unspeakable(BaseException):
    """Nothing can be learned from it."""

    def __str__(self) -> str:
        raise SystemExit("not even that")

    @property
    def leaves_unknown(self) -> bool:
        raise KeyboardInterrupt


def raises_the_unspeakable() -> None:
    raise Unspeakable


def raises_half_a_character() -> None:
    raise ValueError("\ud800")


def raises_at_length() -> None:
    raise ValueError("long " * 1_000_000)


def raises_what_is_bare() -> None:
    raise BaseException


def interrupts() -> None:
    raise KeyboardInterrupt


def exits() -> None:
    sys.exit(3)


def closes_and_raises() -> None:
    sys.stdout.close()
    sys.stderr.close()
    raise LookupError("said nowhere")


def recurses() -> None:
    recurses()


def recurses_past_the_stack() -> None:
    sys.setrecursionlimit(1 << 30)
    text: Any = []
    for _ in range(200_000):
        text = [text]
    repr(text)


def nests() -> Any:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    return value


def leaves() -> None:
    os._exit(0)


def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()


def returns_no_json() -> object:
    return object()


def returns_nan() -> float:
    return float("nan")


def returns_a_circle() -> Any:
    circle: list[Any] = []
    circle.append(circle)
    return circle


def returns_much() -> str:
    return "x" * 300_000


def prints_one_long_line() -> None:
    while True:
        sys.stdout.write("x" * 10_000)


def prints_and_returns() -> str:
    """More than it may, and at once: there is no time to look."""
    os.write(1, b"x" * 60_000)
    return "done"


def has_children_print() -> str:
    """A hundred at once."""
    children = []
    for number in range(100):
        child = os.fork()
        if child == 0:
            sys.stdout.write(f"<{number}>")
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return "done"


def has_a_child_exit() -> str:
    """As programs do that fork: the child ends, and not the call."""
    child = os.fork()
    if child == 0:
        sys.exit(0)
    return f"its child ended with {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}"


def never_returns() -> None:
    signal.pause()


def waits_beside(token: str, mark: str = "") -> None:
    """That its child is there can be seen from outside; or a file, that it makes then."""
    with subprocess.Popen(["/usr/bin/sleep", token]):
        if mark:
            with open(mark, "x"):
                pass
        signal.pause()


def computes_in_threads() -> None:
    for _ in range(2):
        threading.Thread(target=lambda: sum(1 for _ in iter(int, 1)), daemon=True).start()
    signal.pause()


def computes_in_one_child_after_another() -> None:
    """None of them for long."""
    while True:
        child = os.fork()
        if child == 0:
            until = time.process_time() + 0.05
            while time.process_time() < until:
                pass
            os._exit(0)
        os.waitpid(child, 0)


def fills_memory() -> None:
    held = []
    while True:
        held.append(b"x" * (1 << 20))


def fills_memory_with_little() -> None:
    held: Any = None
    while True:
        held = (held,)


def fills_memory_in_a_grandchild() -> None:
    for _ in range(2):
        if os.fork():
            signal.pause()
    fills_memory()


def fills_shared_memory() -> None:
    """Which is in no process's own."""
    import mmap

    held = []
    while True:
        held.append(mmap.mmap(-1, 4 << 20))
        held[-1].write(b"x" * (4 << 20))


def hides_shared_memory() -> None:
    """Written by one, and then looked at by nobody, but held by all."""
    import mmap

    held = []
    while True:
        held.append(mmap.mmap(-1, 4 << 20))
        held[-1].write(b"x" * (4 << 20))
        held[-1].madvise(mmap.MADV_DONTNEED)


def asks_for_much() -> None:
    bytearray(1 << 40)


def maps_much() -> None:
    import mmap

    mmap.mmap(-1, 1 << 40)


def fills_the_disk() -> None:
    for number in range(1000):
        with open(str(number), "wb") as file:
            file.write(b"x" * (1 << 18))


def writes_a_large_file() -> None:
    with open("large", "wb") as file:
        while True:
            file.write(b"x" * (1 << 18))


def opens_much() -> None:
    held = []
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))


def forks_much() -> None:
    while True:
        if os.fork() == 0:
            signal.pause()


def loses_sight() -> None:
    from understudy.actors.reconciled import EndUnknown

    raise EndUnknown("no answer")


WAYS: dict[str, Callable[..., Any]] = {
    way.__name__: way for way in list(globals().values()) if callable(way) and hasattr(way, "__code__")
}

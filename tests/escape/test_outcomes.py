"""Each way to end has an outcome of its own, in every tier: named rightly, in words that help, with what was printed.

A row says how a tool ends, under which limits, and what is told. `denied` is no end of a tool: nothing was executed
(`test_sandbox_actor.py`); `killed` from outside is at the end here.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from escape import ends
from escape.ends import PRINTED
from escape.places import Place, limited, places_of, processes_with
from escape.probes import TIERS
from escape.workers import USERS

from understudy.actors.outcome import OUTCOME_KINDS, OutcomeKind

MIB = 1 << 20
ALONE = ("zygote", "room", "cold", "gvisor")
"""With mounts, and a table of processes, of their own."""


@dataclass(frozen=True)
class End:
    kind: OutcomeKind
    words: tuple[str, ...] = ()
    """In the error."""
    limits: dict[str, Any] = field(default_factory=dict)
    type: str = ""
    traced: bool = False
    """Its traceback is with what it printed."""
    only: tuple[str, ...] = ("landlock", *ALONE)


def more(name: str, *words: str) -> tuple[str, ...]:
    """Which limit, and who can give more."""
    policy = name.partition("_")[0] if name != "open_files" else name
    return (*words, f"({name})", f"limits: {{{policy}: ...}}")


SMALL = {"memory_bytes": 96 * MIB, "disk_bytes": 4 * MIB}
FULL = more("memory_bytes", "96 MiB")
PAST_THE_STACK = (
    End("killed", ("SIGSEGV",))
    if sys.version_info < (3, 13)
    else End("error", ("maximum recursion",), type="RecursionError", traced=True)
)
"""Python has learned where its stack ends, whatever it is told."""
ENDS = {
    "returns": End("ok"),
    "raises": End("error", ("no such order",), type="LookupError", traced=True),
    "raises_the_unspeakable": End("error", ("cannot be shown",), type="Unspeakable"),
    "raises_half_a_character": End("error", ("\\ud800",), type="ValueError", traced=True),
    "raises_at_length": End("error", ("long long",), type="ValueError", traced=True),
    "raises_what_is_bare": End("error", type="BaseException", traced=True),
    "interrupts": End("error", type="KeyboardInterrupt", traced=True),
    "exits": End("error", ("3",), type="SystemExit", traced=True),
    "closes_and_raises": End("error", ("said nowhere",), type="LookupError", traced=True),
    "recurses": End("error", ("maximum recursion",), type="RecursionError", traced=True),
    "recurses_past_the_stack": PAST_THE_STACK,
    "nests": End("error", type="RecursionError", traced=True),
    "leaves": End("error", ("exit status 0", "without a result")),
    "is_killed": End("killed", ("SIGTERM",)),
    "returns_no_json": End("error", ("tool returned is no JSON",), traced=True),
    "returns_nan": End("error", ("tool returned is no JSON",), type="ValueError", traced=True),
    "returns_a_circle": End("error", ("tool returned is no JSON",), type="ValueError", traced=True),
    "returns_much": End(
        "output_too_large", ("300002 bytes", *more("output_bytes", "256 KiB")), {"output_bytes": 256 * 1024}
    ),
    "has_children_print": End("ok", limits={"processes": 120}),
    "has_a_child_exit": End("ok"),
    "never_returns": End("timeout", more("wall_s", "its time was over")),
    "computes_in_threads": End("timeout", more("cpu_s", "of CPU time")),
    "computes_in_one_child_after_another": End("timeout", more("cpu_s", "of CPU time")),
    "fills_memory": End("out_of_memory", FULL, SMALL),
    "fills_memory_with_little": End("out_of_memory", FULL, SMALL),
    "fills_memory_in_a_grandchild": End("out_of_memory", FULL, SMALL),
    "fills_shared_memory": End("out_of_memory", FULL, SMALL),
    "hides_shared_memory": End("out_of_memory", FULL, SMALL),
    "asks_for_much": End("out_of_memory", FULL, SMALL, traced=True),
    "maps_much": End("out_of_memory", FULL, SMALL, traced=True),
    "fills_the_disk": End(
        "error",
        ("No space left", *more("disk_bytes", "4 MiB")),
        SMALL,
        type="OSError",
        only=ALONE,
    ),
    "writes_a_large_file": End("error", more("disk_bytes", "4 MiB"), SMALL, type="OSError", traced=True),
    "opens_much": End("error", more("open_files", "64"), {"open_files": 64}, type="OSError", traced=True),
    "forks_much": End("error", more("processes", "20"), {"processes": 20}, type="BlockingIOError", only=ALONE),
    "loses_sight": End("unknown", ("no answer",), type="EndUnknown", traced=True),
}
TIMES = {
    "never_returns": [{"wall_s": wall_s} for wall_s in (0.5, 2.0, 20.0)],
    **{how: [{"cpu_s": cpu_s} for cpu_s in (0.3, 1.0, 5.0)] for how in ENDS if how.startswith("computes")},
}
"""The first is too short, perhaps, on a machine with much to do: then it is not known what it would have printed."""
FIRST = {end.kind: how for how, end in reversed(ENDS.items())}
"""Of each outcome, what every user tries."""


def test_every_outcome_of_a_tool_is_there() -> None:
    assert {end.kind for end in ENDS.values()} == {*OUTCOME_KINDS} - {"denied"}


def each_in_each_tier() -> Iterator[Any]:
    for place in places_of(TIERS):
        for how in ENDS if place[1] == USERS[0] else FIRST.values():
            is_long = place[0] == "gvisor" and how not in FIRST.values()  # half a second a call
            yield pytest.param(place, how, id="-".join([*place, how]), marks=[pytest.mark.soak] if is_long else [])


@pytest.mark.parametrize(("sandbox", "how"), list(each_in_each_tier()), indirect=["sandbox"])
def test_each_end_has_its_outcome(sandbox: Place, how: str) -> None:
    end = ENDS[how]
    if sandbox.tier not in end.only:  # without mounts of its own, and with other processes to count
        end = End("killed", end.words[-2:], end.limits)
    for times in TIMES.get(how, [{}]):
        outcome = sandbox.outcome(ends.prints, limited(**times, **end.limits), how=how)
        assert (outcome.kind, outcome.error_type) == (end.kind, end.type or outcome.error_type), outcome
        if outcome.printed.startswith(PRINTED):
            break
    assert outcome.printed.startswith(PRINTED), outcome
    assert [words for words in end.words if words not in outcome.error] == [], outcome
    assert ("Traceback" in outcome.printed) == end.traced or not end.traced, outcome
    assert outcome.duration_s > 0
    assert len(outcome.error) < 2100


def test_an_error_that_says_nothing_is_said_by_its_type(sandbox: Place) -> None:
    assert sandbox.outcome(ends.prints, how="raises_what_is_bare").said == "BaseException"


def test_what_a_hundred_children_print_is_all_there(sandbox: Place) -> None:
    outcome = sandbox.outcome(ends.prints, limited(processes=120), how="has_children_print")
    assert sorted(outcome.printed.removeprefix(PRINTED).strip("<>").split("><")) == sorted(map(str, range(100)))


@pytest.mark.parametrize("how", ["prints_one_long_line", "prints_and_returns"])
def test_of_too_much_the_tail_is_kept(sandbox: Place, how: str) -> None:
    """Also where it has answered before anybody could look: what was printed by then was too much."""
    outcome = sandbox.outcome(ends.prints, limited(output_bytes=10_000), how=how)
    assert (outcome.kind, outcome.printed) == ("output_too_large", "x" * 10_000), outcome
    for words in more("output_bytes", "the tool printed more", "10000 bytes"):
        assert words in outcome.error


def test_the_tail_has_room_for_a_traceback(sandbox: Place) -> None:
    outcome = sandbox.outcome(ends.prints, limited(output_bytes=120), how="raises")
    assert (outcome.kind, outcome.error) == ("error", "no such order"), outcome
    assert outcome.printed.endswith("LookupError: no such order\n")
    assert len(outcome.printed) <= 120


def test_of_what_is_ended_from_outside_it_is_known_what_it_had_printed(sandbox: Place, token: str) -> None:
    call = sandbox.running(ends.prints, token, how="waits_beside")
    sandbox.worker.ask("cancel", of=call)
    answer = sandbox.worker.answer(call)
    assert (answer["raised"], answer["printed"]) == ("CancelledError", PRINTED)
    assert not processes_with(token)

"""The audit log is a chain: each segment is signed over the one before it, so nothing in it changes unnoticed.

A segment holds the entries of one append. Its mac is an HMAC over the mac before it and its own content, under the
deployment's secret: whoever can write to the store and does not know the secret can neither add to the chain nor take
out of its middle. What the end of the chain loses is found by whoever has noted a head; and by the runs that are still
there, whose events name the entries of their decisions (and of nothing else: not of answers, connections, revocations).
Pure.
"""

import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

_SEGMENT: Final = b"understudy audit 1\0"
_ANCHOR: Final = b"understudy audit anchor 1\0"
_WORD: Final = b"understudy audit word 1\0"
"""Signed together with what they name, so that no signature of ours passes for another one."""

DIGITS = 12
OTHER_SECRET = "its signature is not that of its content under this deployment's secret"
_LATEST: Final = 1e11
"""Seconds since the epoch that no clock shows."""
Entry = Mapping[str, Any]
"""JSON values: `kind`, `at`, and what there is to tell."""
Wrong = Literal["missing", "changed", "reordered", "forged", "truncated"]


@dataclass(frozen=True)
class Head:
    """The last link of the chain, or the one that verification begins behind. Number 0: the beginning."""

    number: int = 0
    mac: str = ""

    def __str__(self) -> str:
        return f"{self.number}:{self.mac}"

    @classmethod
    def read(cls, text: str) -> "Head":
        """Raises ValueError."""
        number, found, mac = text.partition(":")
        if not found or not number.isdecimal() or len(mac) != 64 or set(mac) - set("0123456789abcdef"):
            raise ValueError(f"{text!r} is no head; `understudy audit head` prints one, NUMBER:MAC")
        return cls(int(number), mac)


@dataclass(frozen=True)
class Segment:
    number: int
    at: float
    prev: str
    """The mac of the segment before."""
    entries: tuple[Entry, ...]
    mac: str

    @property
    def head(self) -> Head:
        return Head(self.number, self.mac)


@dataclass(frozen=True)
class Fault:
    """The first thing that is wrong."""

    number: int
    what: Wrong
    why: str

    def __str__(self) -> str:
        return f"segment {self.number} is {self.what}: {self.why}"


def name_of(number: int) -> str:
    """The name of a segment's document: numbers in the order of names."""
    return f"{number:0{DIGITS}d}"


def number_of(name: str) -> int:
    """Of a segment, by its document's name; 0: it is the name of none."""
    return int(name) if name.isascii() and name.isdecimal() and DIGITS <= len(name) <= 18 else 0


def place_of(number: int, index: int) -> str:
    """Where an entry stands, as a run's event names it."""
    return f"{number}.{index}"


def read_place(text: str) -> tuple[int, int]:
    """Raises ValueError."""
    number, _, index = text.partition(".")
    return int(number), int(index)


def write_segment(after: Head, entries: Sequence[Entry], at: float, secret: bytes) -> tuple[bytes, Head]:
    """The bytes of the next segment, and the head that it makes."""
    number = after.number + 1
    content = _canonical({"n": number, "at": at, "prev": after.mac, "entries": list(entries)})
    mac = _mac_of(content, after.mac, secret)
    tail = b"," + _canonical({"n": number, "prev": after.mac})[1:]
    body = content.removesuffix(tail)  # the mac has its place in the order of names before them
    return b'%b,"mac":"%b"%b' % (body, mac.encode(), tail), Head(number, mac)


def read_segment(data: bytes) -> Segment:
    """As it says itself; nothing is believed yet. Raises ValueError."""
    found = _object(data)
    if set(found) != {"n", "at", "prev", "entries", "mac"}:
        raise ValueError("it is no segment")
    number, at, entries = found["n"], found["at"], found["entries"]
    if type(number) is not int or type(at) not in (int, float) or not isinstance(entries, list):
        raise ValueError("it is no segment")
    if not (0 < number < 2**63 and 0 <= at < _LATEST and all(map(_is_entry, entries))):
        raise ValueError("it is no segment")
    return Segment(number, float(at), str(found["prev"]), tuple(entries), str(found["mac"]))


def _object(data: bytes) -> dict[str, Any]:
    """What may have been written by whoever can write to the store. Raises ValueError."""
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    return found


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
        return False
    return type(entry.get("at")) in (int, float) and 0 <= entry["at"] < _LATEST


def is_signed(data: bytes, secret: bytes) -> bool:
    """Whether a segment is one that this secret has signed, whatever came before it."""
    try:
        content = _object(data)
        mac = content.pop("mac")
        return hmac.compare_digest(_segment_mac(content, content["prev"], secret), mac)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def fault_of(name: str, version: int, data: bytes, after: Head, secret: bytes) -> Fault | None:
    """What is wrong with the document that is to follow this head; None: nothing."""
    number = after.number + 1
    if name != name_of(number):
        return Fault(number, "missing", f"the next that is there is named {name!r}")
    try:
        segment = read_segment(data)
        content = json.loads(data)
        mac = content.pop("mac")
        signed = hmac.compare_digest(_segment_mac(content, segment.prev, secret), segment.mac)
        exact = _canonical({**content, "mac": mac}) == data
    except (ValueError, TypeError, RecursionError) as error:
        return Fault(number, "changed", f"it cannot be read ({error})")
    if not signed:
        return Fault(number, "changed", OTHER_SECRET)
    if segment.number != number:
        return Fault(number, "reordered", f"segment {segment.number} stands in its place")
    if segment.prev != after.mac:
        return Fault(number, "forged", "it does not follow the segment before it")
    if not exact or version != 1:
        return Fault(number, "changed", "it was written anew, in other bytes or in another version")
    return None


def fault_of_head(noted: Head, passed: Head | None, first: int, last: int) -> Fault | None:
    """Whether a head that somebody noted before is still in the chain.

    Args:
        passed: the link of that number, if verification came past it.
        first, last: numbers that the chain has.
    """
    if noted.number > last:
        return Fault(noted.number, "truncated", f"the log ends with segment {last}, and had it when its head was noted")
    if passed is not None and passed.mac != noted.mac:
        return Fault(noted.number, "changed", "it had another signature when its head was noted")
    return None


def fault_of_named(named: Mapping[str, tuple[str, str]], first: int, last: int) -> Fault | None:
    """Whether the log lacks an entry that an event of a run names.

    Args:
        named: run and key by place, of those that were not met in the segments from `first` to `last`.
    """
    places = []
    for place, (run_id, _) in named.items():
        try:
            places.append((*read_place(place), run_id))
        except ValueError:
            return Fault(last, "changed", f"an event of run {run_id} names entry {place!r}, which is no place")
    for number, index, run_id in sorted(places):
        told = f"an event of run {run_id} names its entry {number}.{index}"
        if number > last:
            return Fault(number, "truncated", f"{told}; the log ends with segment {last}")
        if number >= first:
            return Fault(number, "forged", f"{told}, and it is about something else")
    return None


# --- between writers ---


def write_word(head: Head, at: float, secret: bytes) -> str:
    """For another writer: the log ended with this head at that time, and the segment is durable."""
    told = f"{head} {at!r}"
    return f"{told} {hmac.digest(secret, _WORD + told.encode(), 'sha256').hex()}"


def claimed(word: str) -> int:
    """The number of the segment that a word is about, before it is believed; 0: it is no word."""
    number, _, _ = word.partition(":")
    return int(number) if number.isascii() and number.isdecimal() and len(number) <= DIGITS else 0


def read_word(word: str, secret: bytes) -> tuple[Head, float]:
    """The head, and the time. Raises ValueError: it is not one that this secret has sealed."""
    told, _, seal = word.rpartition(" ")
    expected = hmac.digest(secret, _WORD + told.encode(errors="replace"), "sha256").hex()
    if not hmac.compare_digest(expected.encode(), seal.encode(errors="replace")):
        raise ValueError("the word about the end of the log is not sealed with this deployment's secret")
    head, _, at = told.partition(" ")
    return Head.read(head), float(at)


# --- pruning -------------------------------------------------------------------------------------------------------


def write_anchor(head: Head, at: float, secret: bytes) -> bytes:
    """Says that what came up to this head was taken out on purpose."""
    content = {"n": head.number, "mac": head.mac, "at": at}
    return _canonical({**content, "seal": hmac.digest(secret, _ANCHOR + _canonical(content), "sha256").hex()})


def read_anchor(data: bytes, secret: bytes) -> Head:
    """Raises ValueError: it is not one that this secret has sealed."""
    content = _object(data)
    seal = content.pop("seal", "")
    expected = hmac.digest(secret, _ANCHOR + _canonical(content), "sha256").hex()
    if not hmac.compare_digest(expected.encode(), str(seal).encode(errors="replace")):
        raise ValueError("the note of what was pruned is not sealed with this deployment's secret")
    return Head(content["n"], content["mac"])


def until(segments: Iterable[Segment], before: float) -> Head | None:
    """The last of these in a row that are older than a time; None: not even the first is."""
    found = None
    for segment in segments:
        if segment.at >= before:
            return found
        found = segment.head
    return found


def _segment_mac(content: Mapping[str, Any], prev: str, secret: bytes) -> str:
    return _mac_of(_canonical(content), prev, secret)


def _mac_of(content: bytes, prev: str, secret: bytes) -> str:
    return hmac.digest(secret, _SEGMENT + prev.encode() + b"\0" + content, "sha256").hex()


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

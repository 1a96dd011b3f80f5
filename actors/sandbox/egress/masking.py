"""Blots out of an answer the secrets that the proxy put into its request: a server may echo what it was asked.

Some servers do, in an error page or a debugging one, and the tool would read there what it is never to see. Each secret
stands as asterisks, of the same length, in the forms in which it usually comes back (`secret_traces.forms`). Pure.

A server that is given a secret can give it away in a form that nobody foresees. That is for whoever writes the secret's
`hosts` to think of; what a tool can ask of any server (TRACE, a range, a compression) is not passed on with a secret.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from understudy.actors.sandbox.egress.injection import Injection
from understudy.actors.secret_traces import forms

REVEALING: Final = frozenset(("accept-encoding", "range", "if-range"))
"""Fields of a request by which a server cuts its answer in pieces, or packs it, so that nothing is found in it."""


def asked_plainly(fields: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The fields of a request whose answer is to be looked through."""
    kept = [(name, value) for name, value in fields if name.lower() not in REVEALING]
    return (*kept, ("Accept-Encoding", "identity"))


class Mask:
    """Over one answer. `feed` it piece by piece, then `end` it."""

    def __init__(self, values: Iterable[str]) -> None:
        found = {form.encode() for value in values for form in forms(value)}
        self._forms = sorted(found, key=len, reverse=True)  # a short one may be a part of a long one
        self._pattern = re.compile(b"|".join(map(re.escape, self._forms)))
        self._held = b""
        self.found = False
        """Whether there was anything to blot out."""

    @classmethod
    def over(cls, injections: Sequence[Injection]) -> "Mask":
        """The answer to a request with these in it."""
        return cls(text for each in injections for text in each.hidden or (each.value,))

    def feed(self, data: bytes) -> bytes:
        """What can be passed on by now. What may be the beginning of a secret is held back."""
        blotted = self.whole(self._held + data)
        held = self._beginning_in(blotted)
        self._held = blotted[len(blotted) - held :]
        return blotted[: len(blotted) - held]

    def end(self) -> bytes:
        """What was held back."""
        held, self._held = self._held, b""
        return held

    def whole(self, data: bytes) -> bytes:
        """A piece that nothing comes after."""
        blotted, count = self._pattern.subn(lambda match: b"*" * len(match[0]), data)
        self.found = self.found or count > 0
        return blotted

    def _beginning_in(self, data: bytes) -> int:
        """How many bytes at the end may go on as a secret."""
        longest = min(len(data), len(self._forms[0]) - 1)
        tail = data[len(data) - longest :]
        for size in range(longest, 0, -1):
            end = tail[longest - size :]
            if any(len(form) > size and form.startswith(end) for form in self._forms):
                return size
        return 0

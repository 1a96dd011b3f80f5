"""Which secret goes into which request, and how: the proxy puts it there, so that the tool never has it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from understudy.policies.hosts import HostPattern, Target

AUTHORIZATION: Final = "Authorization"


@dataclass(frozen=True)
class Injection:
    """A header for requests to a host."""

    secret: str
    """The name of the secret in it."""
    host: HostPattern
    header: str
    value: str = field(repr=False)
    """The whole value of the header."""
    tls: bool = True
    """Sent encrypted, to a server whose certificate is good for the host's name; whatever scheme the tool wrote."""
    hidden: tuple[str, ...] = field(default=(), repr=False)
    """What no answer may show; empty: the value of the header."""


def for_target(injections: Sequence[Injection], target: Target) -> list[Injection]:
    """Those that go to this place."""
    return [each for each in injections if each.host.fits(target)]


def with_injections(fields: Sequence[tuple[str, str]], injections: Sequence[Injection]) -> tuple[tuple[str, str], ...]:
    """The header fields of a request with what is put in; the tool's own of these names, and its Authorization, go."""
    if not injections:
        return tuple(fields)
    dropped = {_read(AUTHORIZATION), *(_read(each.header) for each in injections)}
    kept = [(name, value) for name, value in fields if _read(name) not in dropped]
    return (*kept, *((each.header, each.value) for each in injections))


def _read(name: str) -> str:
    """As the servers read it that hand fields on as variables: X_Token is X-Token to them."""
    return name.lower().replace("_", "-")

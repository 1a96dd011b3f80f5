"""`secret("NAME")`: what a tool gets of the deployment's secrets, inside its call, if its grant names it.

Imported in sandboxes: standard library only.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class NoSuchSecret(Exception):
    """There is no such secret for whoever asks. Says what to change."""


_given: Mapping[str, str] = {}
_kept_back: Mapping[str, str] = {}
_inline = False


def secret(name: str) -> str:
    """The value of a secret, in a tool's function, while its call is made. Raises NoSuchSecret.

    The rule that allows the call has to grant it (`secrets: [NAME]`), and the deployment's file (UNDERSTUDY_SECRETS) to
    have it, without `hosts`: one with hosts is put into requests by the proxy, and no tool sees it.
    """
    if name in _given:
        return _given[name]
    if name in _kept_back:
        raise NoSuchSecret(_kept_back[name])
    if _inline:
        raise NoSuchSecret(f"run_inline was given no secret {name!r}; call it with secrets={{{name!r}: ...}}")
    if "UNDERSTUDY_EFFECT_KEY" in os.environ:
        raise NoSuchSecret(f"this call was granted no secret {name!r}; add it to its rule: secrets: [{name}]")
    raise NoSuchSecret(
        f"the secret {name!r} is there only inside a tool's call, and this is none; make it one, with @tool and "
        "ctx.call, or use run_inline(..., secrets={...}) in a test"
    )


def entrust(given: Mapping[str, str], kept_back: Mapping[str, str]) -> None:
    """For the rest of this process, which makes one call."""
    global _given, _kept_back
    _given, _kept_back = given, kept_back


@contextmanager
def entrusted_inline(given: Mapping[str, str]) -> Iterator[None]:
    """For one call in a process that makes others."""
    global _given, _inline
    _given, _inline = given, True
    try:
        yield
    finally:
        _given, _inline = {}, False

"""A grant is a signed note that one very call may be made; the sandbox reads it and believes nothing else (law 7).

It names the run, the effect key, the tool and the digest of the arguments, and it ends. Whoever changes a byte of it,
or uses it for another call, holds a piece of paper.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from understudy.policies.bill import FREE, Bill, bill_in
from understudy.policies.profile import Limits, Profile

Reason = Literal[
    "forged",
    "altered",
    "expired",
    "wrong run",
    "wrong call",
    "wrong arguments",
    "wrong code",
    "wrong sandbox",
    "revoked",
    "replayed",
]

GRANT_TTL_S = 600.0
"""A grant that was not used after this long is refused by the sandbox; it covers the wait for a free sandbox."""
SECRET_MIN_BYTES = 16
_DOMAIN: Final = b"understudy grant 7\0"
"""Signed together with the grant: the same secret signs other things (code), and none of them may pass for a grant. The
number changes with the fields, so that a grant of another version is refused and not misread."""


@dataclass(frozen=True)
class Grant:
    """What was decided, for whom, until when."""

    run_id: str
    key: str
    """The effect key: names this very call for ever (law 4)."""
    tool: str
    digest: str
    """Digest of tool, its version and arguments, as whoever asked has told it: what an approval is bound to."""
    epoch: int
    """Of the run's owner that asked."""
    profile: Profile
    policy_digest: str
    """Of all layers that decided."""
    rule: str
    decision: Literal["allow", "approved"]
    issued_at: float
    expires_at: float
    code: str
    """Digest of the code that will be executed."""
    id: str
    """Names this very grant: it is used, and can be revoked, under this name."""
    args: str
    """`args_digest` of the arguments that were judged, made by whoever judged them."""
    bill: Bill = FREE
    """Where the call is paid from."""
    paths: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """By argument, the folders that rules have asked about: whoever has the files looks where the path leads."""


class GrantRefused(Exception):
    """A token that is not good for this call. Ask the policy actor for a grant; there is no other way to one."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def args_digest(args: Mapping[str, Any]) -> str:
    """Of arguments (JSON values, keys in any order)."""
    return hashlib.sha256(json.dumps(args, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sign(grant: Grant, secret: bytes) -> str:
    """A token: base64url of the grant's JSON, a dot, and base64url of its HMAC-SHA256."""
    # `vars` of what is in it, too: `asdict`, which copies all of that, took longer than the whole decision.
    text = json.dumps(vars(grant), default=vars, sort_keys=True, separators=(",", ":"), allow_nan=False)
    body = _base64(text.encode())
    return f"{body}.{_mac(body, secret)}"


def check(
    token: str,
    secret: bytes,
    *,
    run_id: str,
    key: str,
    tool: str,
    digest: str,
    args: Mapping[str, Any],
    code: str,
    order: str,
    now: float,
) -> Grant:
    """The grant in a token that is good for this call at this time. Raises GrantRefused.

    Args:
        order: the name of this start of the call. The store begins one of a name once, whoever asks it to, and whatever
            has become of it since; so a grant, which is good for the one that bears its own id, is used up for good.
    """
    body, dot, mac = token.partition(".")
    if not dot or not body or not mac:
        raise GrantRefused("forged", f"{token[:12]!r}... is no token; it lacks a signature")
    # The text of both is compared, not the bytes that it decodes to: base64 has several spellings of the same bytes.
    if not hmac.compare_digest(_mac(body, secret).encode(), mac.encode(errors="replace")):
        raise GrantRefused("altered", "its signature is not that of its content under this deployment's secret")
    grant = _read(body)
    if now >= grant.expires_at:
        raise GrantRefused("expired", f"it ended {now - grant.expires_at:.1f} s ago; ask for a new decision")
    if grant.issued_at - now > GRANT_TTL_S:  # a clock that was set back would make grants last
        ahead = f"it was given {grant.issued_at - now:.0f} s from now"
        raise GrantRefused("expired", f"{ahead}; set the clocks of this node and of the policy actor's")
    if grant.run_id != run_id:
        raise GrantRefused("wrong run", f"it was given to run {grant.run_id!r}, not to {run_id!r}")
    if grant.key != key:
        raise GrantRefused("wrong call", f"it was given for call {grant.key!r}, not for {key!r}")
    if grant.tool != tool:
        raise GrantRefused("wrong call", f"it was given for tool {grant.tool!r}, not for {tool!r}")
    if grant.digest != digest or grant.args != args_digest(args):
        raise GrantRefused("wrong arguments", f"the arguments of tool {tool!r} are not those that were judged")
    if grant.code != code:
        raise GrantRefused("wrong code", f"the code of tool {tool!r} is not that which was judged")
    if grant.id != order:
        raise GrantRefused("replayed", f"it is good for order {grant.id[:40]!r}, not for {order[:40]!r}")
    return grant


def _mac(body: str, secret: bytes) -> str:
    if len(secret) < SECRET_MIN_BYTES:
        raise ValueError(f"the secret has {len(secret)} bytes; give it {SECRET_MIN_BYTES} at least")
    return _base64(hmac.digest(secret, _DOMAIN + body.encode(errors="replace"), "sha256"))


def _read(body: str) -> Grant:
    """Only after the signature is found good: what is read here was written by `sign`."""
    fields = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    profile = fields.pop("profile")
    bill = fields.pop("bill")
    limits = Limits(**profile["limits"])
    lists = {name: tuple(profile[name]) for name in ("read", "write", "network", "secrets")}
    walls = Profile(**lists, limits=limits, tier=profile["tier"], workspace=profile["workspace"])
    paths = tuple((name, tuple(folders)) for name, folders in fields.pop("paths"))
    return Grant(**fields, profile=walls, paths=paths, bill=bill_in((bill["accounts"], bill["most"], bill["told"])))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

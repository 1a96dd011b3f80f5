"""A grant is good for one very call; every other token, time, call or byte is refused."""

import base64
import dataclasses
import hmac
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.policies.bill import Bill
from understudy.policies.grant import GRANT_TTL_S, Grant, GrantRefused, args_digest, check, sign
from understudy.policies.profile import Limits, Profile
from understudy.policies.revocation import Revocation

SECRET = b"0123456789abcdef0123456789abcdef"
GRANT = Grant(
    run_id="r07-abc",
    key="k" * 32,
    tool="pay",
    digest="d" * 32,
    code="c" * 64,
    epoch=3,
    profile=Profile(
        read=("/srv/env",),
        write=("/srv/out",),
        limits=Limits(wall_s=10.0),
        tier="cold",
        network=("a.example:443",),
        secrets=("key",),
        workspace="read",
    ),
    policy_digest="p" * 64,
    rule="small-payments",
    decision="approved",
    issued_at=1000.0,
    expires_at=1600.0,
    id="g" * 32,
    args=args_digest({"order": "A1", "amount": 3}),
    bill=Bill(("a",), (("calls", "1"),), (("tokens", "usage"),)),
    paths=(("to", ("/srv", "/etc")),),
)
TOKEN = sign(GRANT, SECRET)
CALL: dict[str, Any] = {
    "run_id": GRANT.run_id,
    "key": GRANT.key,
    "tool": "pay",
    "digest": GRANT.digest,
    "args": {"amount": 3, "order": "A1"},
    "code": GRANT.code,
    "order": GRANT.id,
    "now": 1001.0,
}


def refusal(token: str, secret: bytes = SECRET, **other: Any) -> str:
    with pytest.raises(GrantRefused) as caught:
        check(token, secret, **{**CALL, **other})
    assert str(caught.value).startswith(caught.value.reason + ": ")
    return caught.value.reason


def test_a_grant_is_read_back_as_it_was_given() -> None:
    assert check(TOKEN, SECRET, **CALL) == GRANT
    assert sign(GRANT, SECRET) == TOKEN


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"now": 1600.0}, "expired"),
        ({"now": 1e12}, "expired"),
        ({"run_id": "r07-other"}, "wrong run"),
        ({"key": "x" * 32}, "wrong call"),
        ({"tool": "refund"}, "wrong call"),
        ({"digest": "x" * 32}, "wrong arguments"),
        ({"args": {"order": "A1", "amount": 4}}, "wrong arguments"),
        ({"args": {"order": "A1", "amount": 3.0}}, "wrong arguments"),
        ({"args": {"order": "A1", "amount": True}}, "wrong arguments"),
        ({"args": {}}, "wrong arguments"),
        ({"now": 1000.0 - GRANT_TTL_S - 1}, "expired"),
        ({"code": "x" * 64}, "wrong code"),
        ({"order": "x" * 32}, "replayed"),
        ({"secret": b"another secret of some length"}, "altered"),
    ],
)
def test_a_grant_for_something_else_is_refused_by_name(other: dict[str, Any], reason: str) -> None:
    assert refusal(TOKEN, **other) == reason


@pytest.mark.parametrize("token", ["", ".", "abc", TOKEN.split(".")[0], "." + TOKEN.split(".")[1]])
def test_what_is_no_token_is_forged(token: str) -> None:
    assert refusal(token) == "forged"


def test_a_token_without_a_real_signature_is_refused_before_it_is_read() -> None:
    body = base64.urlsafe_b64encode(json.dumps({"anything": 1}).encode()).decode().rstrip("=")
    assert refusal(f"{body}.{TOKEN.split('.')[1]}") == "altered"


def test_a_signature_made_for_something_else_with_the_same_secret_is_no_grant() -> None:
    body = TOKEN.split(".")[0]
    mac = base64.urlsafe_b64encode(hmac.digest(SECRET, body.encode(), "sha256")).decode().rstrip("=")
    assert refusal(f"{body}.{mac}") == "altered"


def test_a_wider_profile_cannot_be_written_into_a_token() -> None:
    wider = dataclasses.replace(GRANT, profile=Profile(write=("/",)))
    body = sign(wider, b"the attacker's own secret").split(".")[0]
    assert refusal(f"{body}.{TOKEN.split('.')[1]}") == "altered"


def test_a_short_secret_signs_nothing() -> None:
    with pytest.raises(ValueError, match="has 5 bytes; give it 16"):
        sign(GRANT, b"short")


def test_a_refusal_survives_the_way_through_ray() -> None:
    error = GrantRefused("expired", "it ended")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@given(place=st.integers(0, len(TOKEN) - 1), character=st.characters())
def test_any_altered_character_is_refused(place: int, character: str) -> None:
    altered = TOKEN[:place] + character + TOKEN[place + 1 :]
    if altered != TOKEN:
        assert refusal(altered) in ("altered", "forged")


def test_every_bit_of_every_byte_counts() -> None:
    for place, byte in enumerate(TOKEN.encode()):
        for bit in range(8):
            altered = TOKEN[:place] + chr(byte ^ (1 << bit)) + TOKEN[place + 1 :]
            assert refusal(altered) in ("altered", "forged")


@given(st.text())
def test_any_text_is_refused_and_never_an_accident(text: str) -> None:
    assert refusal(text) in ("altered", "forged")


# Revoked.


@pytest.mark.parametrize(
    ("revocation", "hit"),
    [
        (Revocation(1000.0), True),
        (Revocation(999.0), False),
        (Revocation(1000.0, run_id=GRANT.run_id), True),
        (Revocation(1000.0, run_id="r07-other"), False),
        (Revocation(1000.0, tool="pay", rule="small-payments"), True),
        (Revocation(1000.0, tool="pay", rule="other"), False),
        (Revocation(1000.0, grant_id=GRANT.id), True),
        (Revocation(1000.0, grant_id="x"), False),
        (Revocation(1000.0, key=GRANT.key), True),
        (Revocation(1000.0, key="x"), False),
    ],
)
def test_what_is_revoked_is_meant_and_what_is_granted_later_is_not(revocation: Revocation, hit: bool) -> None:
    assert revocation.covers(GRANT) is hit
    assert not revocation.covers(dataclasses.replace(GRANT, id="later", issued_at=1000.5))

"""Where a call may connect to: what its grant lists, at addresses of the public internet or listed ones."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.actors.sandbox.egress.addresses import usable, what_it_is
from understudy.actors.sandbox.egress.decision import Allowed, Denied, decide, patterns
from understudy.policies.hosts import read_target

PUBLIC = ("93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946")


def used(host: str, addresses: list[str], *network: str) -> list[str]:
    found, why = usable(read_target(host), [ip_address(each) for each in addresses], patterns(network))
    assert bool(found) != bool(why)
    return [str(each) for each in found]


def test_only_what_is_listed_is_allowed() -> None:
    granted = patterns(["api.example.org:443", "*.cdn.example.org:80"])
    assert decide(read_target("api.example.org:443"), granted) == Allowed("api.example.org:443")
    assert decide(read_target("a.cdn.example.org:80"), granted) == Allowed("*.cdn.example.org:80")
    for other in (
        "api.example.org:80",
        "example.org:443",
        "evil-api.example.org:443",
        "api.example.org.evil.org:443",
        "cdn.example.org:80",
        "93.184.216.34:443",
    ):
        denied = decide(read_target(other), granted)
        assert isinstance(denied, Denied)
        assert denied.reason == (
            f"{other} is not granted; the grant lists api.example.org:443, *.cdn.example.org:80. If this call may "
            f'reach it, let the policy\'s rule for it say network: ["{other}"]'
        )


def test_no_grant_is_no_way_out() -> None:
    denied = decide(read_target("[2001:db8::1]:80"), ())
    assert isinstance(denied, Denied)
    assert denied.reason.startswith("[2001:db8::1]:80 is not granted; the grant lists nothing.")
    assert decide(read_target("[2001:db8::1]:80"), patterns(["[2001:db8::1]:80"])) != denied, "what it says to write"


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
        ),
        *("100.100.100.200", "168.63.129.16", "192.0.0.192", "192.0.2.1", "198.18.0.1", "224.0.0.1", "255.255.255.255"),
        *("240.0.0.1", "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:8.8.8.8", "::7f00:1", "64:ff9b::7f00:1", "64:ff9b::808:808"),
        *("64:ff9b:1::1", "2002:7f00:1::", "2002:808:808::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
        *("2606::5efe:10.0.0.1", "2606::200:5efe:7f00:1"),
    ],
)
def test_a_name_leads_to_no_address_that_is_not_public(address: str) -> None:
    assert what_it_is(ip_address(address))
    assert used("a.example:80", [address], "a.example:80", "*:80", "*.example:80") == []
    # Also where it is one of several: it is left out.
    assert used("a.example:80", [address, PUBLIC[0]], "a.example:80") == [PUBLIC[0]]


@pytest.mark.parametrize("address", PUBLIC)
def test_a_name_leads_to_public_addresses(address: str) -> None:
    assert what_it_is(ip_address(address)) == ""
    assert used("a.example:80", [address, address], "a.example:80") == [address]


def test_an_address_that_is_listed_may_be_used_on_its_port() -> None:
    assert used("127.0.0.1:8080", ["127.0.0.1"], "127.0.0.1:8080") == ["127.0.0.1"]
    assert used("db.internal:5432", ["10.0.0.7"], "db.internal:5432", "10.0.0.7:5432") == ["10.0.0.7"]
    assert used("db.internal:5432", ["10.0.0.8"], "db.internal:5432", "10.0.0.7:5432") == []
    assert used("db.internal:5432", ["10.0.0.7"], "db.internal:5432", "10.0.0.7:22") == []


def test_localhost_is_loopback_and_no_more_and_only_where_it_is_listed() -> None:
    assert used("localhost:80", ["127.0.0.1", "::1", "10.0.0.1"], "localhost:80") == ["127.0.0.1", "::1"]
    assert used("localhost:80", ["127.0.0.1"], "*:80") == []
    assert used("localhost:80", ["127.0.0.1"], "localhost:81", "*:80") == []
    assert used("evil.localhost:80", ["127.0.0.1"], "localhost:80", "evil.localhost:80") == []


def test_a_refusal_says_which_address_and_what_to_do() -> None:
    _, why = usable(read_target("a.example:80"), [ip_address("10.0.0.1")], patterns(["a.example:80"]))
    assert why == "a.example leads to 10.0.0.1, which is private; a grant has to list the address itself"
    assert usable(read_target("a.example:80"), [], ())[1] == "a.example leads to no address"


@given(st.ip_addresses())
def test_what_is_used_unasked_is_public(address: object) -> None:
    found = ip_address(str(address))
    for each in used("a.example:1", [str(found)], "a.example:1"):
        assert ip_address(each).is_global

"""A call with network has a proxy, and nothing else: what leads past it, or further than the grant, in every tier."""

import os
import socket
import time
import uuid
from dataclasses import replace

import pytest
from escape import attempts, callers
from escape.conftest import _name, _place
from escape.places import Place, places_of

from support.upstream import OK, upstream
from understudy.policies.profile import Limits, Profile

NETWORKED = ("zygote", "cold")


@pytest.fixture(params=places_of(NETWORKED), ids=_name)
def sandbox(request, workers, owned):  # type: ignore[no-untyped-def]
    """Every tier that can give network."""
    yield from _place(request, workers, owned, _plain_spare_waits)


@pytest.fixture(params=places_of(["landlock"]), ids=_name)
def without(request, workers, owned):  # type: ignore[no-untyped-def]
    yield from _place(request, workers, owned)


def _plain_spare_waits(place: Place) -> None:
    """One for a call with network holds a socket more; after a plain call, a plain one waits again."""
    assert place.referred("json:dumps", obj=1).kind == "ok"


def network(*places: str) -> Profile:
    return Profile(network=places)


def test_a_granted_server_is_reached_through_the_proxy(sandbox: Place) -> None:
    with upstream() as served:
        profile = network(f"127.0.0.1:{served.port}")
        assert sandbox.tried(callers.asks, profile, url=f"http://127.0.0.1:{served.port}/a") == [200, "hello"]
        assert sandbox.tried(callers.tunnels, profile, port=served.port).endswith("hello")
    assert served.heard[0].startswith(f"GET /a HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n".encode())


def test_nothing_is_reached_past_the_proxy(sandbox: Place) -> None:
    with upstream() as served, socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        places = [("127.0.0.1", served.port), ("127.0.0.1", port), ("169.254.169.254", 80), ("10.0.0.1", 80)]
        places += [("127.0.0.2", served.port), ("93.184.216.34", 80), ("255.255.255.255", 80)]
        found = sandbox.tried(callers.direct, network(f"127.0.0.1:{served.port}"), places=places)
        assert set(found.values()) <= {"ECONNREFUSED", "ENETUNREACH", "EHOSTUNREACH"}, found
        assert len(found) == len(places)
    assert served.heard == []


def test_names_do_not_resolve_with_network_either(sandbox: Place) -> None:
    assert sandbox.tried(attempts.n05_resolve, network("a.example:80")) == "gaierror"


def test_only_tcp_over_ipv4_opens(sandbox: Place) -> None:
    families = {
        "unix": (1, 1, 0),
        "unix datagram": (1, 2, 0),
        "udp": (2, 2, 0),
        "raw": (2, 3, 1),
        "mptcp": (2, 1, 262),
        "sctp": (2, 1, 132),
        "inet6": (10, 1, 0),
        "netlink": (16, 3, 0),
        "packet": (17, 3, 0),
        "alg": (38, 5, 0),
        "vsock": (40, 1, 0),
    }
    assert sandbox.tried(attempts.n_open, network("a.example:80"), families=families) == dict.fromkeys(
        families, "EPERM"
    )
    assert sandbox.tried(attempts.n_open, network("a.example:80"), families={"tcp": (2, 1, 6)}) == {"tcp": "done"}


def test_sockets_of_the_host_stay_away(sandbox: Place) -> None:
    profile = network("a.example:80")
    path = str(sandbox.folder / "s")
    if sandbox.tier == "cold":
        profile = replace(profile, write=(str(sandbox.folder),))
    for place in (path, f"\0canary-{uuid.uuid4()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(place)
            listener.listen()
            listener.setblocking(False)
            there = place == path and sandbox.tier == "cold"
            if place == path:
                os.chmod(path, 0o777)
            assert sandbox.tried(attempts.n03_connect_unix, profile, path=place) == "EPERM"
            assert sandbox.tried(attempts.n13_datagram_pair, profile, path=place) == "EPERM"
            assert sandbox.tried(attempts.n14_turn_a_stream_pair, profile, path=place) == (
                # The kernel looks for the other end first; a socket that is one of a pair stays so.
                "EISCONN" if there else "ENOENT" if place == path else "ECONNREFUSED"
            )
            with pytest.raises(BlockingIOError):
                listener.accept()


SPOKEN = {
    "other port": "GET http://127.0.0.1:1/ HTTP/1.1\r\n\r\n",
    "metadata": "GET http://169.254.169.254/latest HTTP/1.1\r\n\r\n",
    "spoofed host": "GET http://127.0.0.1:PORT/ HTTP/1.1\r\nHost: other.example\r\n\r\n",
    "two hosts": "GET http://127.0.0.1:PORT/ HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nHost: b\r\n\r\n",
    "userinfo": "GET http://127.0.0.1:PORT@169.254.169.254/ HTTP/1.1\r\n\r\n",
    "null byte": "CONNECT 127.0.0.1\0.example:PORT HTTP/1.1\r\n\r\n",
    "decimal address": "CONNECT 2130706433:PORT HTTP/1.1\r\n\r\n",
    "octal address": "CONNECT 0177.0.0.1:PORT HTTP/1.1\r\n\r\n",
    "short address": "CONNECT 127.1:PORT HTTP/1.1\r\n\r\n",
    "unspecified": "CONNECT 0.0.0.0:PORT HTTP/1.1\r\n\r\n",
    "loopback of six": "CONNECT [::1]:PORT HTTP/1.1\r\n\r\n",
    "nat64": "CONNECT [64:ff9b::7f00:1]:PORT HTTP/1.1\r\n\r\n",
    "6to4": "CONNECT [2002:7f00:1::]:PORT HTTP/1.1\r\n\r\n",
    "two lengths": "POST http://127.0.0.1:PORT/ HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "same length twice": "POST http://127.0.0.1:PORT/ HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "bare line feed": "GET http://127.0.0.1:PORT/ HTTP/1.1\r\nA: b\nHost: c\r\n\r\n",
    "folded": "GET http://127.0.0.1:PORT/ HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
    "origin form": "GET /latest HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n",
    "other scheme": "GET ftp://127.0.0.1:PORT/ HTTP/1.1\r\n\r\n",
    "the proxy itself": "GET http://127.0.0.1:3128/ HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("spoken", SPOKEN)
def test_the_proxy_refuses_what_leads_elsewhere(sandbox: Place, spoken: str) -> None:
    with upstream() as served:
        text = SPOKEN[spoken].replace("PORT", str(served.port))
        answer = sandbox.tried(callers.says, network(f"127.0.0.1:{served.port}"), text=text)
        assert answer.startswith(("HTTP/1.1 400 ", "HTTP/1.1 403 ")), answer
    assert served.heard == []


def test_a_redirect_is_a_decision_of_its_own(sandbox: Place) -> None:
    with upstream() as other:
        moved = f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{other.port}/\r\nContent-Length: 0\r\n\r\n"
        with upstream(moved.encode()) as served:
            url = f"http://127.0.0.1:{served.port}/"
            status, words = sandbox.tried(callers.asks, network(f"127.0.0.1:{served.port}"), url=url)
    assert status == 403
    assert f"127.0.0.1:{other.port} is not granted" in words
    assert other.heard == []


def test_a_pipelined_request_is_not_read(sandbox: Place) -> None:
    with upstream() as served:
        one = f"GET http://127.0.0.1:{served.port}/ HTTP/1.1\r\n\r\n"
        answer = sandbox.tried(callers.says, network(f"127.0.0.1:{served.port}"), text=one + one)
    assert answer.encode() == OK
    assert len(served.heard) == 1


def test_the_proxys_place_cannot_be_taken_and_other_ports_are_harmless(sandbox: Place) -> None:
    profile = network("a.example:80")
    assert sandbox.tried(callers.proxy_port_taken, profile) == "EADDRINUSE"
    assert sandbox.tried(callers.own_server, profile) == "x"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 3128), timeout=2).close()


def test_the_interface_cannot_be_changed(sandbox: Place) -> None:
    assert sandbox.tried(callers.changes_interface, network("a.example:80")) == {"flags": "EPERM", "address": "EPERM"}
    for level, name in ((socket.SOL_SOCKET, 36), (socket.SOL_IP, 19)):  # SO_MARK, IP_TRANSPARENT
        assert sandbox.tried(callers.option, network("a.example:80"), level=level, name=name) == "EPERM"


def test_another_calls_ports_cannot_be_reached(sandbox: Place) -> None:
    profile = replace(network("a.example:80"), limits=Limits(wall_s=20))
    listening = sandbox.begin(callers.waits_at, profile, port=8123, seconds=1.0)
    knocking = sandbox.begin(callers.knocks, profile, port=8123, seconds=0.7)
    assert [each.value for each in sandbox.answers([listening, knocking])] == ["nobody", ["ECONNREFUSED"]]


def test_each_call_has_what_it_was_granted_itself(sandbox: Place) -> None:
    with upstream() as one, upstream() as two:
        numbers = []
        for mine, other in ((one, two), (two, one)):
            profile = network(f"127.0.0.1:{mine.port}")
            numbers.append(sandbox.begin(callers.asks, profile, url=f"http://127.0.0.1:{other.port}/"))
        assert [each.value[0] for each in sandbox.answers(numbers)] == [403, 403]
        assert sandbox.tried(attempts.n01_connect, port=one.port) == "EPERM", "the next call has no network"
    assert (one.heard, two.heard) == ([], [])


def test_nothing_asks_on_when_the_call_is_over(sandbox: Place) -> None:
    with upstream() as served:
        url = f"http://127.0.0.1:{served.port}/"
        assert sandbox.tried(callers.keeps_asking, network(f"127.0.0.1:{served.port}"), url=url) == "left"
        served.settle()  # what was sent before the end may be heard after it
        heard = len(served.heard)
        began = time.monotonic()
        assert sandbox.tried(callers.asks, network(f"127.0.0.1:{served.port}"), url=url)[0] == 200
        assert time.monotonic() > began
        assert len(served.heard) == heard + 1, "only the call that came after"


def test_a_tier_without_a_network_of_its_own_says_so(without: Place) -> None:
    outcome = without.outcome(callers.asks, network("a.example:80"), url="http://a.example/")
    assert (outcome.kind, outcome.error_type) == ("error", "BadGrant")
    assert "has no network of its own to bound" in outcome.error

"""Asks where a name leads, once, and which addresses are this machine's own."""

import asyncio
import contextlib
import functools
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

from understudy.policies.hosts import Address

_THREADS = ThreadPoolExecutor(max_workers=16, thread_name_prefix="resolves")
"""Not the loop's own threads: whoever owns a name decides how long an answer takes, and others need those."""

Resolve = Callable[[str], Awaitable[Sequence[Address]]]


async def resolve(host: str) -> Sequence[Address]:
    """The addresses of a name, in the resolver's order. Raises OSError (socket.gaierror) where there are none."""
    asked = functools.partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_THREADS, asked)
    # A zone (fe80::1%eth0) is no part of an address that anybody is led to.
    return [ip_address(str(row[4][0])) for row in found if "%" not in str(row[4][0])]


def is_own(address: Address) -> bool:
    """Whether it is one of this machine's: what listens there may trust whoever comes from here, as Ray does.

    Nothing is sent: a datagram socket that is connected only looks up which way it would go.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(address), 9))
        return str(probe.getsockname()[0]) == str(address)
    return False

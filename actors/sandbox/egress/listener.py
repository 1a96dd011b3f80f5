"""The socket that a proxy accepts on: made inside a sandbox's own network, handed out, and looked at before its use."""

import socket
import struct
from collections.abc import Mapping
from typing import Final

PORT: Final = 3128
"""Where a tool finds its proxy, on 127.0.0.1."""
ENVIRONMENT: Final[Mapping[str, str]] = {
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), f"http://127.0.0.1:{PORT}"),
    **dict.fromkeys(("NO_PROXY", "no_proxy"), ""),
}
"""What a tool finds in its environment. No exceptions: what it listens to itself, it reaches by asking for no proxy."""
SO_NETNS_COOKIE = 71
_SOL_SOCKET, _COOKIE_BYTES = 1, 8


def distrusted(listener: socket.socket) -> str:
    """What is wrong with it; empty if it is what it should be: listening, on the loopback of a network not ours."""
    if listener.family != socket.AF_INET or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "what it listens with is no listening socket"
    if listener.getsockname() != ("127.0.0.1", PORT):
        return f"it listens at {listener.getsockname()}"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as ours:
        same = _network_of(ours) == _network_of(listener)
    return "its network is this machine's" if same else ""


def _network_of(sock: socket.socket) -> int:
    """A number that only sockets of one network namespace have. Raises OSError before Linux 5.14."""
    (cookie,) = struct.unpack("=Q", sock.getsockopt(_SOL_SOCKET, SO_NETNS_COOKIE, _COOKIE_BYTES))
    return int(cookie)

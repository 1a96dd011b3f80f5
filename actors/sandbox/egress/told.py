"""What the proxy says of itself in an answer that is its own, so that a client can tell it from the server's. Pure."""

from typing import Final

HEADER: Final = "Understudy-Proxy"
REFUSED: Final = "refused"
"""No connection was made: it is not granted, or no request that can be passed on."""
UNREACHABLE: Final = "unreachable"
"""It was tried, and there was nobody: the server has seen nothing of the request."""
BROKEN: Final = "broken"
"""The server was reached, and may have had the request; its answer cannot be passed on."""

"""Which of an MCP client's errors say that an answer will never come."""

CONNECTION_CLOSED = -32000
_OF_THE_CLIENT = ("Connection closed", "SSE stream")
"""Servers use that number too; with these words it is the client's own, for an answer that never came."""


def is_lost(error: BaseException) -> bool:
    """Whether the client says so."""
    code, message = getattr(error, "code", None), getattr(error, "message", "")
    return code == CONNECTION_CLOSED and str(message).startswith(_OF_THE_CLIENT)

"""How the client, inside the sandbox, reaches its server; and, when that goes wrong, what is known of the call.

A server over stdio is a process beside the client: it dies, and that is how the call ended, as with any tool whose
process dies. A server over HTTP is outside, and goes on without us: if it is lost while it has the call, nobody knows
whether it did what it was asked (law 4), and `EndUnknown` says so.
"""

import os
import sys
from typing import Any, Protocol

from understudy.actors.mcp.lost import is_lost
from understudy.actors.sandbox.egress.listener import ENVIRONMENT

HANDED_ON = ("TMPDIR", "LANG", "PYTHONDONTWRITEBYTECODE", *ENVIRONMENT)
"""Of the sandbox's environment, besides what the SDK hands on: with a grant of network, where the proxy is."""


class ServerDied(Exception):
    """A server that was started for the call has ended, or shut its output, before it answered."""


class Way(Protocol):
    """To one server, for one call."""

    calling: bool
    """The tool's call may have left; before, it was only looked at what tools there are."""

    def client(self) -> Any:
        """Of the SDK; to be entered."""

    def reason(self, error: BaseException) -> BaseException:
        """What is to be told of an error."""


def way_to(server: dict[str, Any], tool: str) -> Way:
    """Raises ImportError: there is no SDK; NotGranted."""
    try:
        import mcp  # noqa: F401
    except ImportError as error:
        raise ImportError(f"MCP servers need the SDK: pip install 'understudy[mcp]' ({error})") from None
    if not server["url"]:
        return Beside(server, tool)
    from understudy.actors.mcp.over_http import OverHttp

    return OverHttp(server, tool)


class Beside:
    """Over stdio, to a process in the same sandbox."""

    def __init__(self, server: dict[str, Any], tool: str) -> None:
        self.calling = False
        self._server = server
        self._tool = tool

    def client(self) -> Any:
        from mcp import Client, StdioServerParameters

        program, *words = self._server["command"]
        if program == "python" and not self._server.get("equipped"):  # the one that has the worker's packages
            program = sys.executable
        own = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
        parameters = StdioServerParameters(command=program, args=words, env=own | self._server["variables"])
        return Client(parameters, mode=self._server["mode"], cache=None)

    def reason(self, error: BaseException) -> BaseException:
        if not is_lost(error):
            return error
        name = self._server["name"]
        if self.calling:
            return ServerDied(
                f"MCP server {name!r} ended in the middle of the call of {self._tool!r}, and gave no answer; what it "
                f"had done by then stays done. What it printed is with the outcome"
            )
        return ServerDied(
            f"MCP server {name!r} ended before it had told what tools it has; nothing was called. What it printed is "
            f"with the outcome"
        )

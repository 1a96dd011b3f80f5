"""What preflight calls inside the sandbox, to see with a tool's eyes what a tool would see."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from understudy.actors.sandbox.confine import PR_GET_NO_NEW_PRIVS, PR_GET_SECCOMP, capabilities, prctl
from understudy.actors.sandbox.egress.listener import PORT


def look() -> dict[str, Any]:
    """Facts, not judgements: those are made outside, where nothing can be forged."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
        sockets = True
    except OSError:
        sockets = False
    return {
        "uid": os.getuid(),
        "capabilities": capabilities() | int(_status().get("CapBnd", "0"), 16),
        "no_new_privileges": prctl(PR_GET_NO_NEW_PRIVS, 0),
        "seccomp": prctl(PR_GET_SECCOMP, 0),
        "processes": len([name for name in _if_open(lambda: os.listdir("/proc")) if name.isdigit()]),
        "interfaces": sorted(line.split(":")[0].strip() for line in _lines("/proc/net/dev")[2:]),
        "sockets": sockets,
        "environment": sorted(os.environ),
        "first_environment": [word for line in _lines("/proc/1/environ") for word in line.split("\0") if word],
        "root": sorted(_if_open(lambda: os.listdir("/"))),
    }


def reach(port: int) -> dict[str, str]:
    """How a server of the host is reached: through the proxy, and past it."""
    with socket.create_connection(("127.0.0.1", PORT), timeout=10) as proxy:
        proxy.sendall(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\n\r\n".encode())
        status = proxy.recv(4096).split(b" ")[1].decode()
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except ConnectionRefusedError:
        return {"proxied": status, "direct": "refused"}
    return {"proxied": status, "direct": "connected"}


def _status() -> dict[str, str]:
    return dict(line.split(":", 1) for line in _lines("/proc/self/status"))


def _lines(path: str) -> list[str]:
    return _if_open(lambda: Path(path).read_text().splitlines())


def _if_open(look_at: Callable[[], list[str]]) -> list[str]:
    """Nothing, where a tool gets nowhere."""
    try:
        return look_at()
    except PermissionError:
        return []

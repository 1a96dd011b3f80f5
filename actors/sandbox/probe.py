"""What preflight calls inside the sandbox, to see with a tool's eyes what a tool would see."""

import os
import socket
from pathlib import Path
from typing import Any


def _environment_of_the_first() -> list[str]:
    try:
        return Path("/proc/1/environ").read_text().replace("\0", " ").split()
    except PermissionError:
        return []


def look() -> dict[str, Any]:
    """Facts, not judgements: those are made outside, where nothing can be forged."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
        sockets = True
    except OSError:
        sockets = False
    return {
        "uid": os.getuid(),
        "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
        "no_new_privileges": int(status["NoNewPrivs"]),
        "seccomp": int(status["Seccomp"]),
        "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
        "interfaces": sorted(line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]),
        "sockets": sockets,
        "environment": sorted(os.environ),
        "first_environment": _environment_of_the_first(),
        "root": sorted(os.listdir("/")),
    }

"""Tries a tier by a real call that looks around, and judges, outside, what it saw."""

import asyncio
from typing import Any

from understudy.actors.outcome import ToolCall, ToolCode
from understudy.actors.sandbox import probe
from understudy.actors.sandbox.backend import Backend, IsolationUnavailable, Preflight
from understudy.actors.sandbox.runtime import this_runtime
from understudy.actors.sandbox.walls import environment
from understudy.policies.profile import Limits, Profile, Tier

_PROBE = ToolCall("preflight", "preflight", ToolCode(ref="understudy.actors.sandbox.probe:look"), {})


async def try_out(backend: Backend, network: bool = True) -> Preflight:
    """Whether the tier stands on this machine, and whether it gives network. Never raises."""
    try:
        outcome = await backend.execute(_PROBE, Profile(limits=Limits(wall_s=30)))
    except IsolationUnavailable as error:
        return Preflight(False, error.reason, error.remedy)
    except OSError as error:
        return Preflight(False, f"the sandbox could not be started: {error}", "see the words above")
    details = {"backend": backend.name, "duration_ms": f"{outcome.duration_s * 1000:.0f}"}
    if outcome.kind != "ok":
        reason = f"a call to look around ended with {outcome.kind}: {outcome.error}"
        return Preflight(False, reason, "see the words above", details)
    details |= {name: str(value) for name, value in outcome.value.items()}
    holes = _holes(outcome.value, backend.tier)
    if holes:
        remedy = "do not run untrusted tools here; report this with the details"
        return Preflight(False, f"the sandbox came up, but {'; '.join(holes)}", remedy, details)
    if network and backend.fits(Profile(network=("127.0.0.1:1",))):
        details["network"] = await _try_network(backend)
    return Preflight(True, details=details)


async def _try_network(backend: Backend) -> str:
    """`works`, if a call reaches a listener of ours through its proxy, and by no other way; else, what is wrong."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    try:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            call = ToolCall("preflight", "preflight", ToolCode(ref=f"{probe.__name__}:reach"), {"port": port})
            profile = Profile(limits=Limits(wall_s=30), network=(f"127.0.0.1:{port}",))
            outcome = await backend.execute(call, profile)
    except (IsolationUnavailable, OSError) as error:
        return f"does not: {error}"
    if outcome.kind != "ok":
        return f"does not: {outcome.error}"
    if outcome.value != {"proxied": "204", "direct": "refused"} or len(asked) != 1:
        return f"does not: a call saw {outcome.value}"
    return "works"


def _holes(seen: dict[str, Any], tier: Tier) -> list[str]:
    """What a tool can see or do here that it must not."""
    expected = {*environment(this_runtime()), "PWD", "LC_CTYPE", "UNDERSTUDY_EFFECT_KEY", "GIT_CONFIG_NOSYSTEM"}
    own_kernel = tier == "gvisor"  # it answers the calls itself, and a socket leads nowhere but into its own network
    first = {row.partition("=")[0] for row in seen["first_environment"]}  # gVisor's is started with the tool's own
    checks = [
        (seen["capabilities"] == 0, "a tool has capabilities"),
        (seen["no_new_privileges"] == 1, "a tool can gain privileges through setuid programs"),
        (seen["seccomp"] == 2 or own_kernel, "system calls are not filtered"),
        (seen["processes"] <= 3, "other processes can be seen"),
        (set(seen["interfaces"]) <= {"lo"}, "there are network interfaces"),
        (not seen["sockets"] or own_kernel, "sockets can be opened"),
        (set(seen["environment"]) <= expected, "the environment is not clean"),
        (first <= (expected if own_kernel else {"PATH"}), "the launcher's environment can be read"),
    ]
    return [hole for fine, hole in checks if not fine]

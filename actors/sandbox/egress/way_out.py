"""What the sandbox actor gives to a call besides its profile: the secrets, and who is told of connections."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from understudy.actors.outcome import ToolCall
from understudy.actors.sandbox.egress.injection import Injection
from understudy.actors.sandbox.egress.log import Connection, ConnectionLog, ignore
from understudy.actors.sandbox.egress.proxy import IDLE_S, Proxy
from understudy.policies.profile import Profile


@dataclass
class WayOut:
    """Of one call. It crosses no process border: it has secrets in it."""

    run_id: str = ""
    injections: Sequence[Injection] = ()
    """What the proxy puts into requests."""
    given: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Secrets that the tool gets itself, in its request."""
    kept_back: Mapping[str, str] = field(default_factory=dict)
    """Secrets that are granted and that it does not get itself, with the reason."""
    seen: Callable[[Connection], None] = ignore
    log: ConnectionLog | None = None
    """Of the last try of the call."""


def proxy_of(call: ToolCall, profile: Profile, way_out: WayOut | None) -> Proxy | None:
    """The proxy of a call that has network, not yet open."""
    if not profile.network:
        return None
    way_out = way_out or WayOut()
    proxy = Proxy(
        profile.network,
        profile.limits,
        key=call.key,
        run_id=way_out.run_id,
        injections=way_out.injections,
        seen=way_out.seen,
        idle_s=max(IDLE_S, profile.limits.wall_s),  # the call's own clock ends silence: a server may have much to do
    )
    way_out.log = proxy.log
    return proxy

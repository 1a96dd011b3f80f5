"""What one call is entrusted with, besides its arguments: secrets and a way out; and what is told of it afterwards."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from understudy.actors.outcome import Outcome
from understudy.actors.records import Event
from understudy.actors.sandbox.egress.log import KEPT_MAX, Connection
from understudy.actors.sandbox.egress.way_out import WayOut
from understudy.actors.sandbox.runner import LONGEST_MESSAGE
from understudy.actors.secret_file import SecretFile
from understudy.actors.secret_traces import Traces
from understudy.policies.profile import Limits, Profile


@dataclass(frozen=True)
class Entrusted:
    """Of one call. It stays in the process that makes the call."""

    way_out: WayOut
    traces: Traces
    limits: Limits

    def told(self, outcome: Outcome) -> Outcome:
        """Without the secrets: what may be recorded."""
        return self.traces.outcome(outcome, self.limits.output_bytes, LONGEST_MESSAGE)

    def connected(self, tool: str, key: str, at: float) -> list[Event]:
        """An event for each connection, and one for those beyond a bound. (A tool can name a host after a secret.)"""
        log = self.way_out.log
        told = log.told() if log is not None else []
        return [Event("connected", at, {**self.traces.value(each), "tool": tool, "key": key}) for each in told]


NOTHING = Entrusted(WayOut(), Traces({}), Limits())


def entrust(
    secrets: SecretFile, profile: Profile, run_id: str, tell: Callable[[Mapping[str, Any]], None] | None = None
) -> Entrusted:
    """What the profile lists. `tell` is told of each of the first connections, when it is over, without secrets.

    Raises SecretsUnusable; the call is not made then.
    """
    found = secrets.named(profile.secrets)
    values: Mapping[str, str] = {secret.name: secret.value() for secret in found}
    kept_back = {secret.name: _kept_back(secret.name, len(secret.hosts)) for secret in found if secret.hosts}
    way_out = WayOut(
        run_id,
        [injection for secret in found for injection in secret.injections()],
        {name: value for name, value in values.items() if name not in kept_back},
        kept_back,
    )
    traces, left = Traces(values), itertools.count(KEPT_MAX, -1)

    def seen(connection: Connection) -> None:
        if tell is not None and next(left) > 0:
            tell(traces.value(connection.told()))

    way_out.seen = seen
    return Entrusted(way_out, traces, profile.limits)


def _kept_back(name: str, hosts: int) -> str:
    return (
        f"the secret {name!r} is put into requests by the proxy, for its {hosts} host(s), and no tool sees it; request "
        "http://HOST:PORT/ through the proxy, and leave it out"
    )

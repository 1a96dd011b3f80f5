"""Which tier makes a call: the cheapest that stands and is strong enough; none stands, and the call is refused."""

import asyncio
import dataclasses
import json
from collections.abc import Sequence

import pytest

from understudy.actors.outcome import Outcome, ToolCall, ToolCode
from understudy.actors.sandbox import gvisor, tiers
from understudy.actors.sandbox.backend import Backend, IsolationUnavailable, Preflight
from understudy.actors.sandbox.egress.way_out import WayOut
from understudy.actors.sandbox.gvisor import GvisorBackend
from understudy.actors.sandbox.landlock import LandlockBackend
from understudy.actors.sandbox.left_over import LeftOver
from understudy.actors.sandbox.runtime import this_runtime
from understudy.actors.sandbox.tiers import BY_COST, Tiers
from understudy.policies.profile import TIERS, Limits, Profile, Tier

CALL = ToolCall("k", "t", ToolCode(ref="json:dumps"), {"obj": 1})


@dataclasses.dataclass
class Standing:
    """A backend that makes no call, and says which tier was asked."""

    tier: Tier
    stands: bool = True
    takes_files: bool = True
    fails: bool = False
    tried: int = 0
    name: str = "test"

    def fits(self, profile: Profile) -> bool:
        return self.takes_files or not profile.read

    async def execute(self, call: ToolCall, profile: Profile, way_out: WayOut | None = None) -> Outcome:
        if self.fails:
            raise IsolationUnavailable(f"{self.tier} broke", "mend it")
        return Outcome("ok", value=self.tier)

    async def preflight(self) -> Preflight:
        self.tried += 1
        if self.stands:
            return Preflight(True, details={"duration_ms": "1"})
        return Preflight(False, f"{self.tier} is not here", f"get {self.tier}")

    async def close(self) -> None:
        pass


def chosen(backends: Sequence[Backend], profile: Profile) -> str:
    return str(asyncio.run(Tiers(backends).execute(CALL, profile)).value)


def refused(backends: Sequence[Backend], profile: Profile) -> str:
    with pytest.raises(IsolationUnavailable) as caught:
        asyncio.run(Tiers(backends).execute(CALL, profile))
    return str(caught.value)


def all_but(*missing: Tier) -> list[Backend]:
    return [Standing(tier, stands=tier not in missing) for tier in TIERS]


@pytest.mark.parametrize(
    ("least", "missing", "expected"),
    [
        ("landlock", (), "zygote"),  # stronger, and cheaper as well
        ("landlock", ("zygote",), "landlock"),
        ("zygote", (), "zygote"),
        ("zygote", ("zygote",), "cold"),
        ("cold", (), "cold"),
        ("cold", ("cold",), "gvisor"),
        ("gvisor", (), "gvisor"),
    ],
)
def test_the_cheapest_that_is_strong_enough(least: Tier, missing: tuple[Tier, ...], expected: str) -> None:
    assert chosen(all_but(*missing), Profile(tier=least)) == expected


def test_never_a_weaker_one() -> None:
    words = refused(all_but("zygote", "cold", "gvisor"), Profile(tier="zygote"))
    assert "'zygote' or stronger" in words
    for tier in ("zygote", "cold", "gvisor"):
        assert f"{tier} is not here" in words
    assert "get zygote" in words


def test_what_one_cannot_give_the_next_does() -> None:
    backends = [Standing("zygote", takes_files=False), Standing("cold")]
    assert chosen(backends, Profile(read=("/a",))) == "cold"
    assert chosen(backends, Profile()) == "zygote"


def test_one_that_breaks_is_replaced_by_one_as_strong() -> None:
    assert chosen([Standing("zygote", fails=True), Standing("cold"), Standing("landlock")], Profile()) == "cold"
    assert "zygote broke" in refused([Standing("zygote", fails=True), Standing("landlock")], Profile())


def test_each_is_tried_once_and_a_missing_one_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    zygote, gone = Standing("zygote"), Standing("cold", stands=False)

    async def scenario() -> None:
        both = Tiers([zygote, gone])
        for _ in range(3):
            await both.execute(CALL, Profile())
        assert (zygote.tried, gone.tried) == (1, 1)
        with pytest.raises(IsolationUnavailable):
            await both.execute(CALL, Profile(tier="cold"))
        assert gone.tried == 1
        monkeypatch.setattr(tiers, "TRY_AGAIN_S", 0.0)
        gone.stands = True
        assert (await both.execute(CALL, Profile(tier="cold"))).value == "cold"
        assert (zygote.tried, gone.tried) == (1, 2)

    asyncio.run(scenario())


def test_preflight_tells_of_every_tier_and_whether_the_default_holds() -> None:
    found = asyncio.run(Tiers(all_but("gvisor")).preflight())
    assert found.available
    assert found.details["gvisor"] == "gvisor is not here"
    assert found.details["zygote"].startswith("stands")
    found = asyncio.run(Tiers(all_but("zygote", "cold", "gvisor")).preflight())
    assert not found.available
    assert "zygote is not here" in found.reason
    assert "tier: landlock" in found.remedy


def test_what_others_left_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    left = LeftOver(processes=3, cgroups=1)
    monkeypatch.setattr(tiers, "end_leftovers", lambda: left)
    whole = Tiers(all_but())
    assert asyncio.run(whole.preflight()).details["left over"].startswith("3 processes, 1 cgroup of dead workers")
    assert (whole.left_over(), whole.left_over()) == (left, LeftOver()), "each is counted once"
    monkeypatch.setattr(tiers, "end_leftovers", LeftOver)
    assert "left over" not in asyncio.run(Tiers(all_but()).preflight()).details


def test_every_tier_has_a_cost_and_a_backend() -> None:
    assert sorted(BY_COST) == sorted(TIERS) == sorted(each.tier for each in tiers.all_tiers(spares=0))


def test_without_runsc_gvisor_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = asyncio.run(GvisorBackend().preflight())
    assert not found.available
    assert "runsc is not installed" in found.reason
    assert "gvisor.dev" in found.remedy
    assert "runsc is not installed" in refused([GvisorBackend()], Profile(tier="gvisor"))


def test_a_bundle_shows_what_was_granted_and_has_no_rights() -> None:
    granted = Profile(read=("/srv/data",), write=("/srv/out",), limits=Limits(disk_bytes=4096))
    bundle = json.loads(json.dumps(gvisor.config(granted, this_runtime())))
    mounts = {mount["destination"]: mount.get("options", []) for mount in bundle["mounts"]}
    assert "ro" in mounts["/srv/data"]
    assert "rw" in mounts["/srv/out"]
    assert "size=4096" in mounts["/tmp"]
    assert "/etc" not in mounts
    assert bundle["root"]["readonly"]
    assert not any(bundle["process"]["capabilities"].values())
    assert bundle["process"]["user"]["uid"] == 0, "to whom what belongs to the worker's user belongs in there"


def test_without_landlock_in_the_kernel_it_is_refused_with_the_reason() -> None:
    found = asyncio.run(LandlockBackend(version=0).preflight())
    assert not found.available
    assert "no Landlock" in found.reason
    assert "lsm=" in found.remedy


def test_a_call_with_network_is_made_by_a_tier_that_can_give_it() -> None:
    wanted = Profile(tier="landlock", network=("a.example:443",))
    assert not LandlockBackend(version=6).fits(wanted)
    assert not GvisorBackend().fits(wanted)
    backends = [LandlockBackend(version=6), Standing("cold"), GvisorBackend()]
    assert chosen(backends, wanted) == "cold"
    said = refused([LandlockBackend(version=6), Standing("cold", stands=False), GvisorBackend()], wanted)
    assert "cold: cold is not here" in said
    assert "landlock: it can give no network" in said
    assert "gvisor: it can give no network" in said

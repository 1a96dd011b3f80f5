"""Runs the suite on every backend, each check on an empty store."""

import asyncio

import pytest
from conformance.conftest import MakeWorld

from understudy.cluster.testing.conformance.suite import Check, World, checks


def run_on(world: World, check: Check) -> None:
    async def go() -> None:
        try:
            await check(world)
        finally:
            await world.close()

    asyncio.run(go())


@pytest.mark.parametrize("check", checks(), ids=lambda check: check.__name__.removeprefix("check_"))
def test_store(make_world: MakeWorld, check: Check) -> None:
    run_on(make_world(), check)

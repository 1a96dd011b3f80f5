"""Runs the suite on every backend, each check on an empty store."""

import pytest
from conformance.conftest import MakeWorld

from understudy.cluster.testing.conformance.suite import Check, checks, run_check


@pytest.mark.parametrize("check", checks(), ids=lambda check: check.__name__.removeprefix("check_"))
def test_store(make_world: MakeWorld, check: Check) -> None:
    run_check(check, make_world())

"""Every backend beside MemoryStore, on random walks. `UNDERSTUDY_WALKS=1000 pytest ...` walks longer."""

import os

import pytest
from conformance.conftest import MakeWorld
from conformance.differential import walk

from understudy.cluster.testing.conformance.suite import run_check

SEEDS = range(int(os.environ.get("UNDERSTUDY_WALKS", "8")))


@pytest.mark.parametrize("seed", SEEDS)
def test_same_verbs_same_answers(make_world: MakeWorld, seed: int) -> None:
    run_check(lambda world: walk(world, seed, steps=250), make_world())

"""Collects what the benchmarks measured; prints it and writes it to build/bench.md and bench.json at the end."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.table import Table


@pytest.fixture(scope="session")
def table() -> Iterator[Table]:
    """The table of this session. `UNDERSTUDY_BENCH_OUT` names another folder for it."""
    table = Table()
    yield table
    folder = Path(os.environ.get("UNDERSTUDY_BENCH_OUT", Path(__file__).parents[2] / "build"))
    table.write(folder)
    print(f"\n\n{table.text()}\nwritten to {folder}/bench.md and bench.json")

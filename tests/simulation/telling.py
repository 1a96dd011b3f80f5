"""Tell the stories of some seeds, each in good and in bad weather, and say which ended otherwise. One seed or a range:

PYTHONPATH=tests .venv/bin/python -m simulation.telling 17
PYTHONPATH=tests .venv/bin/python -m simulation.telling 1000-2000
"""

import sys

from simulation.story import Story, WatchedStore
from simulation.virtual import run_virtual


def wrong_with(seed: int, store: type[WatchedStore] = WatchedStore) -> str:
    """What is wrong with the story of a seed; empty if nothing is."""
    try:
        expected = run_virtual(Story(seed, badness=0.0).tell(), f"{seed} good")
        story = Story(seed, badness=1.0, store=store())
        found = run_virtual(story.tell(), f"{seed} bad")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    for n, (good, bad) in enumerate(zip(expected, found, strict=True)):
        if bad.cancelled and bad.status == "cancelled":
            continue
        if (good.status, good.state) != (bad.status, bad.state):
            return f"run {n} ended as {bad}, and in good weather as {good}"
    return "; ".join(story.broken[:3])


def main(seeds: str) -> int:
    """The exit status: 1 if any story went wrong."""
    first, dash, end = seeds.partition("-")
    wrong = 0
    for seed in range(int(first), int(end) if dash else int(first) + 1):
        found = wrong_with(seed)
        if found:
            wrong += 1
            again = f"PYTHONPATH=tests .venv/bin/python -m simulation.telling {seed}"
            sys.stdout.write(f"seed {seed}: {found}\n  {again}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{seeds}: {wrong} stories went wrong\n" if wrong else f"{seeds} stories, all of them end well\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

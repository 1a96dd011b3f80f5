"""Start Ray without three processes that it starts beside itself and that nothing here asks.

On a head node `ray.init` starts an autoscaler's monitor (there is nothing to scale on one machine), a reader of logs
(its lines go to a driver, and ours wants none) and the dashboard's server, even where `include_dashboard=False` (its
page is off, its process is not). Each is a Python that imports Ray. Without them Ray 2.60 takes 60% of the time and of
the CPU to start, a tenth of the time to stop, and 250 MB less. There is no public switch for them.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

EXTRAS = ("start_monitor", "start_log_monitor", "start_api_server")
"""The methods of Ray's `Node` that start them. One that a version of Ray does not have is left alone."""


@contextlib.contextmanager
def without_extras() -> Iterator[None]:
    """Within it, `ray.init` starts what a node needs: GCS and raylet with its agents."""
    from ray._private.node import Node

    kept = {name: getattr(Node, name) for name in EXTRAS if hasattr(Node, name)}
    for name in kept:
        setattr(Node, name, _start_nothing)
    try:
        yield
    finally:
        for name, start in kept.items():
            setattr(Node, name, start)


def _start_nothing(node: Any, *args: Any, **options: Any) -> None:
    """What it replaces returns nothing either."""

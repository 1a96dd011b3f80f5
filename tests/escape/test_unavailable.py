"""A tier that cannot stand on a machine says why, and what to change; a call gets a stronger one, or is refused.

Real machines of the sort: each worker is started where something is missing.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from escape.workers import USERS, Worker

from understudy.actors.sandbox import launcher

WITHOUT_NAMESPACES = ["sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"', "sh"]


@contextmanager
def working(user: str, **how: Any) -> Iterator[Worker]:
    worker = Worker(user, **how)
    try:
        yield worker
    finally:
        worker.close()


def refused(worker: Worker, *missing: str) -> dict[str, Any]:
    """These do not stand, so a call that nothing is said of is refused, with the reason of each; landlock is never in
    their place, unless a policy names it."""
    told = worker.ask("told", tier="zygote")
    assert {tier for tier, each in told["found"].items() if not each["available"]} == {*missing}, told
    for tier in set(missing) - {"landlock"}:
        assert f"{tier}: {told['found'][tier]['reason']}" in told["reason"]
        assert told["found"][tier]["remedy"]
    if "landlock" not in missing:
        assert worker.ask("told", tier="landlock")["kind"] == "ok"
    return told


@pytest.mark.parametrize("user", USERS)
def test_without_bubblewrap(user: str) -> None:
    with working(user, programs="/nowhere") as worker:
        told = refused(worker, "zygote", "cold", "gvisor")
        assert "bubblewrap (bwrap) is not installed" in told["reason"]
        assert "apt-get install bubblewrap" in told["remedy"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root maps the ids of others")
@pytest.mark.parametrize("user", USERS)
def test_where_user_namespaces_are_switched_off(user: str) -> None:
    fd = launcher.user_namespace("0 0 65536\n", "0 0 65536\n")
    try:
        within = ["nsenter", f"--user=/proc/self/fd/{fd}", "--preserve-credentials", *WITHOUT_NAMESPACES]
        with working(user, within=within, pass_fds=(fd,)) as worker:
            told = refused(worker, "zygote", "cold", "gvisor")
            assert "allows no user namespaces (user.max_user_namespaces = 0)" in told["reason"]
            assert told["remedy"] == "sysctl -w user.max_user_namespaces=10000"
    finally:
        os.close(fd)


def test_a_root_who_can_be_nobody_else_is_told_so() -> None:
    """As in a container that somebody has started who may map no ids but their own."""
    with working(USERS[0], within=["unshare", "--user", "--map-root-user"]) as worker:
        told = refused(worker, "landlock", "zygote", "cold", "gvisor")
        assert "workers are root here, which starts no sandbox, and can be nobody else" in told["reason"]
        assert "/etc/subuid" in told["remedy"]

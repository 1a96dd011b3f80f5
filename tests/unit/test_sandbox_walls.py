"""The command line of bubblewrap, the interpreter's folders, and the words for machines that cannot isolate."""

import asyncio
import os
import pickle
import sys
from pathlib import Path

import pytest

from understudy.actors.sandbox.backend import BadGrant, IsolationUnavailable
from understudy.actors.sandbox.bubblewrap import BubblewrapBackend
from understudy.actors.sandbox.diagnosis import not_started
from understudy.actors.sandbox.runtime import Runtime, this_runtime
from understudy.actors.sandbox.walls import Descriptors, Source, command, refuse_bad_grants
from understudy.policies.profile import Limits, Profile

RUNTIME = Runtime(
    python="/opt/env/bin/python",
    prefix="/opt/env",
    folders=(("/opt/env", "/opt/env"), ("/opt/real", "/opt/alias")),
    import_paths=("/opt/env/lib",),
    runner="/opt/env/runner.py",
    launcher="/opt/env/launcher.py",
    zygote="/opt/env/zygote_inside.py",
    keeper="/opt/env/keeper.py",
    inside="/opt/env/gvisor_inside.py",
)


def line(profile: Profile) -> list[str]:
    parts = command("/usr/bin/bwrap", [("bin", "usr/bin"), ("lib", None)], RUNTIME, profile, Descriptors(7, 8, 9))
    return [part.path if isinstance(part, Source) else part for part in parts]


def index(words: list[str], *wanted: str) -> int:
    return next(at for at in range(len(words)) if words[at : at + len(wanted)] == list(wanted))


def test_every_namespace_is_spelled_out() -> None:
    words = line(Profile())
    assert not [word for word in words if word.endswith(("-try", "-all")) and word.startswith("--unshare")]
    for namespace in ("user", "ipc", "pid", "net", "uts", "cgroup"):
        assert f"--unshare-{namespace}" in words
    for wall in ("--disable-userns", "--die-with-parent", "--new-session", "--clearenv"):
        assert wall in words
    index(words, "--cap-drop", "ALL")
    index(words, "--seccomp", "7")
    index(words, "--json-status-fd", "8")
    assert words[-5:] == ["-I", "-S", "-B", "/opt/env/runner.py", "9"]


def test_grants_lie_over_private_folders_and_under_the_interpreters() -> None:
    words = line(Profile(read=("/opt/env/data",), write=("/opt",), limits=Limits(disk_bytes=4096)))
    order = [
        index(words, "--size", "4096", "--tmpfs", "/tmp"),
        index(words, "--bind", "/opt", "/opt"),
        index(words, "--ro-bind", "/opt/env/data", "/opt/env/data"),
        index(words, "--ro-bind", "/opt/env", "/opt/env"),
        index(words, "--ro-bind", "/opt/real", "/opt/alias"),
        index(words, "--remount-ro", "/"),
    ]
    assert order == sorted(order)


def test_the_hosts_top_folders_are_as_they_are() -> None:
    words = line(Profile())
    index(words, "--symlink", "usr/bin", "/bin")
    index(words, "--ro-bind", "/lib", "/lib")


@pytest.mark.parametrize(
    "profile",
    [
        Profile(read=("relative",)),
        Profile(read=("/a/../b",)),
        Profile(read=("/a/",)),
        Profile(read=("/",)),
        Profile(write=("/tmp",)),
        Profile(read=("/home",)),
        Profile(read=("/proc/1",)),
        Profile(write=("/dev/null",)),
        Profile(read=("/sys/fs",)),
        Profile(write=("/usr/lib",)),
        Profile(write=("/opt/env/lib/site-packages",)),
        Profile(write=("/opt/alias",)),
    ],
)
def test_bad_grants_are_refused_by_name(profile: Profile) -> None:
    (path,) = (*profile.read, *profile.write)
    with pytest.raises(BadGrant, match=r"the granted path") as caught:
        refuse_bad_grants(profile, RUNTIME)
    assert repr(path) in str(caught.value)


def test_good_grants_are_not() -> None:
    refuse_bad_grants(Profile(read=("/srv/data", "/tmp/x"), write=("/opt", "/home/u/out")), RUNTIME)


def test_this_interpreter_is_shown_and_a_projects_folder_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    packages = tmp_path / "vendored" / "site-packages"
    packages.mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(project), "", *sys.path, str(packages)])
    runtime = this_runtime()
    assert str(project) not in runtime.import_paths
    assert "" not in runtime.import_paths
    assert str(packages) in runtime.import_paths
    places = [place for _, place in runtime.folders]

    def is_shown(path: str) -> bool:
        return any(path == place or path.startswith(place + "/") for place in [*places, "/usr"])

    for path in (sys.prefix, os.path.realpath(sys.executable), os.__file__, pytest.__file__, str(packages)):
        assert is_shown(path), path
    assert is_shown(os.path.realpath(runtime.runner))
    assert not is_shown(str(project))
    assert not is_shown(os.path.expanduser("~"))
    assert not is_shown(str(Path(__file__)))


def test_an_interpreter_that_lives_in_a_home_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(IsolationUnavailable, match="folder of its own"):
        this_runtime()


NO_SYSCTL: dict[str, str] = {}
MACHINES = [
    ("bwrap: Unknown option --disable-userns", NO_SYSCTL, "too old", "apt-get"),
    (
        "bwrap: No permissions to create new namespace",
        {"kernel/unprivileged_userns_clone": "0"},
        "unprivileged_userns_clone = 0",
        "sysctl -w kernel.unprivileged_userns_clone=1",
    ),
    (
        "bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted",
        {"kernel/apparmor_restrict_unprivileged_userns": "1"},
        "AppArmor",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    (
        "bwrap: Creating new namespace failed: No space left on device",
        {"user/max_user_namespaces": "0"},
        "allows no user namespaces",
        "sysctl -w user.max_user_namespaces=10000",
    ),
    ("bwrap: No permissions to create new namespace", NO_SYSCTL, "No permissions", "hostUsers: false"),
    ("", NO_SYSCTL, "said nothing", "container"),
    ("Traceback\nModuleNotFoundError: No module named 'json'", NO_SYSCTL, "interpreter did not start", "container"),
]


@pytest.mark.parametrize(("said", "sysctls", "reason", "remedy"), MACHINES)
def test_machines_that_cannot_isolate_say_why(said: str, sysctls: dict[str, str], reason: str, remedy: str) -> None:
    error = not_started(said, lambda name: sysctls.get(name, ""))
    assert reason in error.reason
    assert remedy in error.remedy
    assert error.reason in str(error)
    assert error.remedy in str(error)


def test_the_error_survives_its_way_through_ray() -> None:
    error = pickle.loads(pickle.dumps(IsolationUnavailable("why", "what to do")))
    assert (error.reason, error.remedy) == ("why", "what to do")


def test_without_bubblewrap_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    preflight = asyncio.run(BubblewrapBackend().preflight())
    assert not preflight.available
    assert "not installed" in preflight.reason
    assert "apt-get install bubblewrap" in preflight.remedy

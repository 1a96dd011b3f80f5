"""Settings: arguments over variables over files over defaults, and messages that name where a value came from."""

import threading
from pathlib import Path

import pytest

from understudy.actors.errors import CallerError
from understudy.cluster.settings import Settings, mistyped, read_settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_arguments_beat_variables_beat_files_beat_defaults(home: Path):
    environ = {"UNDERSTUDY_STATE_DIR": str(home / "state")}
    assert read_settings({}, environ).lease_s == 10.0
    (home / "understudy.toml").write_text("lease_s = 20\nrun_actors = 7\n")
    assert read_settings({}, environ).lease_s == 20.0
    environ["UNDERSTUDY_LEASE_S"] = "30"
    assert read_settings({}, environ).lease_s == 30.0
    settings = read_settings({"lease_s": 40, "store": None}, environ)
    assert (settings.lease_s, settings.run_actors) == (40.0, 7)
    assert settings.store_url == f"sqlite://{home}/state/understudy.db"


def test_a_variable_that_is_nearly_a_setting_is_told_and_others_are_nobodys_business():
    environ = {"UNDERSTUDY_STOER": "x", "UNDERSTUDY_STORE": "y", "UNDERSTUDY_LEASE": "9", "STORE": "z"}
    ours = ("EFFECT_KEY", "WALKS", "BENCH_OUT", "TEST_RUN", "API_TOKEN", "HOME", "")
    assert mistyped(environ | {f"UNDERSTUDY_{name}": "1" for name in ours}) == [
        "UNDERSTUDY_LEASE is no setting, and changes nothing; did you mean UNDERSTUDY_LEASE_S?",
        "UNDERSTUDY_STOER is no setting, and changes nothing; did you mean UNDERSTUDY_STORE?",
    ]


def test_a_list_is_given_with_commas_or_as_one(home: Path):
    assert read_settings({}, {"UNDERSTUDY_PRELOAD": "httpx, pandas.core"}).preload == ("httpx", "pandas.core")
    (home / "understudy.toml").write_text('preload = ["httpx"]\n')
    assert read_settings({}, {}).preload == ("httpx",)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"UNDERSTUDY_RUN_ACTORS": "many"}, "UNDERSTUDY_RUN_ACTORS: run_actors = 'many'"),
        ({"UNDERSTUDY_PRELOAD": "httpx,no module"}, "UNDERSTUDY_PRELOAD: preload = 'no module'"),
        ({"UNDERSTUDY_LEASE_S": "0"}, "UNDERSTUDY_LEASE_S: lease_s = '0': Input should be greater"),
    ],
)
def test_a_bad_variable_is_named(home: Path, environ: dict[str, str], message: str):
    with pytest.raises(CallerError, match=message):
        read_settings({}, {"UNDERSTUDY_STATE_DIR": str(home), **environ})


def test_a_bad_file_is_named(home: Path):
    environ = {"UNDERSTUDY_STATE_DIR": str(home / "state")}
    (home / "understudy.toml").write_text("lease = 20\n")
    with pytest.raises(CallerError, match=r"understudy.toml: there is no setting 'lease'; there are .*lease_s"):
        read_settings({}, environ)
    (home / "understudy.toml").write_text("lease_s =\n")
    with pytest.raises(CallerError, match=r"understudy\.toml cannot be read"):
        read_settings({}, environ)


def test_the_secret_is_private_and_made_once(home: Path):
    keys: list[bytes] = []
    settings = Settings(state_dir=home / "state")
    threads = [threading.Thread(target=lambda: keys.append(settings.secret())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(keys)) == 1
    assert len(keys) == 8
    assert (home / "state" / "secret").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (home / "state").iterdir()] == ["secret"]


def test_a_short_secret_is_refused(home: Path):
    (home / "key").write_text("short")
    with pytest.raises(CallerError, match="holds 5 characters; it has to hold at least 32"):
        Settings(secret_file=home / "key").secret()

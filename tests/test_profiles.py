"""Profiles: settings as overrides, the choice of profile and token, variables, secrets."""

from pathlib import Path

import pytest
import yaml

from metatrain.cli.profiles import Profile, find_token, list_secret_files, read_profile
from metatrain.config.load import read_config
from metatrain.yaml_config import apply_overrides
from tests.configurations import TINY


def test_settings_go_before_ones_own_and_leave_the_rest_of_a_section() -> None:
    profile = Profile(
        settings={
            "runs": {"root": "s3://lab/runs", "heartbeat": 5},
            "executor.workers": {"min": 1, "max": 4},
            "executor.name": "ray",
            "tracking.uri": None,
            "runs.name": "1e-3",
        }
    )
    plain = TINY | {"executor": {"workers": 2, "shard_size": 3}, "runs": {"name": "mine"}}
    config = read_config(apply_overrides(plain, [*profile.overrides(), "executor.workers=8"]))
    assert (config.runs.root, config.runs.heartbeat, config.runs.name) == ("s3://lab/runs", 5.0, "1e-3")
    assert (config.executor.name, config.executor.workers, config.executor.shard_size) == ("ray", 8, 3)
    assert read_config(apply_overrides(plain, profile.overrides())).executor.max_workers == 4


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    ours = ("METATRAIN_PROFILES", "XDG_CONFIG_HOME", "RAY_API_SERVER_ADDRESS")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", *ours):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_a_token_is_looked_for_where_ray_looks_and_the_profile_s_first(home: Path, monkeypatch) -> None:
    def found(**one: str) -> str | None:
        token = find_token(Profile(**one))
        return token.text if token else None

    assert found() is None
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("of the home\n")
    assert found() == "of the home"
    (home / "file").write_text("of a file")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "file"))
    assert found() == "of a file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the environment")
    assert found() == "of the environment"
    assert found(token_file="~/file") == "of a file"
    assert found(token="of the profile") == "of the profile"


def test_files_of_profiles_are_found_at_home_and_here_when_they_are_named(home: Path, monkeypatch, capsys) -> None:
    assert read_profile(None, None) == Profile()
    with pytest.raises(ValueError, match=r"write profiles\.yaml"):
        read_profile("lab", None)
    at_home = home / ".config" / "metatrain" / "profiles.yaml"
    at_home.parent.mkdir(parents=True)
    for file, address, other in ((Path("profiles.yaml"), "http://here", "c"), (at_home, "http://home", "b")):
        file.write_text(yaml.safe_dump({"default": "a", "profiles": {"a": {"address": address}, other: {}}}))
    assert read_profile(None, None).address == "http://home"
    assert read_profile("a", None).address == "http://home"  # a folder's file does not hide one's own
    assert read_profile("b", None) == read_profile("c", None) == Profile()
    assert read_profile("a", Path("profiles.yaml")).address == "http://here"
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("METATRAIN_PROFILES", "profiles.yaml")
    assert read_profile(None, None).address == "http://here"


def test_the_file_of_a_folder_decides_nothing_unasked(home: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    one = {"address": "http://stranger:8265", "env": {"X": "${AWS_SECRET_ACCESS_KEY}"}}
    Path("profiles.yaml").write_text(yaml.safe_dump({"profiles": {"lab": one}}))
    with pytest.raises(
        ValueError, match=r"'lab' of profiles\.yaml is set aside.*http://stranger:8265; use --profile lab"
    ):
        read_profile(None, None)
    assert read_profile(None, None, "http://mine:8265") == Profile()
    assert "is set aside: it is for http://stranger:8265" in capsys.readouterr().err
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://mine:8265")
    assert read_profile(None, None) == Profile()
    assert "whose file may be anybody's" in capsys.readouterr().err
    assert read_profile("lab", None).address == read_profile(None, None, "stranger:8265").address == one["address"]
    (home / ".config" / "metatrain").mkdir(parents=True)
    (home / ".config" / "metatrain" / "profiles.yaml").write_text("profiles: {own: {address: http://own:8265}}")
    assert read_profile(None, None).address == "http://own:8265"


def test_an_address_holds_no_variable(home: Path, monkeypatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    the_default(address="http://stranger:8265/${AWS_SECRET_ACCESS_KEY}")
    for name in ("a", None):
        with pytest.raises(ValueError, match=r"profile 'a', address: .*: holds a variable.*write the address out"):
            read_profile(name, None)


def test_variables_are_filled_in(home: Path, monkeypatch) -> None:
    monkeypatch.setenv("WHO", "ada")
    monkeypatch.setenv("N", "8")
    one = {
        "address": "http://lab:8265",
        "token": "${WHO}",
        "env": {"A": "${WHO}", "B": "$WHO", "C": "${N}"},
        "settings": {"runs": {"root": "s3://lab/${WHO}"}, "executor.workers": "${N}"},
    }
    Path("profiles.yaml").write_text(yaml.safe_dump({"profiles": {"a": one}}))  # the only one
    profile = read_profile(None, Path("profiles.yaml"))
    assert (profile.address, profile.token) == ("http://lab:8265", "ada")
    assert profile.expand_env() == {"A": "ada", "B": "$WHO", "C": "8"}
    assert profile.overrides() == ["executor.workers=8", "runs.root=s3://lab/ada"]


def own_file() -> Path:
    return Path("~/.config/metatrain/profiles.yaml").expanduser()


def the_default(**one: object) -> None:
    own_file().parent.mkdir(parents=True, exist_ok=True)
    own_file().write_text(yaml.safe_dump({"default": "a", "profiles": {"a": one}}))


def test_a_default_profile_is_for_its_own_address_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    the_default(address="http://lab:8265", token="${PATH}")
    assert read_profile(None, None, "http://lab:8265").token is not None
    assert read_profile("a", None, "http://elsewhere:8265").token is not None
    assert capsys.readouterr().err == ""
    assert read_profile(None, None, "http://elsewhere:8265") == Profile()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"profile 'a' of {own_file()} is set aside: it is for http://lab:8265" in line
    assert "use --profile a" in line


@pytest.mark.parametrize("own", ["http://lab:8265", "lab:8265", "http://lab:8265/"])
@pytest.mark.parametrize("named", ["http://lab:8265/", "lab:8265", "HTTP://Lab:8265"])
def test_its_address_may_be_spelled_otherwise(home: Path, own: str, named: str) -> None:
    the_default(address=own, token="${PATH}")
    assert read_profile(None, None, named).token is not None


@pytest.mark.parametrize("token", [{"token": "${PATH}"}, {"token_file": "/t"}], ids=["token", "token_file"])
@pytest.mark.parametrize("address", [{}, {"address": ""}], ids=["none", "empty"])
def test_a_token_without_an_address_goes_to_none_that_others_name(
    home: Path, monkeypatch, capsys: pytest.CaptureFixture[str], token: dict[str, str], address: dict[str, str]
) -> None:
    the_default(**token, **address)
    assert read_profile(None, None) != Profile()  # for this machine's own
    assert read_profile("a", None, "http://lab:8265") != Profile()
    assert capsys.readouterr().err == ""
    assert read_profile(None, None, "http://lab:8265") == Profile()
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:8265")
    assert read_profile(None, None) == Profile()
    told = capsys.readouterr().err.splitlines()
    assert ["a token but no address" in line for line in told] == [True, True]
    assert "http://elsewhere:8265 is named" in told[1]
    the_default(settings={"executor.name": "ray"})
    assert read_profile(None, None, "http://lab:8265").settings


@pytest.mark.parametrize(
    "name",
    [
        *("MLFLOW_TRACKING_TOKEN", "db_password", "AWS_SECRET_ACCESS_KEY", "API_KEY"),
        *("GCP_CREDENTIALS", "MYSQL_PASSWD", "PGPASS", "REGISTRY_AUTH"),
    ],
)
def test_secrets_of_jobs_are_not_for_everybody_to_read(home: Path, name: str) -> None:
    the_default(env={name: "0123"})
    own_file().chmod(0o644)
    with pytest.raises(ValueError, match=rf"everybody can read it, and profiles\.a\.env\.{name} .* chmod o-r"):
        read_profile(None, None)
    own_file().chmod(0o600)
    assert read_profile(None, None).env == {name: "0123"}
    the_default(env={name: "${PATH}", f"{name}_FILE": "/run/secret", "REGION": "us-west-2", "AUTHOR": "ada"})
    own_file().chmod(0o644)
    assert read_profile(None, None).env[name] == "${PATH}"


def test_files_that_are_read_here_are_known_before_anything_is_sent(home: Path, monkeypatch) -> None:
    monkeypatch.setenv("ROOM", str(home))
    files = {"a": {"token_file": "lab_token"}, "b": {"token_file": "${ROOM}/cloud_token"}, "c": {}}
    Path("team.yaml").write_text(yaml.safe_dump({"default": "a", "profiles": files}))
    here = Path.cwd()
    named = {here / "team.yaml", here / "lab_token", home / "cloud_token", home / ".ray" / "auth_token"}
    assert set(list_secret_files(Path("team.yaml"))) == named
    assert list_secret_files(None) == [home / ".ray" / "auth_token"]
    monkeypatch.setenv("METATRAIN_PROFILES", "team.yaml")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "~/ray_token")
    assert set(list_secret_files(None)) == named | {home / "ray_token"}

"""Secrets in addresses, variables and files: recognised, refused in settings, masked, kept from logs and others."""

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from cluster.token_file import protect_token
from metatrain import job_secrets
from metatrain.cli.profiles import Profile
from metatrain.config.load import read_config
from metatrain.redact import holds_login, is_secret, mask
from metatrain.report.collect import read_text
from metatrain.runs import describe_environment
from metatrain.tracking.mlflow_connection import preflight
from metatrain.yaml_config import apply_overrides, shorten
from tests.configurations import TINY

SECRET = [
    "postgresql://u:p4ss@h/db",
    "postgresql://u:p4@ss@h/db",
    "postgresql://u:p4/ss@h/db",
    "postgresql://:p4ss@h/db",
    "postgresql+psycopg2://h/db?user=u&password=p4ss",
    "mysql://h/d?passwd=p4ss",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BUID%3Du%3BPWD%3Dp4ss",
    "http://p4ss@h:5000",
    "HTTPS://u:p4ss@h:5000/x",
    "https://h/?token=p4ss",
    "https://h/mlflow?api_key=p4ss#x",
    "https://h/x?X-Amz-Signature=p4ss&y=1",
    "s3://KEY:p4ss@bucket/x",
    "ray://u:p4ss@h:10001",
]
PLAIN = [
    "postgresql://u@h/db",
    "postgresql://h/db?sslkey=/home/me/k.pem",
    "mysql://u@h/d?charset=utf8",
    "sqlite:////home/u/mlflow.db",
    "http://[::1]:5000/a@b",
    "https://h:8/u:x@y",
    "https://h/x?monkey=1&tokenizer=gpt",
    "s3://bucket/x",
    "C:/x",
]


@pytest.mark.parametrize("text", SECRET)
def test_a_secret_in_an_address_is_found_and_masked(text):
    assert holds_login(text)
    for around in (text, f"uri: '{text}' is wrong", f'{{"a": "{text}"}}'):
        hidden = mask(around)
        assert "p4" not in hidden and "ss@" not in hidden, hidden


@pytest.mark.parametrize("text", PLAIN)
def test_other_addresses_are_left_as_they_are(text):
    assert not holds_login(text)
    assert "@" in text or mask(text) == text


@pytest.mark.parametrize("text", SECRET)
@pytest.mark.parametrize("key", ["tracking.uri", "tasks.root", "runs.root", "executor.address", "tasks.cache"])
def test_no_setting_takes_a_password(key, text):
    raw = apply_overrides(TINY, [f"{key}='{text}'"])
    if key in ("tasks.root", "tasks.cache"):
        raw["tasks"]["name"] = "omniglot"
    with pytest.raises(ValueError, match=rf"^{key}: has a password.*remove it, and set") as caught:
        read_config(raw)
    assert "p4" not in str(caught.value)


def test_messages_and_records_do_not_repeat_a_password(tmp_path, monkeypatch):
    assert "p4ss" not in shorten({"uri": SECRET[0]})
    for uri in ("foo://u:p4ss@h", "http://u:p4ss@127.0.0.1:9"):
        with pytest.raises((ValueError, OSError)) as caught:
            preflight(uri, 0.1)
        assert "p4ss" not in str(caught.value)
    monkeypatch.setattr(sys, "argv", ["x", f"tracking.uri={SECRET[4]}"])
    assert "p4ss" not in str(describe_environment()["command"])
    old = tmp_path / "config.yaml"
    old.write_text(yaml.safe_dump({"tracking": {"uri": SECRET[4]}, "tasks": {"root": SECRET[12]}}))
    assert "p4ss" not in read_text(old)


def test_names_of_secrets():
    for name in ("AWS_SECRET_ACCESS_KEY", "GCP_CREDENTIALS", "MYSQL_PASSWD", "PGPASS", "BASIC_AUTH", "DB_PASS"):
        assert is_secret(name, "x") and not is_secret(f"{name}_FILE", "/run/x"), name


def test_other_variables_are_none_unless_their_value_is():
    names = (
        "AUTHOR",
        "RAY_AUTH_MODE",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "MLFLOW_TRACKING_USERNAME",
        "COMPASS",
        "REGION",
    )
    assert [name for name in names if is_secret(name, "x")] == []
    assert is_secret("DATABASE_URL", SECRET[0])


def test_secret_variables_of_a_job_go_past_its_runtime_environment(monkeypatch):
    profile = Profile(env={"MLFLOW_TRACKING_PASSWORD": "p4ss", "WHERE": "${LAB_TOKEN}", "USER_NAME": "${USER}"})
    assert profile.secret_names() == ["WHERE"]
    variables = {"MLFLOW_TRACKING_PASSWORD": "p4ss", "WHERE": "p4ss too", "USER_NAME": "ada"}
    open_ones, secrets = job_secrets.split_secrets(variables, profile.secret_names())
    assert open_ones == {"USER_NAME": "ada"} and len(secrets) == 2
    given = {"metadata": {"user": "ada", job_secrets.METADATA: json.dumps(secrets)}, "runtime_env": {}}
    with pytest.MonkeyPatch.context() as patch:
        for name in (*secrets, "METATRAIN_SECRETS"):
            patch.delenv(name, raising=False)
        patch.setattr(os, "environ", {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(given)})
        job_secrets.take_secrets()
        assert os.environ["WHERE"] == "p4ss too" and job_secrets.held_secrets() == secrets
        assert "p4ss" not in os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"]  # Ray passes it on
        job_secrets.take_secrets()
        assert job_secrets.held_secrets() == secrets


@pytest.mark.parametrize("there", [False, True])
def test_rays_token_is_not_for_everybody_to_read(tmp_path, monkeypatch, there):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    token = Path(tmp_path / ".ray" / "auth_token")
    if there:
        token.parent.mkdir()
        token.write_text("of Ray")
        token.chmod(0o644)
    protect_token()
    assert token.stat().st_mode & 0o777 == 0o600 and token.parent.stat().st_mode & 0o777 == 0o700
    assert (token.read_text() == "of Ray") is there and len(token.read_text()) > 5
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("HOME", str(tmp_path / "other"))
    protect_token()
    assert not (tmp_path / "other").exists()

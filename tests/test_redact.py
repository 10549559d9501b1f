"""Secrets in addresses and variables: recognised, refused in settings, masked in messages and records."""

import sys

import pytest
import yaml

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

"""What reading many runs costs, counted."""

import pytest
import yaml

from metatrain.yaml_config import dump_yaml, parse_yaml
from tests.configurations import TINY


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="this PyYAML was built without libyaml")
def test_a_configuration_is_not_split_by_python_code(monkeypatch):
    def refuse(*_):
        raise AssertionError("PyYAML's own scanner takes most of the time of a report of many runs")

    monkeypatch.setattr(yaml.scanner.Scanner, "fetch_more_tokens", refuse)
    assert parse_yaml(dump_yaml(TINY), "tiny") == TINY

"""A search as a job on somebody else's cluster."""

import json
from pathlib import Path

import pytest
import yaml

from tests.person import a_person
from tests.searches import TINY_SEARCH, journal

pytestmark = pytest.mark.ray


@pytest.mark.slow
def test_a_search_is_submitted(head, tmp_path):
    with a_person(head, tmp_path) as person:
        document = {**TINY_SEARCH, "search": {**TINY_SEARCH["search"], "trials": 2}}
        (person.folder / "search.yaml").write_text(yaml.safe_dump(document))
        done = person("submit", "--follow", "--", "search", "search.yaml", "--json")
        assert done.code == 0, done.err + done.out
        found = json.loads(next(line for line in reversed(done.out.splitlines()) if line.startswith("{")))
        place = Path(found["place"])
        assert found["trials"] == 2 and place.parent == person.runs
        assert len([event for event in journal(place) if event["event"] == "began"]) == 2
        (job,) = person.jobs()
        told = person("status", job)
        assert "2 trials" in told.out and str(place) in told.out
        there = person("status", str(place))
        assert "NOT RUNNING" in there.out and "best mse" in there.out
        refused = person("submit", "--", "search", "search.yaml", "space.outer.lr=3")
        assert refused.code == 2 and "space" in refused.err

"""What a crash leaves: a journal torn at every byte, another search's, a damaged one."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conformance_searchers import searched, spec_of
from tune.history.journal import Journal, replay
from tune.searchers.random_search import RandomSearch
from tune.study import Study, StudySpec


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("search") / "journal.jsonl"
    searched(spec_of(RandomSearch(), trials=12), path)
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1), st.sampled_from([b"", b"\0" * 7, b"{", b"\n", b'{"event": "began"\n']))
def test_torn_at_any_byte_it_goes_on_as_if_it_had_not_been(whole, tmp_path, share, rubbish):
    """Also where the file system left something else at the torn end."""
    written = whole.read_bytes()
    kept = int(share * len(written))
    torn = rubbish if rubbish != b"\n" or not written[:kept].endswith(b"\n") else b""
    path = tmp_path / "torn.jsonl"
    path.write_bytes(written[:kept] + torn)
    searched(spec_of(RandomSearch(), trials=12), path)
    assert path.read_bytes() == written


def test_torn_at_every_byte_what_is_left_are_the_whole_lines(whole, tmp_path):
    written = b"".join(whole.read_bytes().splitlines(keepends=True)[:5])
    path = tmp_path / "torn.jsonl"
    header = spec_of(RandomSearch(), trials=12).journal_header()
    for kept in range(len(written) + 1):
        path.write_bytes(written[:kept])
        journal = Journal(path, header)
        journal.close()
        lines = written[:kept].count(b"\n")
        assert len(journal.events) == max(lines - 1, 0)
        expected = b"".join(written.splitlines(keepends=True)[: max(lines, 1)])
        assert path.read_bytes() == expected


def test_lines_are_on_the_disk_before_anyone_acts(tmp_path, monkeypatch):
    """At each fsync the file holds what the caller is about to be told."""
    synced: list[bytes] = []
    path = tmp_path / "journal.jsonl"
    monkeypatch.setattr("tune.history.journal.os.fsync", lambda number: synced.append(path.read_bytes()))
    with Study(spec_of(RandomSearch()), path) as search:
        trial = search.next_trial()
        assert json.loads(synced[-1].splitlines()[-1])["configuration"] == trial.configuration
        search.report(0, 1, 0.5)
        assert json.loads(synced[-1].splitlines()[-1])["value"] == 0.5
        search.fail(0, "lost")
        assert json.loads(synced[-1].splitlines()[-1])["reason"] == "lost"
    assert path.read_bytes() == synced[-1]


def test_replaying_gives_the_history(tmp_path):
    path = tmp_path / "journal.jsonl"
    spec = spec_of(RandomSearch(), trials=30)
    searched(spec, path)
    with Study(spec, path) as search:
        assert search.history == replay("min", search._journal.events)
        again = search.history
    with Study(spec, path) as search:
        assert search.history == again
        assert {trial.status for trial in again.trials} == {"stopped", "completed", "failed", "nan"}


def test_another_searchs_journal_is_refused_with_the_remedy(whole, tmp_path):
    path = tmp_path / "journal.jsonl"
    spec = spec_of(RandomSearch(), trials=12)
    for change, wrong in (
        (
            {"seed": 7},
            "is another search's: its seed is 0, not 7: set it so to go on, or search in another folder",
        ),
        ({"metric": "accuracy"}, "its metric is 'loss', not 'accuracy': set it so"),
        ({"mode": "max"}, "its mode is 'min', not 'max': set it so"),
    ):
        path.write_bytes(whole.read_bytes())
        with pytest.raises(ValueError, match=wrong):
            Study(StudySpec(**{**vars(spec), **change}), path)
        assert path.read_bytes() == whole.read_bytes()
    path.write_bytes(whole.read_bytes().replace(b'"format": 1', b'"format": 2', 1))
    with pytest.raises(ValueError, match="is of format 2, this is metatrain's 1: update metatrain"):
        Study(spec, path)


def test_a_damaged_line_within_is_refused(whole, tmp_path):
    path = tmp_path / "journal.jsonl"
    lines = whole.read_bytes().splitlines(keepends=True)
    for damage, wrong in (
        (b"rubbish\n", "line 3: not a JSON object: restore the file"),
        (b'{"event": "sung", "trial": 0}\n', "line 3: 'event' has none of its values: restore the file"),
        (b'{"event": "result", "trial": 99, "budget": 1, "value": 1, "status": "running"}\n', "line 3: .*not follow"),
    ):
        path.write_bytes(b"".join([*lines[:2], damage, *lines[3:]]))
        with pytest.raises(ValueError, match=wrong):
            Study(spec_of(RandomSearch(), trials=12), path)

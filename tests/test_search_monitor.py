"""What a search tells of itself while it runs."""

import json
import math
from pathlib import Path

from metatrain.runs import create_run
from tests.object_store import free_port
from tests.searches import tiny_search
from tune.monitor import Clock, Monitor, SearchStatus
from tune.study import Study


def begun(folder: Path) -> Study:
    return Study(tiny_search("search.method=random").study_spec(), folder / "journal.jsonl")


def test_the_clock_goes_on_after_a_pause_and_a_crash(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with begun(tmp_path) as search:
        clock = Clock(tmp_path)
        search.next_trial()
        now[0] += 10
        clock.note()
        now[0] += 200
        clock.note(last=True)
    lines = (tmp_path / "clock.jsonl").read_text()
    (tmp_path / "clock.jsonl").write_text(lines + '{"event": 2, "sec')
    now[0] += 5000
    with begun(tmp_path) as search:
        clock = Clock(tmp_path)
        assert math.isclose(clock.seconds, 210)
        search.report(0, 27, 1.0)
        now[0] += 1
        clock.note()
    events = [json.loads(line) for line in (tmp_path / "clock.jsonl").read_text().splitlines()]
    assert [(event["event"], event["seconds"]) for event in events] == [(1, 10.0), (1, 210.0), (2, 211.0)]


def test_the_clock_reads_each_line_of_the_journal_once(tmp_path):
    journal = tmp_path / "journal.jsonl"
    journal.write_text("header\nfirst\nsecond\n")
    clock = Clock(tmp_path)
    clock.note()
    assert clock.events == 2
    journal.write_text("x" * journal.stat().st_size + "third\n")
    clock.note()
    clock.note(last=True)
    assert clock.events == 3


def test_a_line_says_where_a_search_stands(tmp_path):
    search_settings = tiny_search("search.method=random", "search.trials=4", "search.minutes=30").search
    with begun(tmp_path) as search:
        for value in (2.0, 0.5):
            search.report(search.next_trial().number, 27, value)
        search.fail(search.next_trial().number, "out of memory")
        search.next_trial()
        standing = SearchStatus(search.history, search_settings.metric, 4, 30, 60.0)
    assert standing.progress() == (3, 4)
    said = (
        "1:00, at most 29:00 left · 4 trials, 1 running, 1 failed · steps: 2 to 27 · best mse 0.5 by trial 1 at step 27"
    )
    assert standing.text() == said


def test_mlflow_being_away_ends_nothing_and_is_said_once(tmp_path, capsys):
    document = tiny_search("search.method=random", f"tracking.uri=http://127.0.0.1:{free_port()}")
    home = create_run(tmp_path, "far", document.to_yaml(), {})
    with begun(home.path) as search:
        monitor = Monitor(home, document)
        search.next_trial()
        for _ in range(5):
            monitor.update(search.history)
        monitor.close(search.history, "finished")
    assert capsys.readouterr().err.count("not in MLflow yet") == 1

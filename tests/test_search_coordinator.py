"""Who is begun next, and what becomes of a trial whose process was lost."""

import pytest

from metatrain.errors import WorkersLost
from tests.searches import journal, tiny_search
from tune.execution.coordinator import Desk
from tune.execution.trial import Report
from tune.study import Search


@pytest.fixture
def desk(tmp_path):
    """Of a search of two trials at a time, whose trials are begun again once."""
    plan = tiny_search("search.method=random", "search.trials=3").plan()
    with Search(plan, tmp_path / "journal.jsonl") as search:
        yield Desk(search, lambda trial: trial, lambda: None, at_once=2, retries=1)


def begun(desk):
    """The number of the next trial, which has a process from now on; None where there is none for the time being."""
    trial = desk.next()
    if trial is not None:
        desk.running[f"tune {trial.number}"] = trial.number
    return None if trial is None else trial.number


def lost(desk, number, error):
    """Its process is gone."""
    desk.broke(number, error)
    desk.running.pop(f"tune {number}", None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(KeyError("momentum"), "KeyError: 'momentum' (2 times)"), (None, "its process ended (2 times)")],
)
def test_what_nobody_foresaw_is_the_trials_own_after_its_retries(desk, monkeypatch, error, reason):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    assert [begun(desk), begun(desk), begun(desk)] == [0, 1, None]
    lost(desk, 0, error)
    assert begun(desk) is None, "its place is kept for it, after a pause"
    now[0] += 6
    assert begun(desk) == 0
    lost(desk, 0, error)
    assert (desk.search.history.trial(0).status, desk.search.history.trial(0).reason) == ("failed", reason)
    assert begun(desk) == 2 and not desk.closing.is_set()


@pytest.mark.parametrize("error", [OSError("no answer"), ValueError("torch sees no GPU"), WorkersLost("no answer")])
def test_what_others_would_lack_too_ends_the_session_and_no_trial(desk, tmp_path, error):
    begun(desk)
    for _ in range(2):
        lost(desk, 0, error)
    assert desk.trouble == f"{error} (2 times)" and desk.closing.is_set()
    assert [event["event"] for event in journal(tmp_path)] == ["began"]


def test_a_result_forgives_what_was_lost_before(desk):
    begun(desk)
    lost(desk, 0, None)
    desk.heard(0, Report(27, 1.0))
    assert desk.lost[0] == 0 and desk.search.history.trial(0).status == "completed"


def test_settings_that_do_not_go_together_take_nobodys_place(desk):
    def assign(trial):
        if trial.number == 0:
            raise ValueError("outer.momentum: adam has none")
        return trial

    desk.assign = assign
    assert begun(desk) == 1
    assert desk.search.history.trial(0).status == "unfit"

"""Who is begun next, and what becomes of a trial whose process was lost."""

import pytest

from metatrain.errors import WorkersLost
from tests.searches import journal, tiny_search
from tune.execution.coordinator import Coordinator
from tune.execution.trial import TrialReport
from tune.study import Study


@pytest.fixture
def coordinator(tmp_path):
    """Of a search of two trials at a time, whose trials are begun again once."""
    spec = tiny_search("search.method=random", "search.trials=3").study_spec()
    with Study(spec, tmp_path / "journal.jsonl") as search:
        yield Coordinator(search, lambda trial: trial, lambda: None, at_once=2, retries=1)


def begun(coordinator):
    """The number of the next trial, which has a process from now on; None where there is none for the time being."""
    trial = coordinator.next_spec()
    if trial is not None:
        coordinator.running[f"tune {trial.number}"] = trial.number
    return None if trial is None else trial.number


def lost(coordinator, number, error):
    """Its process is gone."""
    coordinator.handle_lost_process(number, error)
    coordinator.running.pop(f"tune {number}", None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(KeyError("momentum"), "KeyError: 'momentum' (2 times)"), (None, "its process ended (2 times)")],
)
def test_what_nobody_foresaw_is_the_trials_own_after_its_retries(coordinator, monkeypatch, error, reason):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    assert [begun(coordinator), begun(coordinator), begun(coordinator)] == [0, 1, None]
    lost(coordinator, 0, error)
    assert begun(coordinator) is None, "its place is kept for it, after a pause"
    now[0] += 6
    assert begun(coordinator) == 0
    lost(coordinator, 0, error)
    assert (coordinator.search.history.trial(0).status, coordinator.search.history.trial(0).reason) == (
        "failed",
        reason,
    )
    assert begun(coordinator) == 2 and not coordinator.closing.is_set()


@pytest.mark.parametrize("error", [OSError("no answer"), ValueError("torch sees no GPU"), WorkersLost("no answer")])
def test_what_others_would_lack_too_ends_the_session_and_no_trial(coordinator, tmp_path, error):
    begun(coordinator)
    for _ in range(2):
        lost(coordinator, 0, error)
    assert coordinator.failure == f"{error} (2 times)" and coordinator.closing.is_set()
    assert [event["event"] for event in journal(tmp_path)] == ["began"]


def test_a_result_forgives_what_was_lost_before(coordinator):
    begun(coordinator)
    lost(coordinator, 0, None)
    coordinator.handle_report(0, TrialReport(27, 1.0))
    assert coordinator.lost[0] == 0 and coordinator.search.history.trial(0).status == "completed"


def test_settings_that_do_not_go_together_take_nobodys_place(coordinator):
    def make_spec(trial):
        if trial.number == 0:
            raise ValueError("outer.momentum: adam has none")
        return trial

    coordinator.make_spec = make_spec
    assert begun(coordinator) == 1
    assert coordinator.search.history.trial(0).status == "unfit"

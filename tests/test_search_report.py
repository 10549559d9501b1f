"""What is read from a search's folder, and what is concluded from it."""

import json
import math
import os
import stat
from contextlib import closing
from itertools import pairwise

import pytest

from metatrain import runs
from tests.search_folders import empty_search, finished_search, multi_objective_search, population_search, spec
from tune.history.journal import Journal
from tune.history.trials import History, Trial
from tune.report.analysis import ancestry, compare_costs, list_improvements, rank_trials, summarize_rungs
from tune.report.collect import collect
from tune.report.importance import importances, level
from tune.report.text import edges, failures, format_duration, summary
from tune.searchers.random_search import RandomSearch
from tune.space.search_space import read_space
from tune.study import Study
from tune.transfer.prior_studies import Observation, PriorStudies, PriorStudy


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> runs.Run:
    return finished_search(tmp_path_factory.mktemp("searches") / "whole")


def history(values: dict[int, list[tuple[int, float]]], mode="min") -> History:
    """Trials that report what is given, in the order in which it is given."""
    found = History(mode)
    for number in values:
        found = found.with_trial(Trial(number, {"x": number / 10}))
    for number, results in values.items():
        for budget, value in results:
            found = found.with_result(number, budget, value)
    return found


def test_the_story_is_what_the_search_knew(whole):
    story = collect(whole)
    with Study(spec(), whole.path / "journal.jsonl") as search:
        assert story.history == search.history
        assert story.space == search.spec.space
    assert (story.search_id, story.name, story.metric, story.method) == (
        "whole",
        "rates",
        "validation/accuracy",
        "bohb",
    )
    assert story.settings["search.trials"] == 40
    assert story.owner is None
    assert len(story.seconds) == len(story.history.result_order)
    assert list(story.seconds) == sorted(story.seconds)
    assert story.seconds[0] == 5.0, "the second event of the journal is the first result"
    assert story.spent > story.seconds[-1] - 1


def test_reading_a_search_changes_nothing_and_asks_for_no_lock(tmp_path):
    home = finished_search(tmp_path / "search", 6)
    journal = home.path / "journal.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"event": "began", "tri')
    before = {path: path.read_bytes() for path in home.path.rglob("*") if path.is_file()}
    for path in (*before, home.path):
        path.chmod(stat.S_IRUSR | (stat.S_IXUSR if path.is_dir() else 0))
    story = collect(home)
    home.path.chmod(stat.S_IRWXU)
    assert len(story.history.trials) == 6
    assert {path: path.read_bytes() for path in home.path.rglob("*") if path.is_file()} == before


def test_a_search_that_runs_is_read_while_its_owner_writes(tmp_path):
    home = finished_search(tmp_path / "search", 4)
    with runs.lock_run(home), Study(spec(trials=9), home.path / "journal.jsonl") as search:
        search.next_trial()
        story = collect(home)
        assert len(story.history.running) == 1
        assert str(os.getpid()) in story.owner
        search.report(4, 100, 0.5)
    assert collect(home).owner is None


def test_a_torn_line_is_left_out_and_a_damaged_one_named(tmp_path):
    home = finished_search(tmp_path / "search", 4)
    journal = home.path / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + b'{"event": "resu\n')
    assert len(collect(home).history.result_order) == len([line for line in lines[:-1] if b'"result"' in line])
    journal.write_bytes(b"".join([*lines[:3], b"what?\n", *lines[3:]]))
    with pytest.raises(ValueError, match=r"journal.jsonl, line 4: not a JSON object: restore that file or search in"):
        collect(home)
    journal.write_bytes(lines[0] + lines[0].replace(b"{", b'{"event": "result", "trial": 3, ', 1))
    with pytest.raises(ValueError, match=r"journal.jsonl, line 2: 'budget' is missing: restore the file"):
        collect(home)
    journal.write_bytes(lines[0].replace(b'"format": 1', b'"format": 9'))
    with pytest.raises(ValueError, match="is not of format 1: report with the metatrain that searched"):
        collect(home)


def test_a_clock_may_be_shorter_or_missing_but_not_nonsense(tmp_path):
    home = finished_search(tmp_path / "search", 4)
    clock = home.path / "clock.jsonl"
    clock.write_text("".join(clock.read_text().splitlines(keepends=True)[:3]) + '{"event": 4, "sec')
    story = collect(home)
    assert not math.isnan(story.seconds[0]) and math.isnan(story.seconds[-1])
    assert story.spent == 7.5
    clock.unlink()
    assert math.isnan(collect(home).spent)
    clock.write_text('{"event": 1}\n')
    with pytest.raises(ValueError, match=r"clock.jsonl: a line: 'seconds' is missing: remove that file"):
        collect(home)


def test_a_run_is_no_search_and_logins_stay_at_home(tmp_path):
    home = empty_search(tmp_path / "search", warm_start=["https://me:secret@example.org/x"])
    (home.path / "best.yaml").write_text("tracking: {uri: 'https://me:secret@example.org'}\n")
    story = collect(home)
    assert "secret" not in repr(story)
    assert "https://example.org/x" in story.document
    home.config.write_text("outer: {lr: 1}\n")
    with pytest.raises(ValueError, match="search: is missing, so this is no search: use the folder of a search"):
        collect(home)


def test_experience_is_read_with_its_weights(tmp_path):
    home = empty_search(tmp_path / "search")
    runs.write_json(
        home.path / "experience.json",
        PriorStudies((PriorStudy("omniglot", 0.75, (Observation({"outer.lr": 0.1}, 1.0, 0.0),)),)).to_plain(),
    )
    assert collect(home).experience == (("omniglot", 0.75, 1),)
    (home.path / "experience.json").write_text(json.dumps({"sources": [{"name": "omniglot"}]}))
    with pytest.raises(ValueError, match=r"experience.json: names no sources with weights and observations"):
        collect(home)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_who_went_further_ranks_before_who_is_better(mode):
    sign = 1 if mode == "min" else -1
    results = {0: [(1, 0.1)], 1: [(1, 3), (3, 2)], 2: [(1, 3), (3, 1)], 3: []}
    seen = history({number: [(at, sign * value) for at, value in each] for number, each in results.items()}, mode)
    assert [trial.number for trial in rank_trials(seen)] == [2, 1, 0, 3]
    assert rank_trials(seen)[0] is seen.best()


def test_the_anytime_curve_only_rises_and_counts_every_step(whole):
    story = collect(whole)
    found, steps = list_improvements(story)
    assert steps == story.history.steps
    values = [lead.value for lead in found]
    assert values == sorted(set(values))
    assert values[-1] == max(value for trial in story.history.trials for _, value in trial.results)
    assert found[0].steps == 100
    assert all(before.steps < after.steps for before, after in pairwise(found))


def test_copies_pay_for_their_own_steps_only(tmp_path):
    story = collect(population_search(tmp_path / "search"))
    assert (
        list_improvements(story)[1] == story.history.steps == sum(rung.steps for rung in summarize_rungs(story.history))
    )
    copy = next(trial for trial in reversed(story.history.trials) if trial.parent is not None)
    chain = ancestry(story.history, copy.number)
    assert chain[0].parent is None and chain[-1] is copy
    assert [trial.number for trial in chain[:-1]] == [trial.parent for trial in chain[1:]]


def test_rungs_tell_who_came_who_went_on_and_what_it_cost():
    seen = history({0: [(1, 5.0), (3, 4.0)], 1: [(1, 6.0)], 2: [(1, 1.0), (3, 2.0), (9, 1.5)], 3: [(1, 9.0)]})
    seen = seen.with_end(1, "stopped").with_end(2, "completed").with_end(0, "stopped")
    rows = [
        (rung.budget, rung.trials, rung.steps, rung.went_on, rung.running, rung.best) for rung in summarize_rungs(seen)
    ]
    assert rows == [(1, 4, 4, 2, 1, 1.0), (3, 2, 4, 1, 0, 2.0), (9, 1, 6, 0, 0, 1.5)]


def test_what_is_weighed_marks_the_front(tmp_path):
    story = collect(multi_objective_search(tmp_path / "search"))
    rows = compare_costs(story.history)
    assert {row.trial.budget for row in rows} == {900}
    assert 1 < sum(row.on_front for row in rows) < len(rows)
    for row in rows:
        mine = (row.value, -row.costs[0])
        theirs = [(other.value, -other.costs[0]) for other in rows]
        beaten = any(value >= mine[0] and cost >= mine[1] and (value, cost) != mine for value, cost in theirs)
        assert row.on_front is not beaten
    assert [row.value for row in rows] == sorted((row.value for row in rows), reverse=True)


def test_importance_finds_what_matters_and_not_what_does_not(tmp_path):
    for seed in range(3):
        home = finished_search(tmp_path / str(seed), 120, searcher=RandomSearch(), seed=seed)
        story = collect(home)
        found = importances(story.space, story.history)
        assert found.budget == level(story.history) == 100, "those that came further were chosen"
        assert (found.observations, found.best) == (109, 11)
        assert found.parameters[0].name == "algorithm.inner_lr" and found.parameters[0].clear
        shares = {one.name: one for one in found.parameters}
        assert not shares["outer.lr"].clear
        assert sum(one.share for one in found.parameters) == pytest.approx(1)
        wide = ["model.width" in trial.configuration for trial in story.history.trials if trial.results]
        assert shares["model.width"].observations == sum(wide) < 109
        assert found == importances(story.space, story.history), "chance is drawn once and for all"


@pytest.mark.parametrize("mode", ["min", "max"])
def test_importance_looks_at_the_better_end(mode):
    space = read_space({"x": "uniform(0, 1)", "y": "uniform(0, 1)"})
    seen, sign = History(mode), 1 if mode == "min" else -1
    for number in range(60):
        # x matters to the good ones, y to the bad ones.
        x, y = number % 10 / 10, number // 10 / 10
        seen = seen.with_trial(Trial(number, {"x": x, "y": y}))
        seen = seen.with_result(number, 1, sign * (x if x < 0.2 else 1 + 5 * y))
    found = importances(space, seen)
    assert found.parameters[0].name == "x" and found.parameters[0].share > 0.9


@pytest.mark.parametrize("count", [0, 1, 9])
def test_too_few_say_nothing(count):
    space = read_space({"x": "uniform(0, 1)"})
    assert importances(space, history({number: [(1, float(number))] for number in range(count)})) is None
    assert importances(space, history({number: [(1, 2.0)] for number in range(30)})) is None, "all are equal"
    assert importances(space, history({number: [(1, number / 7)] for number in range(10)})) is not None


def test_the_sentences_count_right(tmp_path, whole):
    story = collect(whole)
    said = " ".join(summary(story)).replace("\N{NO-BREAK SPACE}", " ").replace("\N{NARROW NO-BREAK SPACE}", " ")
    best = story.history.best()
    assert f"The best is trial {best.number}: {100 * best.results[-1][1]:.2f} % after 900 steps." in said
    counts = [sum(trial.status == status for trial in story.history.trials) for status in ("completed", "stopped")]
    assert f"Of 40 trials {counts[0]} had the whole budget, {counts[1]} were stopped early and 4 failed." in said
    assert failures(story)[0] == ("CUDA out of memory: 3 GiB were asked for", 3, 29)
    assert failures(story)[1][0] == "the value became nan at step 300"
    assert "no trial has begun yet" in summary(collect(empty_search(tmp_path / "none")))[0]
    assert [format_duration(seconds) for seconds in (2.5, 47.9, 200, 7500)] == [
        "2.5 s",
        "48 s",
        "3 min 20 s",
        "2 h 05 min",
    ]


@pytest.mark.parametrize(("rate", "said"), [(1.1e-4, ["outer.lr = 0.00011 lies at the lower end"]), (3e-3, [])])
def test_a_best_value_at_the_edge_is_pointed_out(tmp_path, rate, said):
    home = empty_search(tmp_path / "search", {"outer.lr": "loguniform(1e-4, 1e-1)"})
    header = spec({"outer.lr": "loguniform(1e-4, 1e-1)"}).journal_header()
    with closing(Journal(home.path / "journal.jsonl", header)) as journal:
        began = {"event": "began", "trial": 0, "configuration": {"outer.lr": rate}, "parent": None, "start": 0}
        journal.append(began)
        journal.append({"event": "result", "trial": 0, "budget": 100, "value": 0.5, "status": "running"})
    assert [line.split(" of")[0] for line in edges(collect(home))] == said

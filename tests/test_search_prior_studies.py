"""What earlier searches and runs tell: read from a real MLflow, ranked, and brought into the present space."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from benchmarks.search_experience import transform_task
from benchmarks.search_objectives import OBJECTIVES
from metatrain.config.load import as_plain
from metatrain.tracking.mlflow_recorder import MLflowRecorder
from metatrain.yaml_config import dump_yaml
from tests.configurations import tiny
from tune.history.trials import History, Trial
from tune.schedulers.asha import ASHA
from tune.searchers.random_search import RandomSearch
from tune.space.search_space import read_space
from tune.study import Study, StudySpec
from tune.transfer.prior_studies import (
    MAX_OBSERVATIONS,
    Observation,
    PriorStudies,
    PriorStudy,
    gather_prior_studies,
    project_configuration,
    read_prior_studies,
    summarize_study,
)
from tune.transfer.task_similarity import signature_from_settings

SPACE = read_space(
    {
        "algorithm.inner_lr": "loguniform(1e-3, 1)",
        "model": "choice({name: conv4}, {name: conv4, width: 8}, {name: resnet12})",
        "model.width": {"from": "int(4, 64)", "when": {"model": {"name": "conv4"}}},
        "outer.momentum": "uniform(0, 0.9)",
    }
)
RATE = read_space({"algorithm.inner_lr": "loguniform(1e-3, 1)"})
TASKS = as_plain(tiny())["tasks"]
HERE = signature_from_settings(TASKS)
METRIC = "validation/accuracy"


def document(**changes: Any) -> dict[str, Any]:
    return {**as_plain(tiny()), **changes}


def history_of(*values: dict[int, float]) -> History:
    """A trial for each, {budget: value}; rates 0.01, 0.02, …"""
    history = History()
    for number, results in enumerate(values):
        history = history.with_trial(Trial(number, {"algorithm.inner_lr": (number + 1) / 100}))
        for budget, value in results.items():
            history = history.with_result(number, budget, value)
        history = history.with_end(number, "stopped" if results else "failed")
    return history


def told(history: History, space: Any = RATE, whole: int = 9) -> PriorStudy:
    found = summarize_study("earlier", 0.5, history, whole, space, {})
    assert found is not None
    return found


def test_trials_are_ranked_at_the_highest_budget_that_two_of_them_reached():
    """The first came early and went to the end, though it was the worst of all at the first rung."""
    source = told(history_of({1: 9.0, 3: 8.0, 9: 7.0}, {1: 2.0, 3: 3.0}, {1: 3.0, 3: 2.0}, {1: 4.0}, {}))
    rates = [one.configuration["algorithm.inner_lr"] for one in source.observations]
    assert rates == [0.03, 0.02, 0.04, 0.01, 0.05]
    assert [one.quantile for one in source.observations] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [one.share for one in source.observations] == [3 / 9, 3 / 9, 1 / 9, 1.0, 0.0]
    assert source.best().configuration == {"algorithm.inner_lr": 0.01}, "the best of those that went furthest"


def test_scales_of_losses_do_not_matter():
    values = [3.0, 1.0, 2.0]
    small, large = (told(history_of(*({9: scale * value + 5} for value in values))) for scale in (1e-6, 1e6))
    assert small == large


def test_what_is_large_is_good_where_the_metric_is_to_be_large():
    history = History("max")
    for number, value in enumerate((0.5, 0.9, 0.7)):
        history = history.with_trial(Trial(number, {"algorithm.inner_lr": (number + 1) / 100})).with_result(
            number, 9, value
        )
    assert told(history).best().configuration == {"algorithm.inner_lr": 0.02}


def test_a_search_without_results_tells_nothing():
    assert summarize_study("earlier", 1.0, history_of({}, {}), 9, RATE, {}) is None
    assert (
        summarize_study("earlier", 1.0, history_of({9: 1.0}), 9, read_space({"outer.lr": "uniform(0, 1)"}), {}) is None
    )


def test_many_observations_are_thinned_evenly_by_rank():
    source = told(_many())
    quantiles = [one.quantile for one in source.observations]
    assert len(quantiles) == MAX_OBSERVATIONS and quantiles == sorted(quantiles)
    assert quantiles[0] == 0.0 and quantiles[-1] == 1.0 and abs(quantiles[MAX_OBSERVATIONS // 2] - 0.5) < 0.02


def _many() -> History:
    history = History()
    for number in range(350):
        trial = Trial(number, {"algorithm.inner_lr": 0.001 + number / 1000})
        history = history.with_trial(trial).with_result(number, 9, float(number * 3 % 350))
    return history


def test_a_configuration_is_read_off_the_whole_document():
    plain = document(model={"name": "conv4", "width": 8, "depth": 4}, algorithm={"inner_lr": 0.1})
    del plain["outer"]
    assert project_configuration(SPACE, plain) == {
        "algorithm.inner_lr": 0.1,
        "model": {"name": "conv4", "width": 8},
        "model.width": 8,
    }


def test_what_depends_on_what_is_not_there_is_left_out():
    plain = document(model={"name": "resnet12", "width": 8}, outer={"momentum": 0.5})
    found = project_configuration(SPACE, plain)
    assert found == {"algorithm.inner_lr": 0.1, "model": {"name": "resnet12"}, "outer.momentum": 0.5}


@pytest.mark.parametrize(
    "changes", [{"algorithm": {"inner_lr": 3.0}}, {"model": {"name": "densenet"}}, {"outer": {"momentum": 0.95}}]
)
def test_a_configuration_outside_the_space_is_dropped(changes):
    assert project_configuration(SPACE, document(**changes)) is None


def test_experience_is_given_back_by_json():
    whole = PriorStudies((told(history_of({9: 1.0}, {3: 2.0}, {})), PriorStudy("b", 0.1, (Observation({}, 0.5, 0.5),))))
    assert read_prior_studies(json.loads(json.dumps(whole.to_plain()))) == whole
    with pytest.raises(ValueError, match=r"not a list of prior studies: .* is missing: restore experience\.json"):
        read_prior_studies({"sources": [{"name": "a"}]})


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow with two searches, of which one is of other tasks, a damaged one, a trial, and runs that were alone."""
    folder = tmp_path_factory.mktemp("past")
    uri = f"sqlite:///{folder}/mlflow.db"
    _record_search(uri, folder, "alike", HERE)
    _record_search(uri, folder, "unlike", {**HERE, "ways": 20, "source": "other"})
    _record_search(uri, folder, "regression", {**HERE, "kind": "regression"})
    _record_search(uri, folder, "torn", HERE, damage=True)
    _record(uri, "alike-0000", {"metatrain.search": "alike", "metatrain.trial": "0"}, {}, [0.99])
    for number, value in enumerate((0.3, 0.8, 0.5)):
        text = dump_yaml(document(algorithm={"inner_lr": (number + 1) / 10}))
        _record(uri, f"alone-{number}", {}, {"config.yaml": text}, [value, 0.1], folder)
    _record(uri, "stopped", {}, {"config.yaml": dump_yaml(document())}, [0.9], folder, status="interrupted")
    _record(uri, "silent", {}, {"config.yaml": dump_yaml(document())}, [], folder)
    MlflowClient(uri).create_experiment("empty")
    return uri


def _record_search(uri: str, folder: Path, name: str, tasks: dict[str, Any], damage: bool = False) -> None:
    path = folder / name / "journal.jsonl"
    with Study(StudySpec(RATE, RandomSearch(), ASHA(1, 9), METRIC, "max", trials=12), path) as search:
        while (trial := search.next_trial()) is not None:
            for budget in (1, 3, 9):
                value = -abs(trial.configuration["algorithm.inner_lr"] - 0.1)
                if search.report(trial.number, budget, value) == "stop":
                    break
    journal = path.read_text()
    if damage:
        journal = journal.replace('"trial": 3', '"trial": 300')
    config = dump_yaml({**document(), "search": {"method": "random"}, "space": RATE.to_plain()})
    files = {"journal.jsonl": journal, "config.yaml": config, "tasks.json": json.dumps(tasks)}
    _record(uri, name, {"metatrain.search": name}, files, [], folder)


def _record(
    uri: str,
    name: str,
    tags: dict[str, str],
    files: dict[str, str],
    values: list[float],
    folder: Path = Path(),
    status: Any = "finished",
) -> None:
    shown = MLflowRecorder(uri, "earlier", name, {}, tags)
    shown.start(0, len(values))
    for step, value in enumerate(values, 1):
        shown.record(step, {METRIC: value})
    for file, text in files.items():
        place = folder / name / file
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)
        shown.artifact(place)
    shown.close(status)
    time.sleep(0.002)  # runs are in the order of their start, to a millisecond


def test_searches_and_runs_are_read_from_mlflow_and_the_most_alike_come_first(uri, capfd):
    experience, _ = gather_prior_studies(uri, ["earlier"], RATE, METRIC, HERE)
    assert [source.name for source in experience.sources] == ["alike", "earlier, runs 0", "unlike"]
    alike, alone, unlike = experience.sources
    assert alike.weight == 1.0 == alone.weight and 0 < unlike.weight < 0.5
    assert len(alike.observations) == 12 and max(one.share for one in alike.observations) == 1.0
    best = alike.best().configuration["algorithm.inner_lr"]
    furthest = [one.configuration["algorithm.inner_lr"] for one in alike.observations if one.share == 1.0]
    assert abs(best - 0.1) == min(abs(rate - 0.1) for rate in furthest)
    assert [one.configuration for one in alone.observations] == [
        {"algorithm.inner_lr": rate} for rate in (0.2, 0.3, 0.1)
    ], "by the best validation, not the last"
    assert capfd.readouterr() == ("", "")


def test_what_tells_nothing_is_named_with_the_reason(uri):
    _, notes = gather_prior_studies(uri, ["earlier"], RATE, METRIC, HERE)
    assert [note.split(":")[0] for note in notes] == ["torn", "stopped", "silent", "regression"]
    assert "does not follow" in notes[0] and "did not finish" in notes[1]
    assert f"reports no {METRIC}" in notes[2] and "other tasks altogether" in notes[3]
    assert all("\n" not in note for note in notes)


def test_what_was_fixed_in_an_earlier_search_is_known_of_it(uri):
    both = read_space({"algorithm.inner_lr": "loguniform(1e-3, 1)", "model.width": "int(4, 64)"})
    experience, _ = gather_prior_studies(uri, ["earlier"], both, METRIC, HERE)
    assert {one.configuration["model.width"] for one in experience.sources[0].observations} == {8}


def test_a_space_that_nothing_fits_has_a_note_and_no_experience(uri):
    strange = read_space({"algorithm.inner_lr": "uniform(5, 6)"})
    experience, notes = gather_prior_studies(uri, ["earlier"], strange, METRIC, HERE)
    assert experience == PriorStudies()
    assert any("alike: a search without a result that fits this space" in note for note in notes)
    assert any("'earlier' has no search or finished run that fits" in note for note in notes)


def test_an_empty_experiment_is_a_note_and_an_unknown_one_an_error_that_names_near_ones(uri):
    experience, notes = gather_prior_studies(uri, ["empty"], RATE, METRIC, HERE)
    assert experience == PriorStudies()
    assert notes == ["search.warm_start: 'empty' has no search or finished run that fits: ignored"]
    with pytest.raises(ValueError, match=r"no experiment 'earliest' .*\(did you mean earlier\?\): choose among"):
        gather_prior_studies(uri, ["earliest"], RATE, METRIC, HERE)


def test_an_artifact_that_is_gone_concerns_its_own_run_alone(uri):
    client = MlflowClient(uri)
    run = next(run for run in client.search_runs(["1"]) if run.data.tags["metatrain.run_id"] == "unlike")
    path = Path(run.info.artifact_uri.removeprefix("file://")) / "journal.jsonl"
    text = path.read_text()
    path.unlink()
    try:
        experience, notes = gather_prior_studies(uri, ["earlier"], RATE, METRIC, HERE)
    finally:
        path.write_text(text)
    assert "unlike" not in [source.name for source in experience.sources] and len(experience.sources) == 2
    assert any(note.startswith("unlike: a search without journal") for note in notes)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.name)
def test_the_tasks_of_a_benchmarks_family_have_the_same_minimum_elsewhere(objective):
    tasks = [transform_task(objective, 0, number) for number in range(3)]
    around = transform_task(objective, 0, 0, around=True)
    for task in (*tasks, around):
        assert task.regret(task.minimiser) == pytest.approx(0, abs=1e-6)
        assert min(task.regret(task.space.sample(0, number)) for number in range(200)) > 0
    assert len({str(task.minimiser) for task in (*tasks, around)}) >= 3
    assert around.regret(tasks[0].minimiser) > 0.1 * around.regret(around.space.sample(0, 0))

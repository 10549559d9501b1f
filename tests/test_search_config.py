"""A search's file: what it may say, and what each mistake is answered with, before anything begins."""

import shutil

import pytest
import yaml

from metatrain.config.load import as_plain, load_config
from metatrain.yaml_config import apply_overrides
from tests.configurations import CONFIGS, SEARCHES
from tests.searches import TINY_SEARCH, tiny_search
from tune.config.methods import METHODS
from tune.config.search_config import load_search_config, read_search_config, update_search_config


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_shipped_searches_are_searches(path):
    document = load_search_config(path)
    assert read_search_config(document.to_plain()) == document
    for number in range(20):
        document.trial_config(document.space.sample(1, number))


def test_it_is_read_back_as_it_was_written(tmp_path):
    document = tiny_search("search.objectives=[parameters]", "search.warm_start=[a, b]")
    (tmp_path / "config.yaml").write_text(document.to_yaml())
    assert load_search_config(tmp_path / "config.yaml") == document


@pytest.mark.parametrize("name", METHODS)
def test_each_method_has_settings_of_its_own(name):
    document = tiny_search(f"search.method={name}", "search.trials=30")
    assert document.search.method.name == name
    assert read_search_config(document.to_plain()) == document
    with pytest.raises(ValueError, match=r"search\.method\.nonsense: no such setting"):
        tiny_search(f"search.method={{name: {name}, nonsense: 1}}")


def test_rungs_spread_below_the_end():
    _, schedule = tiny_search("search.method=asha", "outer.steps=2000").search.method.settings
    assert schedule.budgets(0) == (25, 75, 225, 675, 2000)


def test_a_base_lies_beside_the_file(tmp_path):
    shutil.copy(CONFIGS / "sinusoid-maml.yaml", tmp_path)
    found = {"base": "sinusoid-maml.yaml", "outer": {"steps": 50}, "search": {"metric": "validation/mse", "trials": 2}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(found | {"space": {"outer.lr": "uniform(0.1, 0.2)"}}))
    document = load_search_config(tmp_path / "s.yaml", ["outer.tasks_per_step=3"])
    base = as_plain(load_config(tmp_path / "sinusoid-maml.yaml"))
    assert as_plain(document.base) == apply_overrides(base, ["outer.steps=50", "outer.tasks_per_step=3"])


def test_another_model_takes_nothing_from_the_bases(tmp_path):
    shutil.copy(CONFIGS / "omniglot-maml-5w1s.yaml", tmp_path)
    found = {"base": "omniglot-maml-5w1s.yaml", "model": {"name": "mlp"}, "search": {"trials": 2}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(found | {"space": {"model.width": "int(4, 8)"}}))
    assert load_search_config(tmp_path / "s.yaml").base.model.width == 40


SPACES = {
    "algorithm.inner_lrr: loguniform(1e-3, 1)": ("space.algorithm.inner_lrr", "did you mean inner_lr"),
    "algoritm.inner_lr: loguniform(1e-3, 1)": ("space.algoritm", "did you mean algorithm"),
    "algorithm.inner_steps: uniform(1, 3)": ("space.algorithm.inner_steps", "valid integer"),
    "outer.lr: uniform(-2, -1)": ("space.outer.lr", "above 0"),
    "outer.lr: loguniform(1, 1)": ("space.outer.lr", "higher one"),
    "outer.lr: logunifrom(1, 2)": ("space.outer.lr", "did you mean loguniform"),
    "model: [{name: mlp}, {name: convv4}]": ("space.model.name", "did you mean conv4"),
    "outer.steps: int(1, 5)": ("space.outer.steps", "method decides how long"),
    "executor.workers: int(1, 5)": ("space.executor.workers", "the same for all"),
    "evaluation.inner_steps: int(1, 5)": ("space.evaluation.inner_steps", "the same for all"),
    "tasks.test.shots: choice(1, 20)": ("space.tasks.test.shots", "only tasks.train"),
    "tasks.name: choice(strokes, sinusoid)": ("space.tasks.name", "only tasks.train"),
    "seed: int(1, 5)": ("space.seed", "predicts nothing"),
}


@pytest.mark.parametrize("text", SPACES)
def test_a_bad_space_is_refused(text):
    with pytest.raises(ValueError) as refused:
        tiny_search(space=yaml.safe_load(text))
    assert "\n" not in str(refused.value)
    assert all(part in str(refused.value) for part in SPACES[text]), refused.value


@pytest.mark.parametrize(
    ("override", "says"),
    {
        "search.method=bob": "did you mean bohb",
        "search.method={name: bohb, eta: 1}": "search.method.eta: 1 is below 2",
        "search.method={name: bohb, max_budget: 9}": "outer.steps",
        "search.method={name: pbt, explored: [outer.momentum]}": "search.method.explored: no 'outer.momentum'",
        "search.method={name: pbt, members: 1}": "search.method.members",
        "search.method={name: bohb, min_budget: 100}": "search.method.min_budget: 100 is above",
        "search.metric=validation/f1": "validation/accuracy",
        "search.trials=0": "search.trials",
        "search.trials=null": "set search.trials, search.minutes",
        "search.objectives=[speed]": "search.objectives",
        "search.trial=3": "did you mean trials",
        "search.method={name: evolution, population: 6}": "search.trials: 6 leave a population of 6 none to evolve",
        "search.method={name: pbt, interval: 27}": "search.method.interval: 27 steps are the whole budget",
        "search.first=[{outer.lr: 3}]": "search.first: outer.lr: 3 is not of loguniform(0.0001, 0.1)",
        "search.first=[nonsense]": "search.first",
        "search.first=[base, base, base, base, base, base, base]": "7 configurations for 6 trials: remove some",
        "search=3": "search: 3 is not a section",
        "space={}": "space: is empty",
    }.items(),
)
def test_a_bad_setting_is_refused(override, says):
    with pytest.raises(ValueError) as refused:
        tiny_search(override)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_going_on_what_is_looked_for_stays():
    before = tiny_search()
    after = update_search_config(before, ["search.trials=9", "search.minutes=3", "executor.name=ray"])
    assert after.search.trials == 9 and after.base.executor.name == "ray"
    for override in ("outer.lr=0.5", "search.metric=validation/loss", "search.method=asha", "search.seed=3"):
        with pytest.raises(ValueError, match=r"cannot change in a resumed search.*search.trials"):
            update_search_config(before, [override])


REQUESTS = {
    (): "SEARCH: missing",
    ("nowhere.yaml",): "nowhere.yaml",
    ("plain.yaml",): "plain.yaml: is a configuration to be trained",
    ("tiny.yaml", "search.metric=validation/accuracy"): "never reported on these tasks: set validation/mse",
    ("tiny.yaml", "search.cpus=5000", "executor.deadline=1"): "search: a trial needs 5000 CPUs",
    ("tiny.yaml", "executor.gpus_per_worker=2"): "executor.gpus_per_worker: 2 GPUs asked for",
    ("tiny.yaml", "search.warm_start=[old]"): "search.warm_start: earlier searches are read from MLflow",
    ("tiny.yaml", "search.warm_start=[old]", "tracking.uri=sqlite:///m.db"): "search.warm_start: no experiment 'old'",
    ("--resume", "nowhere"): "nowhere",
    ("tiny.yaml", "--take-over"): "--take-over",
}


STARTS_MORE = [
    one
    for one in REQUESTS
    if {"search.cpus=5000", "executor.gpus_per_worker=2", "tracking.uri=sqlite:///m.db"} & {*one}
]
"""Requests that are refused once Ray has been asked, or MLflow has made its database."""


@pytest.mark.ray
@pytest.mark.parametrize(
    "arguments",
    [pytest.param(one, marks=[pytest.mark.slow] * (one in STARTS_MORE), id=" ".join(one)) for one in REQUESTS],
)
def test_a_request_that_cannot_be_met_ends_in_one_line_and_leaves_nothing(arguments, tmp_path, command):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY_SEARCH))
    (tmp_path / "plain.yaml").write_text((CONFIGS / "sinusoid-maml.yaml").read_text())
    done = command(tmp_path, "search", *arguments)
    assert done.code == 2, done.err
    told = [line for line in done.err.splitlines() if line.startswith("metatrain: ")]
    assert len(told) == 1 and REQUESTS[arguments] in told[0], done.err
    assert "Traceback" not in done.err and not (tmp_path / "runs").exists()


def test_a_search_is_not_gone_on_with_as_a_run(tmp_path, command):
    from metatrain.runs import create_run

    home = create_run(tmp_path, "search", tiny_search().to_yaml(), {})
    (home.path / "journal.jsonl").touch()
    done = command(tmp_path, "train", "--resume", str(home.path))
    assert done.code == 2 and "metatrain search --resume" in done.err


def test_a_base_that_is_not_there_is_named(tmp_path):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**TINY_SEARCH, "base": "gone.yaml"}))
    with pytest.raises(ValueError, match=r"gone\.yaml"):
        load_search_config(tmp_path / "s.yaml")

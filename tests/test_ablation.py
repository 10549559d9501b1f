"""Ablations: what is planned and refused, the differences from the base, and a whole one on Ray, resumed."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from metatrain.cli.ablation import ablate_command
from metatrain.comparison.common_tasks import TaskSet
from metatrain.comparison.scoring import Scored
from metatrain.evaluation.intervals import student_t
from tests.configurations import TINY, tiny
from tests.report_pages import EVIL, Page
from tune.ablation.plan import axes_of, plan_ablation, read_axes, read_variants
from tune.ablation.results import by_axis, summarize_ablation
from tune.config.search_config import read_search_config
from tune.execution.trial import run_trial
from tune.report import ablation_page
from tune.search_dir import create_search, make_trial_spec
from tune.study import Study

STEPS = "algorithm.inner_steps=1,2,3"
"""Of which two is the base's own."""


def planned(*axes: str, seeds: tuple[int, ...] = (), grid: bool = False):
    base = tiny()
    return plan_ablation(base, read_axes(axes, base), seeds, grid)


def test_each_change_is_made_alone_with_each_seed():
    found = read_variants(planned(STEPS, "outer={lr: 0.1, steps: 6}", seeds=(4, 0)))
    labels = ["base", "algorithm.inner_steps=1", "algorithm.inner_steps=3", "outer={lr: 0.1, steps: 6}"]
    assert [(variant.label, variant.seed) for variant in found] == [(name, seed) for name in labels for seed in (4, 0)]


def test_a_grid_has_all_combinations_and_is_read_back_from_its_file():
    config = planned(STEPS, "outer.lr=1e-3", grid=True)
    assert read_search_config(yaml.safe_load(config.to_yaml())) == config
    found = [variant.changes for variant in read_variants(config)]
    assert len(found) == 6 and found[0] == {} and {"algorithm.inner_steps": 3, "outer.lr": 0.001} in found
    assert [(axis.name, axis.own, axis.values) for axis in axes_of(config)] == [
        ("algorithm.inner_steps", 2, (1, 3)),
        ("outer.lr", 0.01, (0.001,)),
    ]


def test_a_section_replaces_the_whole_of_the_bases():
    config = planned("algorithm={name: fomaml, inner_steps: 1},{name: protonet}")
    trials = [config.trial_config(trial) for trial in config.study_spec().initial_trials]
    assert [trial.names.algorithm for trial in trials] == ["maml", "fomaml", "protonet"]


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ([], "AXIS=VALUE…: missing: name a setting and its values"),
        (["outer.lr"], "is no axis: write key=value,value"),
        (["algorithm.inner_stes=1"], "no such setting in this configuration (did you mean algorithm.inner_steps?)"),
        (["algorithm.inner_steps=0"], "algorithm.inner_steps=0: algorithm.inner_steps: 0 is not a positive number"),
        (["algorithm.inner_steps=many"], "algorithm.inner_steps=many: algorithm.inner_steps: input should be"),
        (["algorithm.inner_steps=1,1"], "algorithm.inner_steps: 1 stands twice: give each value once"),
        (["algorithm.inner_steps=2"], "2 is its value in the configuration, so nothing changes: give another"),
        (["outer.lr=1", "outer.lr=2"], "outer.lr: is given twice: list all of its values in one"),
        (["outer={lr: 1}", "outer.lr=2"], "outer.lr: lies within outer: write it in the sections"),
        (["outer.lr=[1"], "outer.lr"),
        (["seed=1,2"], "seed: give seeds by --seeds"),
        (["outer.steps=1,2"], "outer.steps: all runs take as many: use --set outer.steps=…"),
        (["tasks.test.ways=5"], "tasks.test.ways: trials must be judged on the same tasks"),
        (["evaluation.inner_steps=5"], "evaluation.inner_steps: it says how trials are computed, kept or judged"),
    ],
    ids=str,
)
def test_axes_that_cannot_be_are_refused_with_the_remedy(axes, says):
    with pytest.raises(ValueError) as refused:
        read_axes(axes, tiny())
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_combinations_that_cannot_be_and_doubled_seeds_are_refused():
    with pytest.raises(ValueError, match=r"outer\.momentum"):
        planned("outer.momentum=0.9", "outer.optimizer=sgd", grid=True)
    with pytest.raises(ValueError, match="--seeds: 1, 1: names one twice"):
        planned(STEPS, seeds=(1, 1))


def scored(values: np.ndarray, classes: np.ndarray | None = None) -> Scored:
    table = {"accuracy": torch.from_numpy(values)[:, None], "inner_step": torch.zeros(len(values), 1)}
    return Scored({"inductive": table}, classes)


def test_differences_are_means_over_seeds_of_those_with_the_same_seed():
    chance = np.random.default_rng(0)
    config = planned(STEPS, seeds=(0, 1, 2))
    variants = read_variants(config)
    values = {(v.label, v.seed): chance.random(30) for v in variants}
    values.pop(("algorithm.inner_steps=3", 1))
    failures = {("algorithm.inner_steps=3", 1): "nan: nan at step 3"}
    tasks = TaskSet("", config.base, None)
    found = summarize_ablation(variants, {key: scored(one) for key, one in values.items()}, failures, tasks)
    base, one, three = found["variants"]
    assert base["difference"] is None
    assert base["score"]["value"] == pytest.approx(np.mean([values["base", seed] for seed in (0, 1, 2)]))
    each = np.mean([values["algorithm.inner_steps=1", s] - values["base", s] for s in (0, 1, 2)], axis=0)
    assert one["difference"]["value"] == pytest.approx(each.mean())
    assert one["difference"]["ci95"] == pytest.approx(student_t(29) * each.std(ddof=1) / 30**0.5)
    by_seed = [(values["algorithm.inner_steps=3", s] - values["base", s]).mean() for s in (0, 2)]
    assert three["difference"]["seeds"]["values"] == pytest.approx(by_seed)
    assert three["difference"]["seeds"]["ci95"] == pytest.approx(student_t(1) * np.std(by_seed, ddof=1) / 2**0.5)
    assert three["failures"] == {"1": "nan: nan at step 3"}
    assert all(row["difference"]["p_holm"] >= row["difference"]["p"] for row in (one, three))
    assert [axis["labels"] for axis in by_axis(found, axes_of(config))] == [[one["label"], three["label"]]]


def test_without_a_base_there_is_nothing_to_compare_with():
    config = planned(STEPS)
    variants = read_variants(config)
    others = {(v.label, v.seed): scored(np.arange(4.0)) for v in variants[1:]}
    with pytest.raises(ValueError, match="the base was not trained with any seed: failed: no memory"):
        summarize_ablation(variants, others, {("base", 0): "failed: no memory"}, TaskSet("", config.base, None))


def test_a_page_escapes_what_it_shows():
    config = planned(STEPS)
    variants = read_variants(config)
    values = {(v.label, v.seed): scored(np.arange(4.0) / 4) for v in variants}
    found = summarize_ablation(variants, values, {("base", 0): EVIL}, TaskSet("", config.base, None))
    found |= {"axes": by_axis(found, axes_of(config)), "name": EVIL, "place": EVIL, "trained": [0, 1, 2]}
    page = Page(ablation_page.render(found))
    assert not page.all("script") and not page.all("img")


def ablate(file: str | None, axes: list[str], settings=(), seeds: str | None = None, resume: str | None = None) -> None:
    """Run `metatrain ablate … --json` in this process."""
    rest = {"grid": False, "take_over": False, "split": "test", "out": None, "as_json": True}
    ablate_command(file, axes, list(settings), seeds=seeds, resume=resume, **rest)


@pytest.mark.ray
@pytest.mark.slow
def test_an_ablation_goes_on_where_it_was_interrupted(local_ray, tmp_path, capsys):
    base = tiny(f"runs={{root: {tmp_path}, name: tiny}}", "outer.steps=2", "model.width=4", "evaluation.tasks=6")
    config = plan_ablation(base, read_axes(["outer.lr=0.5"], base), (5,))
    home = create_search(config, {})
    with Study(config.study_spec(), home.path / "journal.jsonl") as study:
        for report in run_trial(make_trial_spec(home, config, study.next_trial(), None), threading.Event()):
            study.report(0, report.step, report.value)
    with pytest.raises(ValueError, match=r"outer\.lr=1: cannot change in an ablation that is resumed: remove it"):
        ablate(None, ["outer.lr=1"], resume=home.where)
    before = (home.path / "trials/0000/metrics.jsonl").read_bytes()
    ablate(None, [], resume=home.where)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["label"] for row in found["variants"]] == ["base", "outer.lr=0.5"]
    assert found["variants"][1]["difference"]["p"] <= 1 and found["seeds"] == [5]
    assert (home.path / "trials/0000/metrics.jsonl").read_bytes() == before, "what was trained is not trained again"
    assert json.loads((home.path / "ablation.json").read_text()) == found
    page = Page((home.path / "ablation.html").read_text())
    assert [section["id"] for section in page.all("section")] == ["summary", "results", "differences", "use"]


@pytest.mark.ray
@pytest.mark.slow
def test_an_ablation_is_trained_compared_and_resumed(local_ray, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = {"evaluation": {"tasks": 6, "validation_tasks": 2, "baselines": False}, "runs": {"name": "tiny"}}
    Path("tiny.yaml").write_text(yaml.safe_dump({**TINY, **few}))
    settings = ["outer.steps=2", "model.width=4"]
    ablate("tiny.yaml", ["outer.lr=0.5"], settings, "5")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["label"] for row in found["variants"]] == ["base", "outer.lr=0.5"]
    assert found["variants"][0]["difference"] is None and found["seeds"] == [5]
    assert all(row["score"]["by_seed"].keys() == {"5"} for row in found["variants"])
    (folder,) = Path("runs").iterdir()
    assert "tiny-ablation" in folder.name and json.loads((folder / "ablation.json").read_text()) == found
    page = Page((folder / "ablation.html").read_text())
    assert [section["id"] for section in page.all("section")] == ["summary", "results", "differences", "use"]

    # As if its driver had been killed before the last run began.
    journal = folder / "journal.jsonl"
    kept = [line for line in journal.read_text().splitlines(keepends=True) if json.loads(line).get("trial") != 1]
    journal.write_text("".join(kept))
    shutil.rmtree(folder / "trials/0001")
    for name in ("ablation.json", "ablation.html"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"outer\.lr=1: cannot change in an ablation that is resumed: remove it"):
        ablate(None, ["outer.lr=1"], resume=str(folder))
    ablate(None, [], resume=str(folder))
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["variants"] == found["variants"] and (folder / "ablation.html").exists()

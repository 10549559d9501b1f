"""Runs whose learners predict densities: their results, pictures and pages, and what is refused."""

import json

import numpy as np
import pytest
import torch
import yaml

import metatrain
from metatrain.yaml_config import apply_overrides
from tests.command_line import Done, last_json
from tests.command_line import metatrain as command
from tests.configurations import TINY, method


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple:
    """A folder, and what `train --json` said of a short run in it."""
    folder = tmp_path_factory.mktemp("densities")
    wide = ("tasks.train.shots=6", "tasks.test.shots=6", "evaluation.tasks=12", "outer.steps=6")
    (folder / "gp.yaml").write_text(yaml.safe_dump(apply_overrides(TINY, [*method("anp"), *wide])))
    return folder, last_json(command(folder, "train", "gp.yaml", "--json"))


def test_results_have_the_likelihood_as_score_and_the_exact_posterior_beside_it(trained):
    folder, found = trained
    assert found["test"]["score"] == "log_likelihood" and not found["test"]["transductive"]
    assert found["test"]["metrics"].keys() == {"log_likelihood", "loss", "mse", "quantile_error", "oracle_gap"}
    by_name = {one["learner"]: one for one in found["baselines"]}
    assert by_name.keys() == {"untrained", "constant_fill", "nearest_fill", "oracle"}
    assert not by_name["oracle"]["transductive"]
    gap = by_name["oracle"]["log_likelihood"] - found["test"]["log_likelihood"]
    assert found["test"]["metrics"]["oracle_gap"]["value"] == pytest.approx(gap) and gap > 0
    results = json.loads((folder / found["run_dir"] / "evaluations" / "test.json").read_text())
    assert results["test"]["log_likelihood"] == found["test"]["log_likelihood"]


def test_what_is_predicted_is_drawn_and_is_on_the_page(trained):
    folder, found = trained
    assert (folder / found["run_dir"] / "plots" / "test-densities.png").stat().st_size > 10_000
    command(folder, "report", found["run_dir"])
    page = (folder / found["run_dir"] / "report.html").read_text()
    assert "log-likelihood" in page and "Densities of test tasks" in page and "Attention of queries" in page


def test_a_loaded_learner_predicts_values_and_how_sure_it_is(trained):
    folder, found = trained
    learner = metatrain.load(folder / found["run_dir"])
    x = np.linspace(-2, 2, 5, dtype=np.float32)[:, None]
    adapted = learner.adapt((x[:2], np.ones((2, 1), np.float32)))
    assert adapted.predict(x).shape == adapted.std(x).shape == (5, 1)
    assert bool((adapted.std(x) > 0).all())
    assert torch.equal(adapted.predict(x), adapted.predict(x)), "latents are drawn by a fixed key"
    alone = torch.cat([adapted.predict(x[at : at + 1]) for at in range(5)])
    torch.testing.assert_close(alone, adapted.predict(x))


def test_a_learner_without_densities_has_no_std(tmp_path):
    values = {"name": "sinusoid", "train": {"ways": None, "shots": 3, "queries": 2}, "test": {"ways": None}}
    raw = {**TINY, "tasks": values, "model": {"name": "mlp", "width": 4}, "outer": {"steps": 1}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(raw))
    run = last_json(command(tmp_path, "train", "s.yaml", "--json"))["run_dir"]
    adapted = metatrain.load(tmp_path / run).adapt((np.ones((2, 1), np.float32), np.ones((2, 1), np.float32)))
    with pytest.raises(ValueError, match="std: this learner predicts values without a density: use predict"):
        adapted.std(np.ones((1, 1), np.float32))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["algorithm={name: maml}", "model={name: mlp}"], "maml takes support sets of one size"),
        (["algorithm={name: cnp}", "model={name: conv4}"], "model"),
        (["tasks.fewest=9"], "tasks.fewest: 9 examples at least, and 3 at most: raise tasks.train.shots"),
        (["tasks.train.ways=3"], "tasks.train.ways: a function has no classes"),
        (["tasks.kernel=rbf"], "tasks.kernel"),
        (["tasks.noise=0"], "tasks.noise: a variance of 0"),
        (["algorithm={name: anp, heads: 3}"], "algorithm.heads: 128 is no multiple of 3"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(tmp_path, overrides, says):
    (tmp_path / "gp.yaml").write_text(yaml.safe_dump(apply_overrides(TINY, method("cnp"))))
    done: Done = command(tmp_path, "train", "gp.yaml", *overrides, expect=2)
    assert says in done.err and len(done.err.strip().splitlines()) == 1 and "Traceback" not in done.err
    assert not (tmp_path / "runs").exists()


def test_a_fixed_size_suits_methods_that_read_no_mask(tmp_path):
    sized = (
        "tasks.fewest=null",
        "algorithm={name: maml, inner_lr: 0.01}",
        "model={name: mlp, width: 4}",
        "outer.steps=1",
    )
    (tmp_path / "gp.yaml").write_text(yaml.safe_dump(apply_overrides(TINY, [*method("cnp"), *sized])))
    found = last_json(command(tmp_path, "train", "gp.yaml", "--json"))
    assert found["test"]["score"] == "mse"
    assert {one["learner"] for one in found["baselines"]} == {
        "untrained",
        "nearest_neighbour",
        "from_scratch",
        "oracle",
    }

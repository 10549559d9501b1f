"""Bandits as sequences: what is drawn, the exact posterior by Bayes' rule on a grid, and runs on them."""

import pickle
import re

import pytest
import torch
import yaml
from scipy import stats
from torch.utils._pytree import tree_map

from metatrain.yaml_config import apply_overrides
from tasks.sources.bandit import Bandit, Bandits
from tasks.types import EpisodeShape, LabelledSequence, OracleSequence, no_progress
from tests.command_line import last_json
from tests.command_line import metatrain as command
from tests.configurations import TINY

SHAPE = EpisodeShape(None, 6, 10)


def drawn(split="test", seed=0, shape=SHAPE, **settings) -> Bandits:
    return Bandit(**settings).distribution(split, shape, seed)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_task_is_its_index(split):
    tasks = drawn(split)
    indices = [5, 0, 2**40, 5, 1]
    together = tasks.episodes(indices)
    assert isinstance(together, LabelledSequence if split == "train" else OracleSequence)
    for j, index in enumerate(indices):
        alone = tasks.episodes([index])
        assert all(torch.equal(a[j], b[0]) for a, b in zip(together, alone, strict=True))
    again = pickle.loads(pickle.dumps(tasks)).episodes(indices)
    assert all(torch.equal(a, b) for a, b in zip(again, together, strict=True))
    assert not torch.equal(together.x[0], together.x[1])
    assert not torch.equal(drawn(split, seed=1).episodes([0]).y, tasks.episodes([0]).y)
    assert tasks.episodes([]).x.shape == (0, 16, 5)


def test_arms_are_pulled_alike_and_pay_with_probabilities_of_the_prior():
    source = {"arms": 3, "successes": 2, "failures": 5}
    tasks = drawn(shape=EpisodeShape(None, 300, 300), **source).episodes(range(400))
    assert tasks.x.sum(-1).unique().tolist() == [1]
    shares = tasks.x.mean((0, 1))
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.005)
    paid = torch.einsum("bta,bt->ba", tasks.x, tasks.y.float()) / tasks.x.sum(1)
    # 200 pulls of an arm tell its probability to .03: far less than the prior is wide.
    for level in (0.1, 0.5, 0.9):
        assert float(paid.flatten().quantile(level)) == pytest.approx(stats.beta(2, 5).ppf(level), abs=0.03)


@pytest.mark.parametrize(("successes", "failures"), [(1, 1), (3, 2)])
def test_the_posterior_is_that_of_bayes_rule(successes, failures):
    """By integration over a grid of probabilities, with nothing but the prior's density and the likelihood."""
    task = tree_map(lambda leaf: leaf[0], drawn(arms=2, successes=successes, failures=failures).episodes([7]))
    p = (torch.arange(20000).double() + 0.5) / 20000
    density = [torch.from_numpy(stats.beta(successes, failures).pdf(p.numpy()))] * 2
    for x, y, found in zip(task.x, task.y, task.posterior, strict=True):
        arm = int(x.argmax())
        pays = float((density[arm] * p).sum() / density[arm].sum())
        assert found.exp().tolist() == pytest.approx([1 - pays, pays], abs=1e-5)
        density[arm] = density[arm] * (p if y == 1 else 1 - p)


def test_a_run_is_scored_by_step_beside_the_exact_posterior(tmp_path):
    settings = (
        "tasks={name: bandit, arms: 2, train: {shots: 3, queries: 3}, test: {shots: 3, queries: 3}}",
        *("tasks.train.ways=null", "tasks.test.ways=null", "model={name: identity}", "evaluation.tasks=30"),
        "algorithm={name: lstm, hidden: 4}",
    )
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(apply_overrides(TINY, settings)))
    found = last_json(command(tmp_path, "train", "b.yaml", "--json"))
    assert found["test"]["curve"]["steps"] == [0, 1, 2, 3, 4, 5]
    by_name = {one["learner"]: one for one in found["baselines"]}
    assert by_name.keys() == {"untrained", "oracle"}
    likelihood = {name: one["metrics"]["log_likelihood"]["value"] for name, one in by_name.items()}
    gap = likelihood["oracle"] - found["test"]["metrics"]["log_likelihood"]["value"]
    assert found["test"]["metrics"]["oracle_gap"]["value"] == pytest.approx(gap, abs=1e-6)
    for method in ("maml", "protonet"):
        done = command(tmp_path, "train", "b.yaml", f"algorithm={{name: {method}}}", expect=2)
        assert "tasks of bandit are sequences: set lstm, mann or snail" in done.err


@pytest.mark.slow
def test_an_lstm_comes_close_to_the_exact_posterior(tmp_path):
    """Ortega et al. 2019, in small: a coin whose bias it has to estimate."""
    settings = (
        "tasks={name: bandit, arms: 1, train: {shots: 8, queries: 8}, test: {shots: 8, queries: 8}}",
        *("tasks.train.ways=null", "tasks.test.ways=null", "model={name: identity}", "evaluation.tasks=4000"),
        *("algorithm={name: lstm, hidden: 32}", "engine.vectorize=vmap", "outer.lr=0.005", "outer.schedule=cosine"),
        *("outer.steps=1000", "outer.tasks_per_step=64", "executor.shard_size=64", "evaluation.every=1000"),
    )
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(apply_overrides(TINY, settings)))
    found = last_json(command(tmp_path, "train", "b.yaml", "--json", "executor.name=in_process"))
    gap, untrained = (one["metrics"]["oracle_gap"] for one in (found["test"], found["baselines"][0]))
    assert gap["value"] < 0.01 < untrained["value"] - untrained["ci95"]


def test_what_cannot_be_is_refused():
    for settings in ({"arms": 0}, {"failures": 0}, {"successes": 10**9}):
        with pytest.raises(ValueError, match=re.escape("is none of 1 to 1000: set one of these")):
            Bandit(**settings)
    with pytest.raises(ValueError, match="arms: 1000 with such a prior take too many draws: lower successes"):
        Bandit(arms=1000, failures=900)
    with pytest.raises(ValueError, match=re.escape("tasks.test.ways: a pull pays or does not, whatever the task: set")):
        drawn(shape=EpisodeShape(2, 3, 3))
    assert "5 arms that pay with probabilities of Beta(1, 1)" in Bandit().prepare(no_progress)

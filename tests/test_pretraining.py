"""Test pretraining and the baselines that adapt pretrained features, against arithmetic of their own."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from metatrain.algorithms import ALGORITHMS, SimpleShot
from metatrain.algorithms.pretrained.logistic_regression import fit
from metatrain.algorithms.pretrained.pretraining import Classifier
from metatrain.engine import Engine
from metatrain.evaluation.evaluate import make_shards
from metatrain.models import Conv4, build_model
from metatrain.training.in_process import InProcess
from metatrain.training.outer_loop import initial_state, set_statistics, train, with_statistics
from metatrain.training.worker import Worker
from metatrain.types import Context, ShardRequest
from tasks.few_shot import FewShot
from tasks.sources.strokes import StrokePool
from tasks.types import EpisodeShape, Examples
from tests.command_line import last_json, metatrain
from tests.configurations import TINY, method, tiny
from tests.episodes import classification_spec, context_of, random_episodes

CPU = torch.device("cpu")
FEW = "tasks.classes=20"
SPEC = classification_spec(ways=3, size=8, channels=1)
PRETRAINED = [name for name, one in ALGORITHMS.items() if getattr(one, "trains_on_classes", False)]


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(12, 7, dtype=torch.float64), torch.arange(3).repeat(4)


def adapted_and_predicted(algorithm, params=None):
    """Predictions for the queries of a task; the features of support and query, by the network alone."""
    model = build_model(Conv4(width=4, depth=2), SPEC, seed=0).to(CPU, torch.float64).with_normalization("inductive")
    support, query = (Examples(*(leaf[0] for leaf in part)) for part in random_episodes(SPEC, 1))
    params = {n: v.double() for n, v in algorithm.init(model, SPEC, 0).items()} | (params or {})
    context, silent = Context(torch.tensor(0), torch.tensor(-1)), torch.tensor(-1)
    *_, adapted = algorithm.trajectory(model, params, support, context)
    found = algorithm.predict(model, params, adapted, query.x, context)
    seen = model.embed(params, support.x, silent), model.embed(params, query.x, silent, reference=support.x)
    return found, *(one.numpy() for one in seen), support.y.numpy()


def unit(x):
    return x / np.sqrt((x**2).sum(1, keepdims=True))


def test_the_nearest_centroid_by_cosine_in_numpy():
    found, support, query, y = adapted_and_predicted(ALGORITHMS["nearest_centroid"](scale=3.0))
    means = np.stack([support[y == n].mean(0) for n in range(3)])
    np.testing.assert_allclose(found.numpy(), 3 * unit(query) @ unit(means).T, rtol=1e-9)


def test_simple_shot_in_numpy():
    centre = np.random.default_rng(0).normal(size=16)
    found, support, query, y = adapted_and_predicted(SimpleShot(), {"centre.mean": torch.from_numpy(centre)})
    support, query = unit(support - centre), unit(query - centre)
    means = np.stack([support[y == n].mean(0) for n in range(3)])
    np.testing.assert_allclose(found.numpy(), -((query[:, None] - means[None]) ** 2).sum(2), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(12, 7), (4, 30)], ids=["more examples", "more dimensions"])
@pytest.mark.parametrize("penalty", [1.0, 0.05])
def test_logistic_regression_against_an_optimum_found_otherwise(shape, penalty):
    """L-BFGS on all D × N weights and the bias, to convergence."""
    torch.manual_seed(0)
    z = F.normalize(torch.randn(*shape, dtype=torch.float64), dim=1)
    y = torch.arange(len(z)) % 3
    w = torch.zeros(shape[1], 3, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    settings = {"max_iter": 2000, "tolerance_grad": 1e-12, "tolerance_change": 0, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([w, b], history_size=50, **settings)

    def objective():
        optimizer.zero_grad()
        value = F.cross_entropy(z @ w + b, y, reduction="sum") + penalty / 2 * (w**2).sum()
        value.backward()
        return value

    optimizer.step(objective)
    weight, bias = fit(z, F.one_hot(y, 3).double(), penalty, 12)
    assert torch.allclose(weight, w.detach(), atol=1e-7)
    assert torch.allclose(bias, b.detach(), atol=1e-7)
    assert abs(float(bias.sum())) < 1e-9
    lifted = torch.func.vmap(partial(fit, penalty=penalty, steps=12))(z.float()[None], F.one_hot(y, 3).float()[None])
    assert torch.allclose(lifted[0][0].double(), weight, atol=1e-4)


def test_a_cosine_head_starts_at_the_class_means_and_fits_the_support_set():
    still = ALGORITHMS["baseline_plus_plus"](inner_steps=1, inner_lr=1e-12)
    untouched, support, query, y = adapted_and_predicted(still)
    means = np.stack([unit(support)[y == n].mean(0) for n in range(3)])
    np.testing.assert_allclose(untouched.numpy(), 10 * unit(query) @ unit(means).T, rtol=1e-6)
    model = build_model(Conv4(width=4, depth=2), SPEC, seed=0).to(CPU, torch.float64)
    losses = losses_on_support(ALGORITHMS["baseline_plus_plus"](inner_lr=0.05), model)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("head", ["centroids", "zero"])
def test_fine_tuning_starts_as_a_nearest_centroid_or_knowing_nothing_and_fits_the_support_set(head):
    model = build_model(Conv4(width=4, depth=2), SPEC, seed=0).to(CPU, torch.float64)
    losses = losses_on_support(ALGORITHMS["fine_tune"](head=head, inner_lr=0.01), model)
    assert losses[-1] < 0.5 * losses[0]
    assert (abs(losses[0] - np.log(3)) < 1e-9) == (head == "zero")


def losses_on_support(algorithm, model) -> list[float]:
    support = Examples(*(leaf[0] for leaf in random_episodes(SPEC, 1).support))
    params = {name: value.double() for name, value in algorithm.init(model, SPEC, 0).items()}
    context = Context(torch.tensor(0), torch.tensor(-1))
    with torch.no_grad():
        states = algorithm.trajectory(model, params, support, context)
        return [
            float(F.cross_entropy(algorithm.predict(model, params, one, support.x, context), support.y))
            for one in states
        ]


def test_minibatches_are_labelled_by_the_classes_of_the_whole_split():
    worker = Worker(tiny(*method("simple_shot")), CPU)
    plain = FewShot(StrokePool(0, 20, 1.0, "train"), EpisodeShape(3, 1, 2), 0, "train")
    found, episodes = worker.distribution("train"), plain.episodes([4, 9])
    assert found.spec == plain.spec._replace(ways=20)
    assert worker.distribution("test").spec.ways == 3
    for part, local in zip(found.episodes([4, 9]), episodes, strict=True):
        assert torch.equal(part.x, local.x)
        for labels, own, classes in zip(part.y, local.y, plain.task_classes([4, 9]), strict=True):
            assert labels.tolist() == [int(classes[label]) for label in own]
    assert worker.initial()["classifier.weight"].shape[0] == 20
    assert not any(name.startswith("model.head.") for name in worker.initial())


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("tasks={name: strokes}", "strokes has 1,000,000 training classes, too many .* set tasks.classes to at most"),
        ("tasks={name: sinusoid, train: {ways: null}, test: {ways: null}}", "sinusoid does not list its training cl"),
    ],
)
def test_sources_that_do_not_list_their_classes_are_refused(override, says):
    with pytest.raises(ValueError, match=rf"tasks\.name: {says}"):
        Worker(tiny("algorithm={name: nearest_centroid}", override, "model={name: mlp}"), CPU)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"head": "linear", "scale": 3.0}, "algorithm.classifier.scale: has no effect"),
        ({"head": "cosine", "scale": -1.0}, "scale"),
    ],
)
def test_settings_without_effect_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        Classifier(**settings)


def test_the_centre_is_the_mean_feature_of_the_first_training_minibatches():
    config = tiny(*method("simple_shot"), "algorithm.centre_tasks=5")
    worker = Worker(config, CPU)
    params = worker.initial()
    assert not params["centre.mean"].any()
    found = with_statistics(config.algorithm, InProcess(worker), params, 2)
    support, query = worker.distribution("train").episodes(range(5))
    means = []
    for x in torch.cat([support.x, query.x], dim=1):
        means.append(worker.model.embed(params, x, torch.tensor(-1)).double().mean(0))
    assert torch.allclose(found["centre.mean"].double(), torch.stack(means).mean(0), atol=1e-6)
    assert all(found[name] is params[name] for name in params if name != "centre.mean")
    protonet = Worker(tiny("algorithm={name: protonet}"), CPU)
    assert with_statistics(protonet.algorithm, InProcess(protonet), params, 2) is params


def test_statistics_are_the_sums_of_their_tasks_however_they_are_computed():
    model = build_model(Conv4(width=4, depth=2), SPEC, seed=0).to(CPU, torch.float64)
    params = {name: value.double() for name, value in SimpleShot().init(model, SPEC, 0).items()}
    tasks = random_episodes(SPEC, 3)
    loop, lifted = (
        SimpleShot().statistics(model, params, tasks, context_of(3), Engine(how)) for how in ("loop", "vmap")
    )
    assert torch.allclose(loop.grads["centre.mean"], lifted.grads["centre.mean"], rtol=1e-12)
    assert not any(value.any() for name, value in loop.grads.items() if name != "centre.mean")
    assert int(loop.num_tasks) == 3


@pytest.mark.slow
def test_pretraining_and_its_statistics_have_the_same_bits_for_any_number_of_workers(local_ray):
    from cluster.executor import RayExecutor

    config = tiny(*method("simple_shot"), "algorithm.centre_tasks=7", "outer.steps=3", "executor.shard_size=2")

    def ended(executor):
        state = initial_state(Worker(config, CPU).initial(), config.outer)
        for _ in train(state, executor, config.outer, 2):
            set_statistics(state, config.algorithm, executor, 2)
        executor.close()
        return state.params

    placed = replace(config, executor=replace(config.executor, name="ray", workers=2))
    here, there = ended(InProcess(Worker(config, CPU))), ended(RayExecutor(placed))
    assert here["centre.mean"].any()
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_pretraining_learns_and_its_features_serve_every_baseline():
    settings = ("model={name: conv4, width: 8}", "outer={steps: 40, tasks_per_step: 1, lr: 0.01}", FEW)
    shape = "tasks.train={ways: 10, shots: 1, queries: 1}"
    config = tiny(*settings, "algorithm={name: simple_shot}", shape)
    executor = InProcess(Worker(config, CPU))
    state = initial_state(executor.worker.initial(), config.outer)
    losses = [metrics["loss"] for metrics in train(state, executor, config.outer, 1)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    set_statistics(state, config.algorithm, executor, 1)
    executor.close()

    def accuracy(name: str, params: dict, tasks: int) -> float:
        worker = Worker(tiny(*settings, *method(name), shape), CPU)
        named = {key: params.get(key, value) for key, value in worker.initial().items()}
        (shard,) = make_shards(0, tasks, tasks)
        return float(worker.score(ShardRequest("score", "test", 0), named, shard).values["accuracy"][:, -1].mean())

    assert accuracy("simple_shot", state.params, 60) > 0.03 + accuracy("simple_shot", {}, 60)
    assert all(accuracy(name, state.params, 4) > 0.5 for name in PRETRAINED)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A folder, and a run of each of two methods in it."""
    folder = tmp_path_factory.mktemp("runs")
    few = TINY | {"tasks": TINY["tasks"] | {"classes": 20}, "model": {"name": "conv4", "width": 4}}
    found = {}
    for name, settings in (("maml", ["evaluation.inner_steps=3"]), ("nearest_centroid", [])):
        plain = few | {"algorithm": {"name": name}}
        (folder / f"{name}.yaml").write_text(json.dumps(plain))
        quick = ("outer.steps=2", "evaluation.tasks=4", "evaluation.from_scratch_tasks=0", "evaluation.baselines=false")
        found[name] = last_json(metatrain(folder, "train", f"{name}.yaml", *quick, *settings, "--json"))["run_dir"]
    return folder, found


QUICK = {("nearest_centroid", "simple_shot"), ("maml", "logistic_regression")}


@pytest.mark.parametrize(
    ("trained", "name"),
    [
        pytest.param(trained, name, marks=[] if (trained, name) in QUICK else pytest.mark.slow)
        for trained in ("nearest_centroid", "maml")
        for name in PRETRAINED
    ],
)
def test_one_run_serves_every_baseline(runs, trained, name):
    folder, found = runs
    done = metatrain(folder, "evaluate", found[trained], f"algorithm.name={name}", "evaluation.tasks=3", "--json")
    assert last_json(done)["test"]["tasks"] == 3


@pytest.mark.parametrize(
    ("trained", "overrides", "says"),
    [
        (
            "nearest_centroid",
            ["algorithm.name=maml"],
            "name: maml reads model.head.weight, model.head.bias, wh",
        ),
        (
            "maml",
            ["algorithm.name=simple_shot", "tasks.seed=3"],
            "simple_shot reads centre.mean, a mean over the",
        ),
        ("maml", ["algorithm.name=nearest_centroid", "algorithm.inner_lr=1"], "algorithm.inner_lr: no such setting"),
        ("maml", ["model.weights=x.pt"], "model.weights: has no effect on an evaluation"),
    ],
)
def test_what_a_runs_parameters_do_not_suffice_for_is_refused(runs, trained, overrides, says):
    folder, found = runs
    done = metatrain(folder, "evaluate", found[trained], *overrides, expect=2)
    assert says in done.err.strip().splitlines()[-1]

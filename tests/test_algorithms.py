"""Test every algorithm by one conformance suite: a new one joins `ROWS`."""

from dataclasses import dataclass, field

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_leaves, tree_map

from metatrain.algorithms import ALGORITHMS
from metatrain.algorithms.optimization.anil import ANIL
from metatrain.engine import Engine
from metatrain.evaluation.evaluate import score_tasks
from metatrain.models import Conv4, Model, build_model
from metatrain.types import Algorithm, Context, Params
from tasks.types import Episode, Examples
from tests.configurations import ON_PICTURES
from tests.episodes import classification_spec, context_of, random_episodes
from tests.test_models import WithOurDropout, custom


@dataclass(frozen=True)
class Row:
    name: str
    settings: dict
    steps: int
    """How many inner steps a trajectory has."""
    whole: dict = field(default_factory=dict)
    """What makes it see the whole support set at once, whose order then does not matter."""
    outer_lr: float = 0.1
    normalization: str = "transductive"
    """"none" where a gradient is divided by its own size: that of a bias before a normalisation is rounding alone."""

    def model(self, dtype: torch.dtype) -> Model:
        architecture = Conv4(width=4, depth=2, normalization=self.normalization)
        return build_model(architecture, SPEC, seed=0).to(torch.device("cpu"), dtype)


SPEC = classification_spec(ways=3, size=8, channels=1)
ROWS = [
    Row("maml", {"inner_lr": 0.1, "inner_steps": 3}, 3),
    Row("fomaml", {"inner_lr": 0.1, "inner_steps": 3}, 3),
    Row("maml_plus_plus", {"inner_lr": 0.1, "inner_steps": 3}, 3),
    Row("imaml", {"inner_lr": 0.1, "inner_steps": 3}, 3),
    Row("reptile", {"inner_lr": 3e-2, "inner_steps": 3, "inner_batch": 4}, 3, {"inner_batch": 6}, 1.0, "none"),
    Row("anil", {"inner_lr": 0.3, "inner_steps": 3}, 3),
    Row("boil", {"inner_lr": 0.1, "inner_steps": 3}, 3),
    Row("meta_sgd", {"inner_lr": 0.1, "inner_steps": 3}, 3),
    Row("meta_curvature", {"inner_lr": 0.1, "inner_steps": 3}, 3),
    Row("meta_lstm", {"inner_lr": 0.1, "inner_steps": 3, "hidden": 4}, 3),
    Row("leo", {"inner_lr": 0.1, "inner_steps": 2, "finetuning_steps": 1, "latents": 4}, 3),
    Row("protonet", {}, 0),
    Row("r2d2", {}, 0),
    Row("meta_opt_net", {}, 0),
    Row("matching", {"scale": 4.0}, 0),
    Row("siamese", {}, 0),
    Row("relation", {"width": 4}, 0, outer_lr=1.0),
    Row("in_context", {"width": 8, "layers": 2, "heads": 2, "hidden": 8}, 0, outer_lr=0.15),
    Row("nearest_centroid", {}, 0),
    Row("simple_shot", {}, 0),
    Row("logistic_regression", {}, 0),
    Row("baseline_plus_plus", {"inner_steps": 3}, 3),
    Row("fine_tune", {"inner_steps": 3}, 3),
]
TASKS = 4


def test_every_algorithm_is_here():
    assert [row.name for row in ROWS] == ON_PICTURES


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.fixture
def setting(row: Row) -> tuple[Algorithm, Model, Params]:
    model = row.model(torch.float64)
    algorithm = ALGORITHMS[row.name](**row.settings)
    return algorithm, model, {name: value.double() for name, value in algorithm.init(model, SPEC, 0).items()}


def pick(tree, chosen: list[int]):
    return tree_map(lambda leaf: leaf[chosen], tree)


def test_an_inductive_prediction_of_a_query_is_the_same_whatever_is_asked_with_it(row):
    """A network trained transductively is used inductively."""
    model = Conv4(width=4, depth=2)
    model = build_model(model, SPEC, seed=0).to(torch.device("cpu"), torch.float64).with_normalization("inductive")
    algorithm, context = ALGORITHMS[row.name](**row.settings), Context(torch.tensor(0), torch.tensor(-1))
    params = {name: value.double() for name, value in algorithm.init(model, SPEC, 0).items()}
    support, query = pick(random_episodes(SPEC, 1), 0)
    *_, adapted = algorithm.trajectory(model, params, support, context)
    together = algorithm.predict(model, params, adapted, query.x, context)
    for size in (1, 2):
        parts = [algorithm.predict(model, params, adapted, x, context) for x in query.x.split(size)]
        assert torch.allclose(torch.cat(parts), together, rtol=1e-9)
    transductive = model.with_normalization("transductive")
    other = algorithm.predict(transductive, params, adapted, query.x, context)
    assert not torch.allclose(other, together, rtol=1e-3)


def meta_gradient(setting, chosen=None, vectorize="loop", noise=None):
    algorithm, model, params = setting
    chosen = list(range(TASKS)) if chosen is None else chosen
    context = context_of(TASKS, noise)
    context = Context(context.step, context.noise[chosen])
    return algorithm.meta_gradient(
        model, params, pick(random_episodes(SPEC, TASKS), chosen), context, Engine(vectorize)
    )


def close(a, b) -> bool:
    return all(torch.allclose(x, y, rtol=1e-9, atol=1e-12) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))


def test_vmap_and_loop_agree(setting):
    assert close(meta_gradient(setting, vectorize="vmap"), meta_gradient(setting, vectorize="loop"))


def test_a_batch_is_the_sum_of_its_tasks(setting):
    whole = meta_gradient(setting)
    parts = [meta_gradient(setting, [j]) for j in range(TASKS)]
    assert close(whole, tree_map(lambda *leaves: sum(leaves[1:], leaves[0]), *parts))
    assert int(whole.num_tasks) == TASKS


def test_gradients_are_named_and_shaped_as_parameters_and_carry_no_graph(setting):
    found, params = meta_gradient(setting), setting[2]
    assert {name: value.shape for name, value in found.grads.items()} == {n: p.shape for n, p in params.items()}
    assert not any(leaf.requires_grad for leaf in tree_leaves(found))
    assert set(found.metrics) >= {"loss", "accuracy"}


def test_the_trajectory_begins_before_the_first_step_and_ends_after_the_last(row, setting):
    algorithm, model, params = setting
    scores = score_tasks(algorithm, model, params, random_episodes(SPEC, TASKS), context_of(TASKS), Engine("vmap"))
    assert scores.values["inner_step"].tolist() == [list(range(row.steps + 1))] * TASKS
    assert torch.isfinite(scores.values["loss"]).all()


def test_scores_are_those_of_the_predictions_at_every_point(row, setting):
    algorithm, model, params = setting
    embeddings = 0

    def count(*_):
        nonlocal embeddings
        embeddings += 1

    tasks, context = random_episodes(SPEC, 1, shots=2, queries=3, dtype=torch.float64), context_of(1)
    with torch.no_grad(), model.body.register_forward_hook(count):
        scores = score_tasks(algorithm, model, params, tasks, context, Engine())
    support, query = tree_map(lambda leaf: leaf[0], tasks)
    at = Context(context.step, context.noise[0])
    for t, adapted in enumerate(algorithm.trajectory(model, params, support, at)):
        logits = algorithm.predict(model, params, adapted, query.x, at)
        torch.testing.assert_close(scores.values["loss"][0, t], cross_entropy(logits, query.y), rtol=1e-9, atol=0)
    if row.name in ("anil", "leo", "baseline_plus_plus"):
        assert embeddings == 2, "of the support set and of the queries, once each"


def test_a_subclass_that_predicts_in_its_own_way_is_scored_so():
    class Undecided(ANIL):
        def predict(self, model, params, adapted, x, context):
            return torch.zeros(len(x), 3, dtype=x.dtype)

    row = next(row for row in ROWS if row.name == "anil")
    model, tasks = row.model(torch.float64), random_episodes(SPEC, 1)
    params = {name: value.double() for name, value in Undecided().init(model, SPEC, 0).items()}
    scores = score_tasks(Undecided(), model, params, tasks, context_of(1), Engine())
    torch.testing.assert_close(scores.values["loss"], torch.full((1, 6), 3.0, dtype=torch.float64).log())


def test_the_order_of_support_examples_does_not_matter(row, setting):
    _, model, params = setting
    algorithm = ALGORITHMS[row.name](**row.settings | row.whole)
    support, query = pick(random_episodes(SPEC, 1), 0)
    order = torch.randperm(len(support.y), generator=torch.Generator().manual_seed(1))
    context = Context(torch.tensor(0), torch.tensor(-1))

    def predict(support):
        *_, adapted = algorithm.trajectory(model, params, support, context)
        return algorithm.predict(model, params, adapted, query.x, context)

    assert torch.allclose(predict(support), predict(pick(support, order.tolist())), rtol=1e-8, atol=1e-10)


LABELS = "transformer.embedding.0.weight"
"""Of an in-context learner: [width, features + labels]."""


def relabelled(params: Params, order: list[int]) -> Params:
    """Head rows (and what is learned beside them, or reads and tells labels) in another order of classes."""

    def of_classes(name: str, value: torch.Tensor) -> torch.Tensor:
        rows = value[order]
        return rows[:, order] if name.endswith("weight.out") else rows  # Meta-Curvature's matrix from class to class

    def of_labels(value: torch.Tensor) -> torch.Tensor:
        features = value.shape[1] - len(order)
        return torch.cat([value[:, :features], value[:, features:][:, order]], 1)

    if LABELS in params:
        told = {name: value[order] for name, value in params.items() if name.startswith("transformer.output.2.")}
        return params | told | {LABELS: of_labels(params[LABELS])}
    not_classes = (".in", ".position")
    return {
        name: of_classes(name, value) if ".head." in name and not name.endswith(not_classes) else value
        for name, value in params.items()
    }


def test_classes_may_change_names_as_far_as_the_head_does_too(row, setting):
    """Class c becomes order[c]. Methods that compare embeddings do not care; the others do, by their head alone."""
    algorithm, model, params = setting
    support, query = pick(random_episodes(SPEC, 1), 0)
    order, context = [2, 0, 1], Context(torch.tensor(0), torch.tensor(-1))
    renamed = Examples(support.x, torch.tensor(order)[support.y])

    def predict(params, support):
        *_, adapted = algorithm.trajectory(model, params, support, context)
        return algorithm.predict(model, params, adapted, query.x, context)

    plain = predict(params, support)
    back = torch.argsort(torch.tensor(order)).tolist()
    followed = predict(relabelled(params, back), renamed)[:, order]
    assert torch.allclose(plain, followed, rtol=1e-8, atol=1e-10)
    indifferent = torch.allclose(plain, predict(params, renamed)[:, order], rtol=1e-8, atol=1e-10)
    assert indifferent == (not any(".head." in name or name == LABELS for name in params))


def test_steps_along_the_gradient_lower_the_loss(row, setting):
    algorithm, model, params = setting
    support, context = random_episodes(SPEC, TASKS).support, context_of(TASKS)
    tasks = Episode(support, support)
    losses = []
    for _ in range(8):
        found = algorithm.meta_gradient(model, params, tasks, context, Engine("vmap"))
        losses.append(float(found.metrics["loss"]))
        params = {name: value - row.outer_lr * found.grads[name] / TASKS for name, value in params.items()}
    assert losses[-1] < 0.9 * losses[0]


def test_dropout_replays_from_the_tasks_own_key(row):
    model = build_model(custom(WithOurDropout), classification_spec(3, 28, 1), seed=0)
    algorithm = ALGORITHMS[row.name](**row.settings)
    params = algorithm.init(model, model.spec, 0)
    tasks = random_episodes(model.spec, TASKS, dtype=torch.float32)

    def gradient(noise, vectorize="loop"):
        return algorithm.meta_gradient(model, params, tasks, context_of(TASKS, noise), Engine(vectorize)).grads

    one, again, other, lifted = gradient(5), gradient(5), gradient(6), gradient(5, "vmap")
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.allclose(one[name], other[name]) for name in one)
    assert all(torch.allclose(one[name], lifted[name], atol=1e-4, rtol=1e-3) for name in one)


def test_float32_gives_what_float64_gives_within_its_precision(row):
    def gradient(dtype):
        model = row.model(dtype)
        algorithm = ALGORITHMS[row.name](**row.settings)
        params = {name: value.to(dtype) for name, value in algorithm.init(model, SPEC, 0).items()}
        tasks = random_episodes(SPEC, TASKS, dtype=torch.float32)
        tasks = tree_map(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, tasks)
        return algorithm.meta_gradient(model, params, tasks, context_of(TASKS), Engine("loop")).grads

    exact, found = gradient(torch.float64), gradient(torch.float32)
    scale = max(float(value.abs().max()) for value in exact.values())
    assert all((found[name].double() - exact[name]).abs().max() < 1e-4 * scale for name in exact)

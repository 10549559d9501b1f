"""Test inner loops beside their gradients: minibatches, heads, learned rates, modes of normalisation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metatrain.algorithms import ANIL, BOIL, MAML, MetaCurvature, MetaLSTM, MetaSGD, Reptile
from metatrain.algorithms.optimization.inner_optimizers import InnerOptimizer, fast_weights
from metatrain.algorithms.optimization.minibatches import batch_order
from metatrain.engine import Engine
from metatrain.models import Conv4, build_model
from metatrain.types import Context
from tests import reference
from tests.episodes import classification_spec, context_of, random_episodes
from tests.test_models import WithOwnHead, custom

SPEC = classification_spec(ways=3, size=8, channels=1)
NO_NOISE = Context(torch.tensor(0), torch.tensor(-1))


@given(st.integers(1, 12), st.integers(1, 11), st.integers(0, 2**60))
def test_minibatches_go_through_one_shuffle_after_another(examples, batch, key):
    noise = torch.tensor(key)
    if batch >= examples:
        assert batch_order(noise, examples, 3, batch) is None
        return
    steps = 2 * examples  # two examples' worth of epochs, however they fall
    drawn = torch.cat([batch_order(noise, examples, t, batch) for t in range(steps)])
    for epoch in range(len(drawn) // examples):
        one = drawn[epoch * examples : (epoch + 1) * examples]
        assert sorted(one.tolist()) == list(range(examples))


def test_minibatches_depend_on_the_tasks_key_and_are_shared_without_one():
    def order(key):
        return batch_order(torch.tensor(key), 50, 0, 40).tolist()

    assert order(5) == order(5) != order(6)
    assert order(-1) == order(-1) != list(range(40)), "in evaluation classes are mixed too"
    lifted = torch.func.vmap(lambda key: batch_order(key, 50, 0, 40))(torch.tensor([5, 6]))
    assert lifted.tolist() == [order(5), order(6)]


def adapted_names(algorithm) -> set[str]:
    model = build_model(Conv4(width=4, depth=2), SPEC, seed=0)
    params = algorithm.init(model, SPEC, 0)
    support = torch.utils._pytree.tree_map(lambda leaf: leaf[0], random_episodes(SPEC, 1, dtype=torch.float32)).support
    before, *_, after = (state.fast for state in algorithm.trajectory(model, params, support, NO_NOISE))
    weights = after.head if isinstance(algorithm, ANIL) else after
    begun = before.head if isinstance(algorithm, ANIL) else before
    assert all(not torch.equal(weights[name], begun[name]) for name in weights if "bias" not in name)
    return set(weights)


def test_anil_adapts_the_head_and_boil_the_rest():
    everything = set(build_model(Conv4(width=4, depth=2), SPEC, seed=0).initial())
    head = {"model.head.weight", "model.head.bias"}
    assert adapted_names(ANIL(0.5, 2)) == head
    assert adapted_names(BOIL(0.5, 2)) == everything - head


@pytest.mark.parametrize("algorithm", [ANIL(), BOIL()])
def test_anil_and_boil_refuse_models_without_a_head(algorithm):
    spec = classification_spec(4, 28, 1)
    headless = build_model(custom(WithOwnHead, head="none"), spec, 0)
    with pytest.raises(ValueError, match=r"algorithm.name: .* this model has no head: name it by model.head"):
        algorithm.init(headless, spec, 0)
    algorithm.init(build_model(custom(WithOwnHead, head="classifier"), spec, 0), spec, 0)


def test_meta_sgd_has_a_rate_for_each_weight_and_moves_by_it():
    model = build_model(Conv4(width=4, depth=2), SPEC, seed=0)
    params = MetaSGD(0.1).init(model, SPEC, 0)
    weights = {name for name in params if name.startswith("model.")}
    assert {name for name in params if name not in weights} == {f"inner_lr.{name}" for name in weights}
    frozen = params | {name: torch.zeros_like(value) for name, value in params.items() if name.startswith("inner_lr.")}
    support = random_episodes(SPEC, 1, dtype=torch.float32).support
    one = type(support)(support.x[0], support.y[0])
    *_, still = MetaSGD(0.1, 3).trajectory(model, frozen, one, NO_NOISE)
    assert all(torch.equal(still.fast[name], params[name]) for name in weights)


def after_one_step(algorithm, model, params):
    support = torch.utils._pytree.tree_map(lambda leaf: leaf[0], random_episodes(SPEC, 1, dtype=torch.float32)).support
    *_, adapted = algorithm.trajectory(model, params, support, NO_NOISE)
    return fast_weights(adapted.fast)


def test_meta_curvature_and_meta_lstm_begin_as_gradient_descent():
    model = build_model(Conv4(width=4, depth=2), SPEC, seed=0)
    expected = after_one_step(MAML(0.3), model, model.initial())
    curvature, rule = MetaCurvature(0.3), MetaLSTM(0.3, 1, forget=0.5)
    found = after_one_step(curvature, model, curvature.init(model, SPEC, 0))
    assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in expected.items())
    params = rule.init(model, SPEC, 0)
    gates = {name: torch.zeros_like(value) for name, value in params.items() if "gate.weight" in name}
    found = after_one_step(rule, model, params | gates)
    begun = model.initial()
    assert all(torch.allclose(found[name], value - 0.5 * begun[name], atol=1e-6) for name, value in expected.items())


@pytest.mark.parametrize("settings", [{"inner_lr": 1.0}, {"forget": 1.5}])
def test_meta_lstm_refuses_gates_outside_of_0_to_1(settings):
    with pytest.raises(ValueError, match=r"algorithm\.\w+: .* is not between 0 and 1"):
        MetaLSTM(**settings)


def test_reptile_moves_to_adams_weights_whatever_the_queries():
    model = build_model(Conv4(width=4, depth=2, normalization="none"), SPEC, seed=0)
    algorithm = Reptile(inner_lr=1e-3, inner_steps=1, inner_batch=100)
    params, tasks = algorithm.init(model, SPEC, 0), random_episodes(SPEC, 2, dtype=torch.float32)
    found = algorithm.meta_gradient(model, params, tasks, context_of(2), Engine("loop"))
    # With β1 = 0 and fresh moments the first step is α times the sign of the gradient, where there is one.
    sizes = torch.cat([value.abs().reshape(-1) for value in found.grads.values()]) / 2
    assert sizes.max() == pytest.approx(1e-3, rel=1e-3)
    other = tasks._replace(query=tasks.support)
    again = algorithm.meta_gradient(model, params, other, context_of(2), Engine("loop"))
    assert all(torch.equal(found.grads[name], again.grads[name]) for name in params)


def test_reptile_moves_to_the_weights_of_another_optimiser():
    """In float64, with momentum, on minibatches; the reference is written with autograd alone."""
    model = build_model(Conv4(width=4, depth=2), SPEC, seed=0).to(torch.device("cpu"), torch.float64)
    algorithm = Reptile(0.1, inner_steps=3, inner_batch=4, inner_optimizer=InnerOptimizer(momentum=0.5))
    params = {name: value.double() for name, value in algorithm.init(model, SPEC, 0).items()}
    tasks, context = random_episodes(SPEC, 1), context_of(1)
    found = algorithm.meta_gradient(model, params, tasks, context, Engine("loop")).grads
    names = [name.removeprefix("model.") for name in params]
    leaves = [value.clone().requires_grad_() for value in params.values()]
    theirs = torch.optim.SGD(leaves, 0.1, momentum=0.5)
    for t in range(3):
        chosen = batch_order(context.noise[0], len(tasks.support.y[0]), torch.tensor(t), 4)
        theirs.zero_grad()
        scores = reference.logits(dict(zip(names, leaves, strict=True)), tasks.support.x[0][chosen], 2, stride=1)
        reference.log_softmax_loss(scores, tasks.support.y[0][chosen]).backward()
        theirs.step()
    for before, after, (name, moved) in zip(params.values(), leaves, found.items(), strict=True):
        assert (before - after - moved).abs().max() <= 1e-9 * max(1e-3, float(moved.abs().max())), name

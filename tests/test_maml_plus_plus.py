"""Test MAML++ part by part, in float64, against double backward through a loop that is written out."""

import pytest
import torch

from metatrain.algorithms import MAML, MAMLPlusPlus
from metatrain.engine import Engine
from metatrain.models import Conv4, build_model
from metatrain.types import Context
from tests.episodes import classification_spec, context_of, random_episodes
from tests.reference import maml_plus_plus
from tests.test_gradients import relative_error

SPEC = classification_spec(ways=3, size=8, channels=1)
STEPS, RATE, COUNT, BLOCKS = 3, 0.1, 2, 2


def model(normalization: str = "transductive"):
    built = build_model(Conv4(width=4, depth=BLOCKS, normalization=normalization), SPEC, seed=0)
    return built.to(torch.device("cpu"), torch.float64)


def started(algorithm, network):
    """Return parameters whose rows differ by inner step, as they will once learned."""
    params = {name: value.double() for name, value in algorithm.init(network, SPEC, 0).items()}
    torch.manual_seed(3)
    return {
        name: value * (0.5 + torch.rand_like(value)) + 0.01 if name.startswith(("inner_lr.", "step_norm.")) else value
        for name, value in params.items()
    }


CASES = {
    "all": {},
    "no rates": {"learned_rates": False},
    "no step norm": {"step_norm": False},
    "last loss only": {"multi_step_loss": 0},
    "first order": {"first_order": 50},
    "none": {"learned_rates": False, "step_norm": False, "multi_step_loss": 0},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_the_meta_gradient_is_exact_with_and_without_each_part(settings):
    algorithm, network = MAMLPlusPlus(RATE, STEPS, **{"multi_step_loss": 100} | settings), model()
    params, tasks = started(algorithm, network), random_episodes(SPEC, COUNT)
    plain = {name.replace("model.", ""): value for name, value in params.items()}
    each = list(zip(*tasks.support, *tasks.query, strict=True))
    for step in (30, 99, 100):
        context = Context(torch.tensor(step), context_of(COUNT).noise)
        found = algorithm.meta_gradient(network, params, tasks, context, Engine("vmap")).grads
        counts = step < algorithm.multi_step_loss
        share, second = max(1 - step / 100, 0.03) / STEPS if counts else 0.0, step >= algorithm.first_order
        expected = maml_plus_plus(plain, each, RATE, STEPS, BLOCKS, 1, inductive=False, share=share, second=second)
        assert relative_error({name.replace("model.", ""): g for name, g in found.items()}, expected) < 1e-9


def test_first_order_gradients_of_rates_are_not_zero():
    algorithm, network = MAMLPlusPlus(RATE, STEPS, first_order=1), model()
    params = started(algorithm, network)
    found = algorithm.meta_gradient(network, params, random_episodes(SPEC, COUNT), context_of(COUNT), Engine()).grads
    assert float(found["inner_lr.model.head.weight"].abs().min()) > 0


def test_without_its_parts_it_is_maml_that_leaves_normalisation_alone():
    network = model("none")
    plain = MAMLPlusPlus(RATE, STEPS, learned_rates=False, step_norm=False, multi_step_loss=0)
    params, tasks = plain.init(network, SPEC, 0), random_episodes(SPEC, COUNT)
    mine, maml = (
        kind.meta_gradient(network, params, tasks, context_of(COUNT), Engine()).grads
        for kind in (plain, MAML(RATE, STEPS))
    )
    assert all(torch.equal(mine[name], maml[name]) for name in params)


def test_losses_before_the_last_lose_weight_and_all_weights_add_up_to_one():
    algorithm = MAMLPlusPlus(RATE, 5, multi_step_loss=100)
    first, middle, last = (algorithm.loss_weights(torch.tensor(step)) for step in (0, 50, 99))
    assert torch.allclose(first, torch.tensor([0, 0.2, 0.2, 0.2, 0.2, 0.2]).double())
    assert torch.allclose(middle, torch.tensor([0, 0.1, 0.1, 0.1, 0.1, 0.6]).double())
    assert torch.allclose(last, torch.tensor([0, 0.006, 0.006, 0.006, 0.006, 0.976]).double())


def test_more_steps_in_evaluation_repeat_the_last_rate():
    algorithm, network = MAMLPlusPlus(RATE, 2), model()
    params = started(algorithm, network)
    support = torch.utils._pytree.tree_map(lambda leaf: leaf[0], random_episodes(SPEC, 1)).support
    context = Context(torch.tensor(0), torch.tensor(-1))
    longer = MAMLPlusPlus(RATE, 4)
    short, long = (list(each.trajectory(network, params, support, context)) for each in (algorithm, longer))
    assert len(long) == 5
    assert all(torch.equal(short[2].fast[name], long[2].fast[name]) for name in short[2].fast)
    assert all(torch.isfinite(value).all() for value in long[4].fast.values())


def test_what_a_worker_compiles_covers_each_phase():
    assert MAMLPlusPlus(multi_step_loss=100, first_order=50).phases == (0, 50, 100)
    assert MAMLPlusPlus(multi_step_loss=0).phases == (0,)

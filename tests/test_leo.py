"""Test LEO where its samples count, which the gradients' reference leaves out: it runs without noise."""

import pytest
import torch
from torch.utils._pytree import tree_map

from metatrain.algorithms import LEO
from metatrain.engine import Engine
from metatrain.models import Conv4, build_model
from metatrain.models.dropout import normal
from metatrain.types import Context
from tests.episodes import classification_spec, context_of, random_episodes

SPEC = classification_spec(ways=3, size=8, channels=1)
QUERIES_ALONE = {"kl_weight": 0.0, "encoder_penalty_weight": 0.0, "orthogonality_weight": 0.0}


def learner(**settings):
    algorithm = LEO(inner_steps=2, finetuning_steps=1, finetuning_lr=0.1, latents=4, **settings)
    model = build_model(Conv4(width=4, depth=2), SPEC, seed=0).to(torch.device("cpu"), torch.float64)
    return algorithm, model, {name: value.double() for name, value in algorithm.init(model, SPEC, 0).items()}


def test_normal_numbers_have_the_moments_of_the_normal_distribution_and_are_zero_without_noise():
    drawn = normal(torch.tensor(7), torch.Size([100_000]), torch.device("cpu"))
    assert [float(drawn.mean()), float(drawn.var()), float((drawn**4).mean())] == pytest.approx([0, 1, 3], abs=0.05)
    assert not normal(torch.tensor(-1), torch.Size([4]), torch.device("cpu")).any()


def test_gradients_through_samples_are_those_of_finite_differences():
    algorithm, model, params = learner(latent_std=0.5, **QUERIES_ALONE)
    tasks = random_episodes(SPEC, 2)

    def found(params):
        return algorithm.meta_gradient(model, params, tasks, context_of(2, noise=5), Engine("vmap"))

    torch.manual_seed(0)
    direction = {name: torch.randn_like(value) for name, value in params.items()}
    up, down = (
        float(found({name: value + eps * direction[name] for name, value in params.items()}).metrics["loss"])
        for eps in (1e-6, -1e-6)
    )
    along = sum(float((slope * direction[name]).sum()) for name, slope in found(params).grads.items())
    assert along == pytest.approx((up - down) / 2e-6, rel=1e-5)


def test_a_key_draws_its_own_latents_and_heads_and_no_key_takes_the_means():
    algorithm, model, params = learner()
    support = tree_map(lambda leaf: leaf[0], random_episodes(SPEC, 1)).support

    def first(key: int):
        return next(algorithm.trajectory(model, params, support, Context(torch.tensor(0), torch.tensor(key))))

    silent, one, again, other = first(-1), first(5), first(5), first(6)
    assert torch.equal(silent.latent, silent.posterior.mean)
    assert torch.equal(one.head, again.head)
    assert not torch.allclose(one.latent, other.latent)
    generated = one.latent @ params["decoder.weight"].T
    assert not torch.allclose(one.head, generated[:, : generated.shape[1] // 2]), "rows of the head are drawn too"


def test_more_classes_than_in_training_get_a_head_of_their_own():
    algorithm, model, params = learner()
    wide = classification_spec(ways=5, size=8, channels=1)
    support, query = tree_map(lambda leaf: leaf[0], random_episodes(wide, 1))
    context = Context(torch.tensor(0), torch.tensor(-1))
    *_, adapted = algorithm.trajectory(model.for_tasks(wide, params), params, support, context)
    assert algorithm.predict(model, params, adapted, query.x, context).shape == (15, 5)


def test_a_rate_without_steps_is_refused():
    with pytest.raises(ValueError, match=r"algorithm\.finetuning_lr: has no effect without steps: remove it"):
        LEO(finetuning_steps=0, finetuning_lr=0.1)

"""Neural processes: what holds for each of them, and gradients against networks written here (invariant 3)."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from metatrain.algorithms import ALGORITHMS
from metatrain.algorithms.neural_processes import latent
from metatrain.densities import mean_of, std_of
from metatrain.engine import Engine
from metatrain.evaluation.evaluate import score_tasks
from metatrain.models import Model, build_model
from metatrain.models.architectures import Identity
from metatrain.models.dropout import normal
from metatrain.types import Context, Gaussian
from tasks.sources.gaussian_process import GaussianProcess
from tasks.types import Episode, EpisodeShape, Examples, PaddedExamples
from tests.configurations import NEURAL_PROCESSES

SETTINGS = {
    "cnp": {"width": 8, "encoder_depth": 2, "decoder_depth": 2},
    "np": {"width": 8, "encoder_depth": 2, "decoder_depth": 2, "latents": 4, "samples": 3},
    "anp": {"width": 8, "heads": 2, "encoder_depth": 2, "key_depth": 1, "decoder_depth": 2, "latents": 4, "samples": 3},
    "conv_cnp": {"width": 8, "layers": 2, "kernel": 5, "per_unit": 8},
    "tnp": {"width": 8, "layers": 2, "heads": 2, "hidden": 8, "embedding_depth": 2},
}
TASKS = GaussianProcess(fewest=0).distribution("test", EpisodeShape(None, 6, 5), 0)

LOOP = Engine("loop")


class Setting:
    """A neural process in float64, and tasks of Gaussian processes."""

    def __init__(self, name: str, **settings: object) -> None:
        self.model: Model = build_model(Identity(), TASKS.spec, seed=0).to(torch.device("cpu"), torch.float64)
        self.method = ALGORITHMS[name](**SETTINGS[name] | settings)
        self.params = {key: value.double() for key, value in self.method.init(self.model, TASKS.spec, 0).items()}

    def predict(self, support: Examples, x: Tensor, noise: int = -1):
        context = Context(torch.tensor(0), torch.tensor(noise))
        (adapted,) = self.method.trajectory(self.model, self.params, support, context)
        return self.method.predict(self.model, self.params, adapted, x, context)

    def gradient(self, tasks: Episode, engine: Engine = LOOP, noise: int = 5) -> dict[str, Tensor]:
        count = len(tasks.query.y)
        context = Context(torch.zeros(count, dtype=torch.int64), noise + torch.arange(count))
        return self.method.meta_gradient(self.model, self.params, tasks, context, engine).grads


def episodes(count: int) -> Episode:
    return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, TASKS.episodes(range(count)))


def task(number: int = 3) -> Episode:
    return tree_map(lambda leaf: leaf[number], episodes(number + 1))


def close(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.fixture(params=SETTINGS)
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param)


def test_every_neural_process_is_here():
    assert list(SETTINGS) == NEURAL_PROCESSES


def test_padding_is_as_if_it_was_not_there(setting):
    one = task()
    inside = one.support.mask
    assert 0 < int(inside.sum()) < len(inside)
    changed = one.support._replace(
        x=torch.where(inside[:, None], one.support.x, 0.7), y=torch.where(inside[:, None], one.support.y, 9.0)
    )
    alone = Examples(one.support.x[inside], one.support.y[inside])
    found = setting.predict(one.support, one.query.x)
    close(found, setting.predict(alone, one.query.x))
    close(found, setting.predict(changed, one.query.x))


def test_the_order_of_the_support_set_changes_nothing(setting):
    one, order = task(), torch.randperm(6, generator=torch.Generator().manual_seed(0))
    shuffled = PaddedExamples(*(part[order] for part in one.support))
    close(setting.predict(one.support, one.query.x), setting.predict(shuffled, one.query.x))


def test_a_query_changes_no_other_prediction(setting):
    one = task()
    together = setting.predict(one.support, one.query.x)
    for at in range(len(one.query.x)):
        close(setting.predict(one.support, one.query.x[at : at + 1]), [part[at : at + 1] for part in together])


def test_an_empty_support_set_is_read_too(setting):
    one = task()
    empty = one.support._replace(mask=torch.zeros_like(one.support.mask))
    density = setting.predict(empty, one.query.x)
    assert bool(mean_of(density).isfinite().all()) and bool((std_of(density) > 0).all())
    batch = tree_map(lambda leaf: leaf[None], Episode(empty, one.query))
    assert all(bool(slope.isfinite().all()) for slope in setting.gradient(batch).values())


def test_the_support_set_matters(setting):
    one = task()
    other = one.support._replace(y=one.support.y + 1)
    before, after = (mean_of(setting.predict(support, one.query.x)) for support in (one.support, other))
    assert float((before - after).abs().max()) > 1e-4


def test_vmap_and_loop_agree(setting):
    tasks = episodes(4)
    by_loop, by_vmap = (setting.gradient(tasks, Engine(kind)) for kind in ("loop", "vmap"))
    assert by_loop.keys() == by_vmap.keys() == setting.params.keys()
    for name, slope in by_loop.items():
        torch.testing.assert_close(by_vmap[name], slope, rtol=1e-9, atol=1e-11)


def test_gradients_are_those_of_finite_differences(setting):
    """Along a random direction; of one draw of z, whose noise is the task's own."""
    tasks = episodes(3)
    slopes = setting.gradient(tasks)
    generator = torch.Generator().manual_seed(0)
    along = {name: torch.randn(value.shape, generator=generator).double() for name, value in setting.params.items()}
    expected = sum(float((slopes[name] * along[name]).sum()) for name in slopes)

    def loss(at: float) -> float:
        params = {name: value + at * along[name] for name, value in setting.params.items()}
        count = len(tasks.query.y)
        context = Context(torch.zeros(count, dtype=torch.int64), 5 + torch.arange(count))
        found = setting.method.meta_gradient(setting.model, params, tasks, context, Engine("loop"))
        return float(found.metrics["loss"])

    step = 1e-5
    assert (loss(step) - loss(-step)) / (2 * step) == pytest.approx(expected, rel=1e-4)


def test_steps_along_the_gradient_lower_the_loss(setting):
    tasks = episodes(8)
    context = Context(torch.zeros(8, dtype=torch.int64), torch.arange(8))

    def loss() -> float:
        return float(
            setting.method.meta_gradient(setting.model, setting.params, tasks, context, Engine("vmap")).metrics["loss"]
        )

    before = loss()
    for _ in range(10):
        slopes = setting.gradient(tasks, Engine("vmap"), 0)
        setting.params = {name: value - 0.01 * slopes[name] / 8 for name, value in setting.params.items()}
    assert loss() < before


def test_scores_hold_the_gap_to_the_exact_posterior(setting):
    tasks = episodes(4)
    context = Context(torch.zeros(4, dtype=torch.int64), torch.full((4,), -1))
    found = score_tasks(setting.method, setting.model, setting.params, tasks, context, Engine("loop")).values
    exact = torch.distributions.Normal(*tasks.posterior).log_prob(tasks.query.y).mean((1, 2))
    torch.testing.assert_close(found["oracle_gap"][:, -1], exact - found["log_likelihood"][:, -1])


# Against networks written here.


def layers(params: dict[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    names = sorted({int(name.removeprefix(prefix).split(".")[0]) for name in params if name.startswith(prefix)})
    for number in names:
        x = x @ params[f"{prefix}{number}.weight"].T + params[f"{prefix}{number}.bias"]
        x = x.clamp(min=0) if number != names[-1] else x
    return x


def negative_log_likelihood(outputs: Tensor, y: Tensor) -> Tensor:
    mean, std = outputs[..., :1], 0.01 + 0.99 * F.softplus(outputs[..., 1:])
    return -torch.distributions.Normal(mean, std).log_prob(y).mean()


def expected_gradient(setting: Setting, loss, tasks: Episode) -> dict[str, Tensor]:
    params = {name: value.clone().requires_grad_() for name, value in setting.params.items()}
    total = sum(loss(params, tree_map(lambda leaf, i=i: leaf[i], tasks), 5 + i) for i in range(len(tasks.query.y)))
    return dict(zip(params, torch.autograd.grad(total, list(params.values())), strict=True))


def cnp_loss(params: dict[str, Tensor], one: Episode, noise: int) -> Tensor:
    inside = one.support.mask
    pairs = torch.cat([one.support.x[inside], one.support.y[inside]], 1)
    encoded = layers(params, "encoder.", pairs)
    r = encoded.mean(0) if len(pairs) else torch.zeros(8).double()
    both = torch.cat([one.query.x, r.repeat(len(one.query.x), 1)], 1)
    return negative_log_likelihood(layers(params, "decoder.", both), one.query.y)


def np_loss(params: dict[str, Tensor], one: Episode, noise: int) -> Tensor:
    inside, zeros = one.support.mask, torch.zeros(8).double()
    support = torch.cat([one.support.x[inside], one.support.y[inside]], 1)
    everything = torch.cat([support, torch.cat([one.query.x, one.query.y], 1)])

    def z_of(pairs: Tensor) -> torch.distributions.Normal:
        mean, raw = (layers(params, "latent_encoder.", pairs).mean(0) if len(pairs) else zeros).chunk(2)
        return torch.distributions.Normal(mean, 0.1 + 0.9 * torch.sigmoid(raw))

    prior, posterior = z_of(support), z_of(everything)
    drawn = normal(latent.fold(torch.tensor(noise), 2), torch.Size((1, 4)), torch.device("cpu"))[0]
    z = posterior.mean + posterior.stddev * drawn
    r = layers(params, "encoder.", support).mean(0) if len(support) else zeros
    given = torch.cat([one.query.x, r.repeat(5, 1), z.repeat(5, 1)], 1)
    divergence = torch.distributions.kl_divergence(posterior, prior).sum()
    return negative_log_likelihood(layers(params, "decoder.", given), one.query.y) + divergence / 5


def tnp_loss(params: dict[str, Tensor], one: Episode, noise: int) -> Tensor:
    """By torch's own encoder layers, all tokens in one sequence: support, the learned one, queries."""
    inside = one.support.mask
    embed = lambda pairs: layers(params, "transformer.embedding.", pairs)  # noqa: E731
    support = embed(torch.cat([one.support.x[inside], one.support.y[inside]], 1))
    queries = embed(torch.cat([one.query.x, torch.zeros_like(one.query.y)], 1))
    known = len(support) + 1
    tokens = torch.cat([support, params["transformer.start"], queries])
    barred = torch.ones(len(tokens), len(tokens), dtype=torch.bool)
    barred[:, :known] = False
    for number in range(2):
        own = {name.removeprefix(f"transformer.layers.{number}."): p for name, p in params.items()}
        layer = nn.TransformerEncoderLayer(8, 2, 8, 0.0, batch_first=True).double()
        qkv = torch.cat([own[f"attention.{kind}.weight"] for kind in ("query", "key", "value")])
        given = {
            "self_attn.in_proj_weight": qkv,
            "self_attn.in_proj_bias": torch.zeros(24).double(),
            "self_attn.out_proj.weight": own["attention.output.weight"],
            "self_attn.out_proj.bias": own["attention.output.bias"],
        }
        for ours, theirs in (
            ("linear.0", "linear1"),
            ("linear.2", "linear2"),
            ("first_norm", "norm1"),
            ("second_norm", "norm2"),
        ):
            given |= {f"{theirs}.{kind}": own[f"{ours}.{kind}"] for kind in ("weight", "bias")}
        tokens = torch.func.functional_call(layer, given, (tokens[None], barred))[0]
    return negative_log_likelihood(layers(params, "transformer.output.", tokens[known:]), one.query.y)


@pytest.mark.parametrize(("name", "loss"), [("cnp", cnp_loss), ("np", np_loss), ("tnp", tnp_loss)])
def test_gradients_are_those_of_networks_written_apart(name, loss):
    setting, tasks = Setting(name), episodes(4)
    found, expected = setting.gradient(tasks), expected_gradient(setting, loss, tasks)
    scale = max(float(value.abs().max()) for value in expected.values())
    assert max(float((found[key] - expected[key]).abs().max()) for key in expected) / scale < 1e-9


def test_conv_cnp_shifts_with_its_inputs():
    setting = Setting("conv_cnp", grid=(-8.0, 8.0))
    one = task()
    shifted = one.support._replace(x=one.support.x + 1.5)  # a multiple of the spacing of the grid
    close(setting.predict(shifted, one.query.x + 1.5), setting.predict(one.support, one.query.x))


def test_z_is_shared_by_all_queries_and_drawn_from_the_support_set_in_tests():
    setting = Setting("np", samples=4000)
    one = task()
    (read,) = setting.method.trajectory(
        setting.model, setting.params, one.support, Context(torch.tensor(0), torch.tensor(-1))
    )
    z = latent.draw(read.z, torch.tensor(latent._KEY), 4000)
    torch.testing.assert_close(z.mean(0), read.z.mean, atol=0.06, rtol=0)
    torch.testing.assert_close(z.std(0), read.z.std, atol=0.06, rtol=0)
    assert setting.predict(one.support, one.query.x).mean.shape == (5, 4000, 1)


def test_the_divergence_is_torch_s():
    torch.manual_seed(0)
    q, p = (Gaussian(torch.randn(4).double(), torch.rand(4).double() + 0.1) for _ in range(2))
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(*q), torch.distributions.Normal(*p)).sum()
    torch.testing.assert_close(latent.divergence(q, p), expected)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("anp", {"heads": 3}, r"algorithm\.heads: 8 is no multiple of 3"),
        ("tnp", {"heads": 3}, r"algorithm\.heads: 8 is no multiple of 3"),
        ("conv_cnp", {"grid": (2.0, 1.0)}, r"algorithm\.grid: 2 to 1 is not a range"),
        ("conv_cnp", {"kernel": 4}, r"algorithm\.kernel: 4 has no middle: set an odd number"),
        ("cnp", {"width": 0}, r"algorithm\.width"),
    ],
)
def test_settings_that_cannot_be_are_refused(name, settings, says):
    with pytest.raises(ValueError, match=says):
        Setting(name, **settings)


def test_tasks_with_classes_are_refused():
    setting = Setting("cnp")
    spec = setting.model.spec._replace(kind="classification", ways=5, y=())
    with pytest.raises(ValueError, match=r"cnp predicts values, and these tasks have classes: set protonet"):
        setting.method.init(replace(setting.model, spec=spec), spec, 0)

"""Networks as pure functions: what is computed, what is refused, and why."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metatrain.models import MLP, Conv4, Custom, Dropout, TaskNorm, build_model
from metatrain.models.normalization import statistics_of_first, written_out
from tests.episodes import classification_spec

SPEC = classification_spec(ways=4, size=28, channels=1)
SILENT = torch.tensor(-1)


class WithRunningStatistics(nn.Sequential):
    def __init__(self, track: bool = True) -> None:
        super().__init__(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=track), nn.Flatten())


class WithTorchDropout(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 8), nn.Dropout(0.5))


class WithOurDropout(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 8), Dropout(0.5))


class WithOwnHead(nn.Module):
    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.trunk = nn.Linear(784, 8)
        self.classifier = nn.Linear(8, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.relu(self.trunk(x.flatten(1))))


class WrongShape(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def custom(kind: type[nn.Module], **settings) -> Custom:
    return Custom(f"{kind.__module__}:{kind.__name__}", **settings)


@pytest.mark.parametrize(
    ("architecture", "features"),
    [
        (MLP(width=40, depth=2), 40),
        (Conv4(width=8, downsample="pool"), 8),
        (Conv4(width=8, downsample="stride"), 8),
        (Conv4(width=8, normalization="none"), 8),
    ],
)
def test_embeds_and_predicts(architecture, features):
    model = build_model(architecture, SPEC, seed=0)
    params, x = model.initial(), torch.rand(6, *SPEC.x)
    assert model.embed(params, x, SILENT).shape == (6, features)
    assert model.predict(params, x, SILENT).shape == (6, 4)
    assert {name for name in params if name.startswith("model.head.")} == {"model.head.weight", "model.head.bias"}


def test_the_seed_alone_decides_the_initial_values():
    torch.manual_seed(5)
    first = build_model(Conv4(width=8), SPEC, seed=3).initial()
    state = torch.random.get_rng_state()
    torch.manual_seed(6)
    second, other = build_model(Conv4(width=8), SPEC, seed=3).initial(), build_model(Conv4(width=8), SPEC, 4).initial()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.head.weight"], other["model.head.weight"])
    torch.manual_seed(5)
    assert torch.equal(state, torch.random.get_rng_state()), "building a model must not advance the global generator"


@pytest.mark.parametrize("rows", [None, 4])
def test_task_norm_is_batch_norm_however_it_is_spelt(rows):
    norm, x = TaskNorm(3).double(), torch.randn(9, 3, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    with statistics_of_first(rows):
        found = norm(x)
        with written_out():
            assert torch.allclose(norm(x), found, rtol=1e-12)
    used = x[:rows]
    mean, var = used.mean((0, 2, 3)), used.var((0, 2, 3), unbiased=False)
    expected = F.batch_norm(x, mean, var, norm.weight, norm.bias, training=False)
    assert torch.allclose(found, expected, rtol=1e-10)


def test_inductive_queries_do_not_touch_each_other_and_transductive_ones_do():
    support, query = torch.rand(5, *SPEC.x), torch.rand(6, *SPEC.x)
    for normalization, independent in (("inductive", True), ("transductive", False)):
        model = build_model(Conv4(width=8, normalization=normalization), SPEC, seed=0)
        params = model.initial()
        together = model.predict(params, query, SILENT, reference=support)
        alone = model.predict(params, query[:2], SILENT, reference=support)
        assert torch.allclose(together[:2], alone, atol=1e-5) == independent


def test_running_statistics_are_refused_and_batch_statistics_work():
    with pytest.raises(ValueError, match=r"writes to its buffers.*track_running_stats=False"):
        build_model(custom(WithRunningStatistics), SPEC, 0)
    model = build_model(custom(WithRunningStatistics, arguments={"track": False}), SPEC, 0)
    assert model.normalization == "transductive"
    assert model.predict(model.initial(), torch.rand(3, *SPEC.x), SILENT).shape == (3, 4)


def test_torch_dropout_is_refused_and_ours_is_addressed():
    with pytest.raises(ValueError, match=r"global generator \(2: Dropout\).*metatrain.models.Dropout"):
        build_model(custom(WithTorchDropout), SPEC, 0)
    model = build_model(custom(WithOurDropout), SPEC, 0)
    params, x = model.initial(), torch.rand(64, *SPEC.x)
    silent = model.embed(params, x, SILENT)
    one, again, other = (model.embed(params, x, torch.tensor(key)) for key in (11, 11, 12))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    dropped = (one == 0).double().mean()
    assert 0.4 < dropped < 0.6
    assert torch.allclose(one[one != 0], 2 * silent[one != 0])
    assert (silent == 0).double().mean() < 0.01


def test_dropout_draws_differ_by_task_under_vmap_and_equal_the_loop():
    model = build_model(custom(WithOurDropout), SPEC, 0)
    params, x, keys = model.initial(), torch.rand(3, 4, *SPEC.x), torch.tensor([1, 2, -1])
    lifted = torch.func.vmap(lambda x, key: model.embed(params, x, key))(x, keys)
    looped = torch.stack([model.embed(params, one, key) for one, key in zip(x, keys, strict=True)])
    assert torch.equal(lifted == 0, looped == 0)
    assert torch.allclose(lifted, looped, atol=1e-6)


def test_a_head_of_the_modules_own_becomes_the_models():
    model = build_model(custom(WithOwnHead, head="classifier"), SPEC, 0)
    assert list(model.initial()) == [
        *("model.body.trunk.weight", "model.body.trunk.bias"),
        *("model.head.weight", "model.head.bias"),
    ]
    torch.manual_seed(0)
    whole, x = WithOwnHead(), torch.rand(3, *SPEC.x)
    assert torch.equal(model.predict(model.initial(), x, SILENT), whole(x))
    assert torch.equal(model.embed(model.initial(), x, SILENT), torch.relu(whole.trunk(x.flatten(1))))


def test_without_a_head_the_modules_outputs_are_the_predictions():
    model = build_model(custom(WithOwnHead, head="none"), SPEC, 0)
    params, x = model.initial(), torch.rand(3, *SPEC.x)
    assert not any(name.startswith("model.head.") for name in params)
    assert torch.equal(model.predict(params, x, SILENT), model.embed(params, x, SILENT))
    with pytest.raises(ValueError, match="trained for 4"):
        model.for_tasks(SPEC._replace(ways=5), params)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (custom(WithOwnHead, head="fc"), "no part 'fc': choose among trunk, classifier"),
        (custom(WithOwnHead, head="trunk"), "'trunk' is not the last step"),
        (custom(WithOwnHead, head="none", arguments={"outputs": 7}), "7 outputs, the tasks need 4"),
        (custom(WithOwnHead, head="classifier", arguments={"outputs": 7}), "7 outputs, the tasks need 4"),
        (custom(WrongShape), r"must give \[B, D\]"),
        (custom(nn.Linear, arguments={"in_features": 3, "out_features": 2}), "does not accept a batch"),
        (Custom("no_such_package:Net"), "cannot import 'no_such_package'"),
        (Custom("metatrain.models:Nothing"), "has no class 'Nothing'"),
        (Custom("pathlib:Path"), "not a torch.nn.Module"),
        (Conv4(depth=6), "halvings leave nothing"),
    ],
)
def test_what_cannot_be_a_model_is_refused_with_the_remedy(architecture, message):
    with pytest.raises(ValueError, match=message):
        build_model(architecture, SPEC, 0)


def test_fewer_ways_use_the_first_outputs_and_more_are_refused():
    model = build_model(Conv4(width=8), SPEC, 0)
    params, x = model.initial(), torch.rand(3, *SPEC.x)
    fewer = model.for_tasks(SPEC._replace(ways=2), params)
    assert torch.equal(fewer.predict(params, x, SILENT), model.predict(params, x, SILENT)[:, :2])
    with pytest.raises(ValueError, match="the head was trained for 4"):
        model.for_tasks(SPEC._replace(ways=5), params)
    model.for_tasks(SPEC._replace(ways=50), model.initial(head=False))

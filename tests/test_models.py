"""Test networks as pure functions: their outputs, and the modules that are refused."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metatrain.algorithms import MAML
from metatrain.engine import Engine
from metatrain.models import MLP, Conv4, Custom, DropBlock, Dropout, Part, TaskNorm, build_model
from metatrain.models.normalization import reference_statistics, unfused_norm
from tests.episodes import classification_spec, context_of, random_episodes

SPEC = classification_spec(ways=4, size=28, channels=1)
NO_NOISE = torch.tensor(-1)
LAST = torch.channels_last


class WithRunningStatistics(nn.Sequential):
    def __init__(self, track: bool = True) -> None:
        super().__init__(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=track), nn.Flatten())


class WithTorchDropout(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 8), nn.Dropout(0.5))


class WithOurDropout(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 8), Dropout(0.5))


class WithDropBlocks(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(DropBlock(0.2, 3), nn.Conv2d(1, 3, 3), DropBlock(0.2, 3), nn.Flatten())


class WithInstanceNorm(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.Flatten())


class WithOwnHead(nn.Module):
    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.trunk = nn.Linear(784, 8)
        self.classifier = nn.Linear(8, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.relu(self.trunk(x.flatten(1))))


class WithView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return y.view(len(y), -1)


class WrongShape(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class WithHiddenStatistics(nn.Module):
    """Batch statistics without any layer that is known for them."""

    def __init__(self, how: str, after: bool = False) -> None:
        super().__init__()
        self.how, self.linear = how, nn.Linear(784, 8)
        self.norm = TaskNorm(8) if after else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.linear(x.flatten(1))
        if self.how == "functional":
            h = F.batch_norm(h, None, None, training=True)
        elif self.how == "mean and deviation":
            h = (h - h.mean(0)) / h.std(0)
        elif self.how == "softmax over examples":
            h = h * h.softmax(0)
        return self.norm(h)


def custom(kind: type[nn.Module], **settings) -> Custom:
    return Custom(f"{kind.__module__}:{kind.__name__}", **settings)


@pytest.mark.parametrize(
    ("architecture", "features"),
    [
        (MLP(width=40, depth=2), 40),
        (Conv4(width=8, downsample="pool"), 8),
        (Conv4(width=8, downsample="stride"), 8),
        (Conv4(width=8, normalization="none"), 8),
        (Conv4(width=8, halvings=2), 8 * 7 * 7),
        (Conv4(width=8, downsample="stride", halvings=0), 8),
    ],
)
def test_embeds_and_predicts(architecture, features):
    model = build_model(architecture, SPEC, seed=0)
    params, x = model.initial(), torch.rand(6, *SPEC.x)
    assert model.embed(params, x, NO_NOISE).shape == (6, features)
    assert model.predict(params, x, NO_NOISE).shape == (6, 4)
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
def test_fused_and_unfused_task_norm_equal_batch_norm(rows):
    norm, x = TaskNorm(3).double(), torch.randn(9, 3, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    with reference_statistics(rows):
        found = norm(x)
        with unfused_norm():
            assert torch.allclose(norm(x), found, rtol=1e-12)
    used = x[:rows]
    mean, var = used.mean((0, 2, 3)), used.var((0, 2, 3), unbiased=False)
    expected = F.batch_norm(x, mean, var, norm.weight, norm.bias, training=False)
    assert torch.allclose(found, expected, rtol=1e-10)


def test_inductive_queries_are_independent_and_transductive_ones_are_not():
    support, query = torch.rand(5, *SPEC.x), torch.rand(6, *SPEC.x)
    for normalization, independent in (("inductive", True), ("transductive", False)):
        model = build_model(Conv4(width=8, normalization=normalization), SPEC, seed=0)
        params = model.initial()
        together = model.predict(params, query, NO_NOISE, reference=support)
        alone = model.predict(params, query[:2], NO_NOISE, reference=support)
        assert torch.allclose(together[:2], alone, atol=1e-5) == independent


def test_running_statistics_are_refused_and_batch_statistics_work():
    with pytest.raises(ValueError, match=r"writes to its buffers.*track_running_stats=False"):
        build_model(custom(WithRunningStatistics), SPEC, 0)
    model = build_model(custom(WithRunningStatistics, arguments={"track": False}), SPEC, 0)
    assert model.normalization == "transductive"
    assert model.predict(model.initial(), torch.rand(3, *SPEC.x), NO_NOISE).shape == (3, 4)


def test_torch_dropout_is_refused_and_ours_is_addressed():
    with pytest.raises(ValueError, match=r"global generator \(2: Dropout\).*metatrain.models.Dropout"):
        build_model(custom(WithTorchDropout), SPEC, 0)
    model = build_model(custom(WithOurDropout), SPEC, 0)
    params, x = model.initial(), torch.rand(64, *SPEC.x)
    silent = model.embed(params, x, NO_NOISE)
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


def test_a_users_batch_statistics_are_differentiated_twice_under_vmap_too():
    spec, architecture = classification_spec(3, 8, 1), custom(WithRunningStatistics, arguments={"track": False})
    model = build_model(architecture, spec, 0).to(torch.device("cpu"), torch.float64)
    params = {name: value.double() for name, value in model.initial().items()}
    looped, lifted = (
        MAML(0.1, 2).meta_gradient(model, params, random_episodes(spec, 2), context_of(2), Engine(vectorize)).grads
        for vectorize in ("loop", "vmap")
    )
    assert all(torch.allclose(looped[name], lifted[name], rtol=1e-9, atol=1e-12) for name in params)


def test_only_statistics_over_examples_make_predictions_depend_on_each_other():
    assert build_model(custom(WithInstanceNorm), SPEC, 0).normalization == "none"
    assert build_model(Conv4(width=8, normalization="none"), SPEC, 0).normalization == "none"
    assert build_model(Conv4(width=8, normalization="inductive"), SPEC, 0).normalization == "inductive"


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("how", ["functional", "mean and deviation", "softmax over examples"])
def test_batch_statistics_hidden_in_a_forward_are_found_and_cannot_be_inductive(how, after):
    model = build_model(custom(WithHiddenStatistics, arguments={"how": how, "after": after}), SPEC, 0)
    assert model.normalization == "transductive"
    assert not model.can_be_inductive
    assert model.with_normalization("transductive").normalization == "transductive"
    with pytest.raises(ValueError, match=r"cannot be inductive: set normalization to transductive, or use .*TaskNorm"):
        model.with_normalization("inductive")


def test_the_normalization_of_a_built_model_can_be_chosen_where_the_network_allows_it():
    support, query = torch.rand(5, *SPEC.x), torch.rand(6, *SPEC.x)
    of_a_user = custom(WithHiddenStatistics, arguments={"how": "none", "after": True})
    for architecture in (Conv4(width=8), Conv4(width=8, normalization="inductive"), of_a_user):
        model = build_model(architecture, SPEC, seed=0)
        assert model.can_be_inductive
        for normalization, independent in (("inductive", True), ("transductive", False)):
            chosen = model.with_normalization(normalization)
            assert chosen.normalization == normalization
            together, alone = (
                chosen.predict(model.initial(), x, NO_NOISE, reference=support) for x in (query, query[:2])
            )
            assert torch.allclose(together[:2], alone, atol=1e-5) == independent
    for architecture in (MLP(), Conv4(normalization="none"), custom(WithInstanceNorm)):
        model = build_model(architecture, SPEC, seed=0)
        assert model.with_normalization("transductive").normalization == "none"
    named = build_model(custom(WithRunningStatistics, arguments={"track": False}), SPEC, 0)
    assert named.mixing == "1: BatchNorm2d"


def mask_of(key: int, shape: tuple[int, ...], p: float, block: int) -> torch.Tensor:
    layer = DropBlock(p, block)
    return torch.func.functional_call(layer, {"noise": torch.tensor(key)}, (torch.ones(shape),))


def test_drop_block_drops_whole_blocks_each_where_chance_has_it():
    mask = mask_of(3, (6, 4, 9, 12), p=0.2, block=3)
    dropped = mask == 0
    covered = torch.zeros_like(dropped)
    for i in range(9 - 2):
        for j in range(12 - 2):
            whole = dropped[:, :, i : i + 3, j : j + 3].all(3).all(2)
            covered[:, :, i : i + 3, j : j + 3] |= whole[:, :, None, None]
    assert torch.equal(covered, dropped)
    channels = dropped.flatten(0, 1).flatten(1)
    assert len({tuple(row.tolist()) for row in channels if row.any()}) == int(channels.any(1).sum()) > 12
    assert mask.sum().item() == pytest.approx(mask.numel(), rel=1e-5), "the mean is kept"
    assert len(mask.unique()) == 2


@pytest.mark.parametrize(
    ("shape", "block", "low", "high"),
    [
        ((8, 64, 20, 20), 5, 0.15, 0.2),  # overlaps cost a little of the 0.2
        ((8, 64, 5, 5), 5, 0.17, 0.23),  # all of a channel or nothing
        ((8, 64, 3, 7), 5, 0.16, 0.2),  # clamped to 3
        ((8, 64, 7, 3), 5, 0.16, 0.2),
        ((8, 640, 1, 1), 5, 0.17, 0.23),
        ((8, 64, 10, 10), 1, 0.17, 0.23),
    ],
)
def test_drop_block_drops_about_its_share_whatever_the_map(shape, block, low, high):
    assert low < (mask_of(11, shape, 0.2, block) == 0).double().mean() < high


def test_drop_block_replays_and_differs_by_task_and_layer_and_is_silent_in_evaluation():
    model = build_model(custom(WithDropBlocks), SPEC, 0)
    params, x = model.initial(), torch.rand(4, *SPEC.x) + 1
    one, again, other = (model.embed(params, x, torch.tensor(key)) for key in (11, 11, 12))
    assert torch.equal(one, again)
    assert not torch.equal(one == 0, other == 0)
    assert (one == 0).any()
    plain = nn.Sequential(model.body[1], nn.Flatten())
    torch.testing.assert_close(model.embed(params, x, NO_NOISE), plain(x))
    seen = []
    for layer in (model.body[0], model.body[2]):
        layer.register_forward_pre_hook(lambda module, _: seen.append(int(module.noise)))
    model.embed(params, x, torch.tensor(11))
    assert len(set(seen)) == 2
    assert min(seen) >= 0, "every layer has a key of its own"


def test_drop_block_is_the_same_under_vmap_and_differentiated_twice():
    layer, keys, x = DropBlock(0.3, 2), torch.tensor([1, 2, -1]), torch.rand(3, 2, 3, 6, 6) + 1

    def bent(x, key):
        return (torch.func.functional_call(layer, {"noise": key}, (x,)) ** 3).sum()

    slope_of_slope = torch.func.grad(lambda x, key: torch.func.grad(bent)(x, key).sum())
    lifted = torch.func.vmap(slope_of_slope)(x, keys)
    for j, key in enumerate(keys):
        mask = torch.func.functional_call(layer, {"noise": key}, (torch.ones_like(x[j]),))
        assert torch.allclose(lifted[j], 6 * x[j] * mask**3, rtol=1e-5)
        assert torch.equal(lifted[j], slope_of_slope(x[j], key))


@pytest.mark.parametrize("kind", [Dropout, DropBlock])
def test_invalid_probabilities_are_refused(kind):
    for p in (-0.1, 1.0):
        with pytest.raises(ValueError, match="is no probability of dropping: set 0 <= p < 1"):
            kind(p)


def test_a_head_of_the_modules_own_becomes_the_models():
    model = build_model(custom(WithOwnHead, head="classifier"), SPEC, 0)
    assert list(model.initial()) == [
        *("model.body.trunk.weight", "model.body.trunk.bias"),
        *("model.head.weight", "model.head.bias"),
    ]
    torch.manual_seed(0)
    whole, x = WithOwnHead(), torch.rand(3, *SPEC.x)
    assert torch.equal(model.predict(model.initial(), x, NO_NOISE), whole(x))
    assert torch.equal(model.embed(model.initial(), x, NO_NOISE), torch.relu(whole.trunk(x.flatten(1))))


def test_without_a_head_the_modules_outputs_are_the_predictions():
    model = build_model(custom(WithOwnHead, head="none"), SPEC, 0)
    params, x = model.initial(), torch.rand(3, *SPEC.x)
    assert not any(name.startswith("model.head.") for name in params)
    assert torch.equal(model.predict(params, x, NO_NOISE), model.embed(params, x, NO_NOISE))
    with pytest.raises(ValueError, match="trained for 4"):
        model.for_tasks(SPEC._replace(ways=5), params)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (custom(WithOwnHead, head="fc"), "no part 'fc': choose among trunk, classifier"),
        (custom(WithOwnHead, head="trunk"), "'trunk' is not the last step"),
        (custom(WithOwnHead, head="none", arguments={"outputs": 7}), "7 outputs, the tasks need 4"),
        (custom(WithOwnHead, head="classifier", arguments={"outputs": 7}), "7 outputs, the tasks need 4"),
        (custom(WrongShape), r"must return \[B, D\]"),
        (custom(nn.Linear, arguments={"in_features": 3, "out_features": 2}), "does not accept a batch"),
        (Custom("no_such_package:Net"), "cannot import 'no_such_package'"),
        (Custom("metatrain.models:Nothing"), "has no class 'Nothing'"),
        (Custom("pathlib:Path"), "not a torch.nn.Module"),
        (Conv4(depth=6), "halvings leave nothing"),
        (Conv4(depth=6, halvings=5), "model.halvings: 5 halvings leave nothing"),
    ],
)
def test_invalid_models_are_refused_with_the_remedy(architecture, message):
    with pytest.raises(ValueError, match=message):
        build_model(architecture, SPEC, 0)


def test_fewer_ways_use_the_first_outputs_and_more_are_refused():
    model = build_model(Conv4(width=8), SPEC, 0)
    params, x = model.initial(), torch.rand(3, *SPEC.x)
    fewer = model.for_tasks(SPEC._replace(ways=2), params)
    assert torch.equal(fewer.predict(params, x, NO_NOISE), model.predict(params, x, NO_NOISE)[:, :2])
    with pytest.raises(ValueError, match="the head was trained for 4"):
        model.for_tasks(SPEC._replace(ways=5), params)
    model.for_tasks(SPEC._replace(ways=50), model.initial(head=False))


def test_a_part_is_a_pure_function_of_its_own_parameters_in_every_thread():
    part = Part("relation.", partial(nn.Linear, 3, 2))
    params, x = part.initial(0) | {"model.body.weight": torch.ones(1)}, torch.randn(5, 3)
    assert set(params) == {"relation.weight", "relation.bias", "model.body.weight"}
    assert all(torch.equal(value, part.initial(0)[name]) for name, value in params.items() if "relation" in name)
    assert not torch.equal(part.initial(1)["relation.weight"], params["relation.weight"])
    expected = x @ params["relation.weight"].T + params["relation.bias"]
    assert torch.allclose(part(params, x), expected)
    with ThreadPoolExecutor(4) as pool:
        doubled = {name: 2 * value for name, value in params.items()}
        found = list(pool.map(lambda number: part(doubled if number % 2 else params, x), range(64)))
    assert all(torch.allclose(y, expected * (1 + number % 2)) for number, y in enumerate(found))
    fresh = Part("relation.", partial(nn.Linear, 3, 2, True))  # which no call has built yet
    lifted = torch.func.vmap(lambda row: fresh(params, row[None]), randomness="error")(x)
    assert torch.allclose(lifted[:, 0], expected)
    slopes = torch.func.grad(lambda p: part(p, x).sum())(params)
    assert torch.allclose(slopes["relation.bias"], torch.full((2,), 5.0))


def test_a_part_is_built_once_also_within_transforms():
    built = []

    class Counted(nn.Linear):
        def __init__(self, *sizes: int) -> None:
            built.append(sizes)
            super().__init__(*sizes)

    params, x = Part("p.", partial(Counted, 3, 2)).initial(0), torch.randn(4, 5, 3)
    slopes = torch.func.vmap(torch.func.grad(lambda p, x: Part("p.", partial(Counted, 3, 2))(p, x).sum()), (None, 0))
    assert torch.equal(slopes(params, x)["p.bias"], torch.full((4, 2), 5.0))
    Part("p.", partial(Counted, 3, 2))(params, x)
    assert built == [(3, 2), (3, 2)], "once for values, once to be applied"


def test_a_part_with_buffers_is_refused():
    with pytest.raises(ValueError, match="buffers"):
        Part("norm.", partial(nn.BatchNorm1d, 3)).initial(0)


def test_features_have_the_shape_before_they_were_flattened():
    assert build_model(Conv4(width=4, depth=2), SPEC, seed=0).feature_shape == (4, 7, 7)
    assert build_model(Conv4(width=4, halvings=2), SPEC, seed=0).feature_shape == (4, 7, 7)
    assert build_model(Conv4(width=4, downsample="stride"), SPEC, seed=0).feature_shape == (4,)
    assert build_model(MLP(width=6), SPEC, seed=0).feature_shape == (6,)
    assert build_model(custom(WithOwnHead, head="classifier"), SPEC, seed=0).feature_shape == (8,)


@pytest.mark.parametrize("vectorize", ["loop", "vmap"])
def test_channels_last_changes_no_gradient_and_no_layout(vectorize):
    model = build_model(Conv4(width=4), SPEC, 0)
    assert model.channels_last
    tasks, method = random_episodes(SPEC, 3, dtype=torch.float32), MAML(inner_lr=0.1, inner_steps=2)
    params = method.init(model, SPEC, 0)
    engine = Engine(vectorize)  # type: ignore[arg-type]
    found = method.meta_gradient(model, params, tasks, context_of(3), engine)
    plain = method.meta_gradient(replace(model, channels_last=False), params, tasks, context_of(3), engine)
    for name, expected in plain.grads.items():
        torch.testing.assert_close(found.grads[name], expected, rtol=1e-3, atol=1e-4)
        assert found.grads[name].is_contiguous()


def test_images_reach_convolutions_channels_last():
    model = build_model(Conv4(width=4, depth=1), SPEC, 0)
    seen = []
    model.body[0].register_forward_hook(lambda layer, given, y: seen.append(y.is_contiguous(memory_format=LAST)))
    model.embed(model.initial(), torch.rand(2, *SPEC.x), NO_NOISE)
    replace(model, channels_last=False).embed(model.initial(), torch.rand(2, *SPEC.x), NO_NOISE)
    assert seen == [True, False]


def test_a_module_that_views_its_activations_keeps_its_layout():
    model = build_model(custom(WithView), SPEC, 0)
    assert not model.channels_last
    assert model.embed(model.initial(), torch.rand(2, *SPEC.x), NO_NOISE).shape == (2, 3 * 26 * 26)

"""Test the example project: its parts pass our conformance suites, and it runs as its README says."""

import inspect
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import metatrain
from metatrain.algorithms import ALGORITHMS
from metatrain.engine import Engine
from metatrain.models import Conv4, Custom, Model, build_model
from metatrain.types import Context, MetaGradient, Params
from tasks.types import SPLITS, Episode, EpisodeShape
from tests import conformance_distributions as conformance
from tests import test_algorithms as algorithms
from tests.command_line import CommandLine
from tests.episodes import context_of, random_episodes

EXAMPLE = Path(__file__).parents[1] / "examples" / "tones"
SHAPE = EpisodeShape(ways=3, shots=2, queries=4)
LAWS = [
    law for name, law in vars(algorithms).items() if name.startswith("test_") and name != "test_every_algorithm_is_here"
]


@pytest.fixture(scope="module")
def own() -> Iterator[SimpleNamespace]:
    """The example's modules, found as `metatrain` finds them in the folder that it starts in."""
    names = ("sounds", "ridge", "network")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(EXAMPLE), *sys.path])
        yield SimpleNamespace(**{name: import_module(name) for name in names})
        for name in names:
            del sys.modules[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ignored = shutil.ignore_patterns("runs", "mlflow.db*", "__pycache__")
    return Path(shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("mine") / "tones", ignore=ignored))


def trained(command: CommandLine, folder: Path, *overrides: str) -> dict:
    done = command(folder, "train", "tones.yaml", "tracking.uri=null", *overrides, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out.splitlines()[-1])


# The tasks.


@pytest.mark.parametrize("check", [conformance.check_law, conformance.check_shapes])
def test_the_distribution_conforms(own, check: Callable) -> None:
    check(own.sounds.Tones().distribution("train", SHAPE, 3))


def test_seeds_and_splits_differ(own) -> None:
    conformance.check_seeds_and_splits(own.sounds.Tones(), SHAPE)


def test_splits_share_no_instrument_and_a_task_has_each_once(own) -> None:
    source, heard = own.sounds.Tones(instruments=9), {}
    for split in SPLITS:
        spectra = source.distribution(split, SHAPE, 0).spectra(range(100))
        assert all(len(np.unique(task, axis=0)) == SHAPE.ways for task in spectra)
        heard[split] = {tuple(spectrum) for spectrum in spectra.reshape(-1, own.sounds.HARMONICS)}
        assert len(heard[split]) == source.instruments
    assert (
        not heard["train"] & heard["validation"] | heard["train"] & heard["test"] | heard["validation"] & heard["test"]
    )


def test_a_sound_has_the_spectrum_of_its_instrument_and_nothing_else_of_it(own) -> None:
    """At 125 Hz a sound is eight whole periods, so a Fourier transform finds harmonic h in bin 8h, exactly."""
    still = own.sounds.Tones(pitch=(125.0, 125.0 + 1e-9), noise=0.0)
    distribution = still.distribution("test", SHAPE, 0)
    episode, spectra = distribution.episodes(range(20)), torch.from_numpy(distribution.spectra(range(20)))
    for part in episode:
        harmonics = torch.fft.rfft(part.x[:, :, 0].double())[:, :, 8 : 8 * own.sounds.HARMONICS + 1 : 8] / 128
        loudness = harmonics.abs().square().sum(2, keepdim=True).div(2).sqrt()
        expected = spectra.gather(1, part.y[:, :, None].expand(-1, -1, own.sounds.HARMONICS))
        assert (harmonics.abs() / loudness - expected).abs().max() < 1e-4
        assert 0.5 <= loudness.min() < 0.6
        assert 1.7 < loudness.max() <= 2
        phases = harmonics.angle().flatten(0, 1)
        assert len(phases.unique(dim=0)) == len(phases)


def test_noise_and_pitch_are_as_set(own) -> None:
    """The noise is white and of the power that is set; there is nothing below the lowest pitch without it."""
    shape = EpisodeShape(ways=5, shots=1, queries=20)
    clean, noisy = (own.sounds.Tones(noise=noise).distribution("train", shape, 0) for noise in (0.0, 0.5))
    (_, tone), (_, both) = (part.episodes(range(20)) for part in (clean, noisy))
    loudness = (tone.x.square().mean(3, keepdim=True)).sqrt()
    noise = (both.x - tone.x) / loudness
    assert abs(float(noise.square().mean().sqrt()) - 0.5) < 0.02
    assert abs(float((noise[..., 1:] * noise[..., :-1]).mean())) < 0.002
    window = torch.hann_window(own.sounds.SAMPLES)
    power = torch.fft.rfft(tone.x * window).abs().square().mean((0, 1, 2))
    assert power[:3].sum() < 0.01 * power.sum()
    assert (power[6:100] > 1e-4 * power.sum()).all()


@pytest.mark.parametrize(
    ("settings", "ways", "says"),
    [
        ({"instruments": 1}, 5, "instruments: 1 leaves nothing"),
        ({"instruments": 4}, 5, "5-way needs 5 instruments; 'train' has 4: lower tasks.train.ways"),
        ({"pitch": (200.0, 100.0)}, 5, "pitch: 200 to 100 Hz"),
        ({"pitch": (100.0, 300.0)}, 5, "at most 250"),
        ({"noise": -1.0}, 5, "noise"),
        ({"contrast": 0.0}, 5, "contrast"),
        ({}, None, "tasks.train.ways: tones are told apart"),
    ],
)
def test_invalid_settings_are_refused_with_the_remedy(own, settings: dict, ways: int | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        own.sounds.Tones(**settings).distribution("train", EpisodeShape(ways, 1, 1), 0)


# The algorithm.


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("test_"))
def test_ridge_keeps_the_laws_of_algorithms(own, law: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS, "ridge", own.ridge.Ridge)
    row = algorithms.Row("ridge", {}, steps=0)
    model = row.model(torch.float64)
    params = {name: value.double() for name, value in own.ridge.Ridge().init(model, algorithms.SPEC, 0).items()}
    given = {"row": row, "setting": (own.ridge.Ridge(), model, params)}
    law(**{name: given[name] for name in inspect.signature(law).parameters})


@pytest.mark.parametrize("rows", [3, 30])
def test_the_solution_is_that_of_least_squares_with_rows_for_the_regulariser(own, rows: int) -> None:
    """‖Z W − Y‖² + λ ‖W‖² = ‖[Z; √λ I] W − [Y; 0]‖², with fewer and with more examples than features."""
    z, y = torch.randn(rows, 8, dtype=torch.float64), torch.randn(rows, 4, dtype=torch.float64)
    weight = torch.tensor(0.7, dtype=torch.float64)
    taller = torch.cat([z, weight.sqrt() * torch.eye(8, dtype=torch.float64)])
    expected = torch.linalg.lstsq(taller, torch.cat([y, torch.zeros(8, 4, dtype=torch.float64)])).solution
    assert torch.allclose(own.ridge.solve_ridge(z, y, weight), expected, rtol=1e-10, atol=1e-12)


class Setting:
    """The example's own network and algorithm on random waveforms, in float64."""

    def __init__(self, own: SimpleNamespace) -> None:
        spec = own.sounds.Tones().distribution("train", SHAPE, 0).spec
        architecture = Custom("network:Listener", {"filters": 6, "width": 5})
        self.model: Model = build_model(architecture, spec, seed=0).to(torch.device("cpu"), torch.float64)
        self.ridge = own.ridge.Ridge(regulariser=0.5, scale=3.0)
        self.params: Params = {name: p.double() for name, p in self.ridge.init(self.model, spec, 0).items()}
        self.tasks: Episode = random_episodes(spec, 3)

    def gradient(self, params: Params, engine: str = "loop") -> MetaGradient:
        return self.ridge.meta_gradient(self.model, params, self.tasks, context_of(3), Engine(engine))

    def loss(self, params: Params) -> Tensor:
        """Σ_tasks of the cross-entropy, from the normal equations: W = (Zᵀ Z + λ I)⁻¹ Zᵀ Y."""
        body = {name.removeprefix("model.body."): p for name, p in params.items() if name.startswith("model.body.")}
        total = torch.zeros((), dtype=torch.float64)
        for sx, sy, qx, qy in zip(*self.tasks.support, *self.tasks.query, strict=True):
            z, q = (functional_call(self.model.body, body, (x,)) for x in (sx, qx))
            y = torch.nn.functional.one_hot(sy, 3).double()
            normal = z.T @ z + params["ridge.log_lambda"].exp() * torch.eye(z.shape[1], dtype=torch.float64)
            logits = params["ridge.log_scale"].exp() * q @ torch.linalg.inv(normal) @ z.T @ y
            total = total - logits.log_softmax(1)[torch.arange(len(qy)), qy].mean()
        return total


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_gradients_are_those_of_the_normal_equations(own, engine: str) -> None:
    setting = Setting(own)
    found = setting.gradient(setting.params, engine)
    wanted = {name: p.clone().requires_grad_() for name, p in setting.params.items()}
    loss = setting.loss(wanted)
    expected = dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True))
    scale = max(float(value.abs().max()) for value in expected.values())
    assert found.grads.keys() == expected.keys()
    assert all((found.grads[name] - expected[name]).abs().max() < 1e-9 * scale for name in expected)
    assert float(expected["ridge.log_lambda"].abs()) > 1e-3 * scale
    assert abs(float(found.metrics["loss"] - loss.detach())) < 1e-9


def test_gradients_are_those_of_finite_differences(own) -> None:
    """Along λ, along α, and along a direction in which all parameters move."""
    setting = Setting(own)
    generator = torch.Generator().manual_seed(1)
    slopes = setting.gradient(setting.params).grads
    every = {name: torch.randn(p.shape, generator=generator).double() for name, p in setting.params.items()}
    alone = [{name: torch.ones(()).double()} for name in setting.params if name.startswith("ridge.")]
    assert len(alone) == 2
    for direction in (every, *alone):
        at = [
            setting.gradient({name: p + step * direction.get(name, 0.0) for name, p in setting.params.items()}).metrics[
                "loss"
            ]
            for step in (-1e-6, 1e-6)
        ]
        slope = sum(float((slopes[name] * direction[name]).sum()) for name in direction)
        assert float(at[1] - at[0]) / 2e-6 == pytest.approx(slope, rel=1e-5)


def test_an_inductive_model_predicts_a_query_as_it_would_alone(own) -> None:
    architecture = Conv4(width=4, depth=2, normalization="inductive")
    model = build_model(architecture, algorithms.SPEC, seed=0).to(torch.device("cpu"), torch.float64)
    ridge, context = own.ridge.Ridge(), Context(torch.tensor(0), torch.tensor(-1))
    params = {name: p.double() for name, p in ridge.init(model, algorithms.SPEC, 0).items()}
    support, query = algorithms.pick(random_episodes(algorithms.SPEC, 1), 0)
    (solution,) = ridge.trajectory(model, params, support, context)
    together = ridge.predict(model, params, solution, query.x, context)
    alone = [ridge.predict(model, params, solution, x[None], context) for x in query.x]
    assert torch.allclose(torch.cat(alone), together, rtol=1e-9)


def test_settings_initialise_the_learned_numbers_and_are_checked(own) -> None:
    setting = Setting(own)
    assert setting.params["ridge.log_lambda"].exp() == pytest.approx(0.5)
    assert setting.params["ridge.log_scale"].exp() == pytest.approx(3.0)
    with pytest.raises(ValueError, match="regulariser"):
        own.ridge.Ridge(regulariser=0.0)
    with pytest.raises(ValueError, match="scale"):
        own.ridge.Ridge(scale=-1.0)


# The network.


def test_predictions_ignore_loudness_sign_and_other_sounds(own) -> None:
    torch.manual_seed(0)
    listener, x = own.network.Listener(), torch.randn(4, 1, own.sounds.SAMPLES)
    features = listener(x)
    assert features.shape == (4, 64)
    assert torch.allclose(listener(x[1:2]), features[1:2], atol=1e-5)
    assert torch.allclose(listener(3 * x), features, atol=1e-3)
    assert torch.allclose(listener(-x), features, atol=1e-5)
    assert not torch.allclose(features[0], features[1], atol=1e-2)


# The whole, by the command line.


def test_training_beats_the_untrained_network_and_loads_for_new_sounds(own, command, folder) -> None:
    brief = (
        "outer.steps=60",
        "evaluation.tasks=60",
        "evaluation.validation_tasks=10",
        "evaluation.from_scratch_tasks=0",
    )
    result = trained(command, folder, *brief)
    others = {baseline["learner"]: baseline["accuracy"] for baseline in result["baselines"]}
    assert result["test"]["accuracy"] > 0.2 + max(others["untrained"], others["nearest_neighbour"])
    assert not result["test"]["transductive"]

    learner = metatrain.load(folder / result["run_dir"])
    shape = EpisodeShape(ways=3, shots=2, queries=10)
    names, hits = ["oboe", "viol", "horn"], []
    for task in range(10):
        episode = own.sounds.Tones().distribution("test", shape, 1).episodes([task])
        heard = learner.adapt((episode.support.x[0, :, 0].numpy(), [names[y] for y in episode.support.y[0]]))
        said = heard.predict(episode.query.x[0, :, 0].numpy())
        hits += [name == names[y] for name, y in zip(said, episode.query.y[0], strict=True)]
    assert np.mean(hits) > 0.65


@pytest.mark.slow
@pytest.mark.ray
def test_two_workers_of_a_cluster_end_with_the_bits_of_one_process(command, folder) -> None:
    few = ("evaluation.tasks=8", "evaluation.validation_tasks=4", "evaluation.baselines=false")
    brief = ("outer.steps=4", "evaluation.every=2", *few)
    here = trained(command, folder, *brief)
    there = trained(command, folder, *brief, "executor.name=ray", "executor.workers=2")
    assert here["params_sha256"] == there["params_sha256"]
    assert here["test"] == there["test"]

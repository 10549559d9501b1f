"""Test compiled inner loops: same meta-gradients, compiled once, reused by the next process (invariants 1 to 3)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from metatrain.algorithms import ALGORITHMS
from metatrain.engine import Engine, NotCompilable, compilation, resolve_compile, unrolled_gradient
from metatrain.engine.compilation import cache_key
from metatrain.evaluation.evaluate import make_shards
from metatrain.models import MLP, Conv4, Dropout, Model, build_model
from metatrain.models.architectures import Custom
from metatrain.training.in_process import InProcess
from metatrain.training.outer_loop import initial_state, restore, train
from metatrain.training.tree_sum import flatten, layout_of, unflatten
from metatrain.training.worker import Worker
from metatrain.types import InnerLoop, Params, ShardRequest
from tasks.types import Episode, Examples
from tests.configurations import tiny
from tests.episodes import classification_spec, context_of, random_episodes
from tests.test_algorithms import ROWS

CPU = torch.device("cpu")
SPEC = classification_spec(ways=3, size=4, channels=1)


def model_and_params(name: str, architecture, spec=SPEC, **settings) -> tuple[object, Model, Params]:
    model = build_model(architecture, spec, seed=1).to(CPU, torch.float64)
    algorithm = ALGORITHMS[name](**settings)
    return algorithm, model, {key: value.double() for key, value in algorithm.init(model, spec, 1).items()}


def difference(found: Params, expected: Params) -> float:
    assert found.keys() == expected.keys()
    scale = max(float(value.abs().max()) for value in expected.values())
    return max(float((found[name] - expected[name]).abs().max()) for name in expected) / scale


QUICK = ("protonet",)
"""One of each way to a gradient; the others compile in `make test-slow`."""


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=() if row.name in QUICK else pytest.mark.slow, id=row.name) for row in ROWS],
)
def test_every_algorithm_compiled_in_float64(row):
    algorithm, model, params = model_and_params(row.name, MLP(width=6, depth=1), **row.settings)
    tasks = random_episodes(SPEC, 4)
    plain, compiled = (
        algorithm.meta_gradient(model, params, tasks, context_of(4, noise=3), Engine("vmap", on))
        for on in (False, True)
    )
    assert difference(compiled.grads, plain.grads) < 1e-12
    assert int(compiled.num_tasks) == 4
    assert all(torch.allclose(compiled.metrics[key], plain.metrics[key]) for key in plain.metrics)


def test_a_worker_that_compiled_ahead_compiles_nothing_for_parameters_that_arrive_as_a_vector():
    network, learner = "model={name: mlp, width: 4, depth: 1}", "algorithm={name: fomaml, inner_steps: 1}"
    worker = Worker(tiny(network, learner, "engine.compile=on"), CPU)
    shard = make_shards(0, 2, 2)[0]
    worker.compile([shard])
    before, params = len(compilation._compiled), worker.initial()
    arrived = unflatten(flatten(params), layout_of(params))
    assert list(arrived) != list(params), "the case is of interest only where their order differs"
    worker.gradient(ShardRequest("gradient", "train", 0), arrived, shard)
    assert len(compilation._compiled) == before


@pytest.mark.slow
@pytest.mark.parametrize("vectorize", ["loop", "vmap"])
def test_convolution_normalisation_and_pooling_compiled(vectorize):
    spec = classification_spec(size=4)
    architecture = Conv4(width=4, depth=1, downsample="pool")
    algorithm, model, params = model_and_params("maml", architecture, spec, inner_lr=0.3, inner_steps=2)
    tasks = random_episodes(spec, 2)
    plain = algorithm.meta_gradient(model, params, tasks, context_of(2), Engine("loop")).grads
    assert (
        difference(algorithm.meta_gradient(model, params, tasks, context_of(2), Engine(vectorize, True)).grads, plain)
        < 1e-9
    )


def smooth_loop(length: int, weights=None) -> tuple[InnerLoop, Params, Episode]:
    """Of another kind: its rate is a parameter, its start is not θ, its step depends on t, every step may count."""
    torch.manual_seed(0)
    params = {"w": torch.randn(3, dtype=torch.float64), "rates": torch.rand(length, dtype=torch.float64) / length}
    support, query = torch.randn(2, 2, 4, 3, dtype=torch.float64), torch.randn(2, 2, 4, 3, dtype=torch.float64)
    targets = torch.randn(2, 4, dtype=torch.float64)

    def mse(w, x, y):
        return ((torch.tanh(x @ w) - y) ** 2).mean()

    def step(p, fast, examples, t, context):
        rate = p["rates"].index_select(0, t.view(1))[0]
        return fast - rate * torch.func.grad(mse)(fast, *examples)

    def loss(p, fast, support, query, t, context):
        value = mse(fast, *query) + 0.01 * (p["w"] ** 2).sum()
        return value, {"loss": value}

    inner = InnerLoop(lambda p, s, c: torch.tanh(p["w"]), step, loss, length, weights)
    return inner, params, Episode(Examples(support[0], targets), Examples(query[0], targets))


def unrolled(inner: InnerLoop, params: Params, tasks: Episode) -> Params:
    """The whole graph kept, by torch.autograd, in a form of its own: d/dθ Σ_tasks Σ_t w_t L_Q(φ_t)."""
    theta = {name: value.clone().requires_grad_() for name, value in params.items()}
    total = torch.zeros((), dtype=torch.float64)
    weights = torch.zeros(inner.length + 1, dtype=torch.float64)
    weights[-1] = 1
    if inner.weights is not None:
        weights = inner.weights(torch.tensor(0))
    for sx, sy, qx, qy in zip(*tasks.support, *tasks.query, strict=True):
        fast = torch.tanh(theta["w"])
        for t in range(inner.length + 1):
            total = total + weights[t] * (((torch.tanh(qx @ fast) - qy) ** 2).mean() + 0.01 * (theta["w"] ** 2).sum())
            if t < inner.length:
                support = ((torch.tanh(sx @ fast) - sy) ** 2).mean()
                (slope,) = torch.autograd.grad(support, fast, create_graph=True)
                fast = fast - theta["rates"][t] * slope
    return dict(zip(theta, torch.autograd.grad(total, list(theta.values())), strict=True))


ENGINES = {
    "loop": Engine("loop"),
    "vmap": Engine("vmap"),
    "compiled": Engine("vmap", True),
    "chunks": Engine("vmap", chunk=1),
}


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize("weighted", [False, True])
def test_rates_by_step_and_losses_of_every_step(engine, weighted):
    weights = (lambda step: torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)) if weighted else None
    inner, params, tasks = smooth_loop(3, weights)
    found = unrolled_gradient(inner, params, tasks, context_of(2), ENGINES[engine]).grads
    assert difference(found, unrolled(inner, params, tasks)) < 1e-12


@pytest.mark.parametrize("length", [1, 2, 99, 100, 101, pytest.param(1000, marks=pytest.mark.slow)])
def test_very_long_loops_are_exact(length):
    """From 100 steps on fast weights are kept every √K steps; 1000 = 31 · 32 + 8: the last stretch is shorter."""
    inner, params, tasks = smooth_loop(length)
    found = unrolled_gradient(inner, params, tasks, context_of(2), Engine("vmap")).grads
    assert difference(found, unrolled(inner, params, tasks)) < 1e-9


class WithDropout(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(16, 6), Dropout(0.5), nn.Tanh())


@pytest.mark.slow
def test_compiled_dropout_draws_the_same_masks():
    custom = Custom("tests.test_compilation:WithDropout")
    algorithm, model, params = model_and_params("maml", custom, inner_lr=0.1, inner_steps=3)
    tasks = random_episodes(SPEC, 3)

    def gradient(noise: int, compile: bool) -> Params:
        return algorithm.meta_gradient(model, params, tasks, context_of(3, noise), Engine("vmap", compile)).grads

    one, other = gradient(5, True), gradient(6, True)
    assert difference(one, gradient(5, False)) < 1e-12
    assert difference(other, one) > 1e-3


COMPILED = tiny("model={name: mlp, width: 8, depth: 1}", "engine.compile=on", "executor.shard_size=2")


def steps(executor, state, config, until: int) -> None:
    for _ in train(state, executor, config.outer, config.executor.shard_size):
        if state.step == until:
            return


@pytest.mark.slow
def test_compiled_runs_end_with_the_same_bits_on_workers_and_after_a_resume():
    import ray

    from cluster.executor import RayExecutor

    config = COMPILED
    local = InProcess(Worker(config, CPU))
    whole = initial_state(local.worker.initial(), config.outer)
    steps(local, whole, config, config.outer.steps)

    halfway = initial_state(local.worker.initial(), config.outer)
    steps(local, halfway, config, 3)
    with ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False):
        import dataclasses

        placed = dataclasses.replace(config, executor=dataclasses.replace(config.executor, name="ray", workers=2))
        executor = RayExecutor(placed)
        resumed = restore(halfway.snapshot(), config.outer)
        steps(executor, resumed, config, config.outer.steps)
        executor.close()
    assert all(torch.equal(whole.params[name], resumed.params[name]) for name in whole.params)
    eager = InProcess(Worker(tiny("model={name: mlp, width: 8, depth: 1}", "executor.shard_size=2"), CPU))
    plain = initial_state(eager.worker.initial(), config.outer)
    steps(eager, plain, config, config.outer.steps)
    assert all(torch.allclose(whole.params[name], plain.params[name], atol=1e-4) for name in whole.params)


def test_cache_keys_are_equal_for_functions_closed_over_equal_values_only():
    def made(rate, table=(1, 2)):
        def inner(x):
            return x * rate

        return lambda y: inner(y) + table[0]

    assert cache_key(made(0.1)) == cache_key(made(0.1))
    assert cache_key(made(0.1)) != cache_key(made(0.2))
    assert cache_key(made(0.1)) != cache_key(made(0.1, (2, 2)))
    assert cache_key(made(1)) != cache_key(made(1.0)) != cache_key(made(True)), "kinds of numbers trace differently"
    shared = [1]
    assert cache_key(made(0.1, shared)) == cache_key(made(0.1, shared)) != cache_key(made(0.1, [1]))


def test_branching_on_values_is_refused_with_the_remedy():
    inner, params, tasks = smooth_loop(2)

    def branching(p, fast, support, t, context):
        return inner.step(p, fast, support, t, context) if t == 0 else fast

    with pytest.raises(NotCompilable, match=r"engine\.compile: step of the inner loop .* set engine\.compile to off"):
        unrolled_gradient(inner._replace(step=branching), params, tasks, context_of(2), Engine("loop", True))


CHILD = """
import json, sys, time
from pathlib import Path
import torch
from tests.configurations import tiny
from metatrain.types import ShardRequest
from metatrain.evaluation.evaluate import make_shards
from metatrain.training.worker import Worker
settings = ("model={name: mlp, width: 8, depth: 1}", "algorithm.inner_steps=1", "engine.compile=on")
worker = Worker(tiny(*settings), torch.device("cpu"))
shards = make_shards(0, 2, 2)
worker.compile(shards)
found = worker.gradient(ShardRequest("gradient", "train", 0), worker.initial(), shards[0])
code = sorted(str(p) for p in Path(sys.argv[1]).rglob("*.so"))
print(json.dumps([code, float(sum(g.double().sum() for g in found.grads.values())).hex()]))
"""


@pytest.mark.slow
def test_the_next_process_reuses_the_compiled_code_with_the_same_bits(tmp_path: Path):
    environment = os.environ | {"METATRAIN_CACHE": str(tmp_path)}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)

    def child() -> list:
        arguments = [sys.executable, "-c", CHILD, str(tmp_path / "compiled")]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    first, second = child(), child()
    assert first == second
    assert len(first[0]) > 2


@pytest.mark.parametrize(
    ("setting", "adapts", "builtin", "inner_steps", "expected"),
    [
        ("on", False, False, 1, "on"),
        ("off", True, True, 10**9, "off"),
        ("auto", True, True, 20_000, "on"),
        ("auto", True, True, 19_999, "off"),
        ("auto", False, True, 10**9, "off"),
        ("auto", True, False, 10**9, "off"),
    ],
)
def test_auto_compiles_long_runs_of_builtin_inner_loops(setting, adapts, builtin, inner_steps, expected):
    assert resolve_compile(setting, adapts, builtin, inner_steps, CPU) == expected


@pytest.mark.parametrize(("multi_step_loss", "expected"), [(0, "on"), (600, "off"), (20_000, "on")])
def test_auto_counts_the_inner_steps_of_a_phase(multi_step_loss, expected):
    """30,000 steps in one phase pay for compiling; in two, which are compiled each, they do not."""
    learner = f"algorithm={{name: maml_plus_plus, inner_steps: 2, multi_step_loss: {multi_step_loss}}}"
    settings = ("engine.compile=auto", "outer.steps=7500", "outer.tasks_per_step=2")
    assert Worker(tiny(learner, *settings), CPU).config.engine.compile == expected


def test_without_a_compiler_auto_stays_eager(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert resolve_compile("auto", True, True, 10**6, CPU) == "off"

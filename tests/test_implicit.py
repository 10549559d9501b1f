"""Test implicit meta-gradients: solvers, inner optimisers, and memory that does not depend on inner steps."""

import pytest
import torch

from metatrain.algorithms import IMAML
from metatrain.algorithms.optimization.inner_optimizers import InnerOptimizer
from metatrain.engine import Engine, ProximalProblem, implicit_gradient
from metatrain.models import MLP, build_model
from metatrain.types import InnerLoop
from tasks.types import Episode, Examples
from tests.episodes import classification_spec, context_of, random_episodes

SPEC = classification_spec(ways=3, size=4, channels=1)
STRENGTH = 3.0


def quadratic(curvature, target, steps):
    """L_S = ½ φᵀ C φ and L_Q = ½ ‖φ − target‖², for which φ* and the meta-gradient are matrix products."""

    def support_loss(params, found, support, context):
        return 0.5 * found["w"] @ curvature @ found["w"]

    def step(params, fast, support, t, context):
        return {"w": fast["w"] - 0.1 * (curvature @ fast["w"] + STRENGTH * (fast["w"] - params["w"]))}

    def loss(params, fast, support, query, t, context):
        value = 0.5 * ((fast["w"] - target) ** 2).sum()
        return value, {"loss": value}

    start = lambda params, support, context: {"w": params["w"]}  # noqa: E731
    return ProximalProblem(InnerLoop(start, step, loss, steps), lambda fast: fast, support_loss, STRENGTH)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    half = torch.randn(4, 4, dtype=torch.float64) / 3
    return half @ half.T, torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)


TASK = Episode(*(Examples(torch.zeros(1, 1, 1), torch.zeros(1, 1)) for _ in range(2)))


@pytest.mark.parametrize(("solver", "iterations"), [("conjugate_gradient", 4), ("neumann", 200)])
def test_the_closed_form_of_a_quadratic(problem, solver, iterations):
    curvature, target, theta = problem
    params = {"w": theta, "other": torch.ones(2, dtype=torch.float64)}
    found = implicit_gradient(
        quadratic(curvature, target, 400), solver, iterations, params, TASK, context_of(1), Engine("loop")
    ).grads
    system = torch.eye(4, dtype=torch.float64) + curvature / STRENGTH
    solution = torch.linalg.solve(system, theta)
    expected = torch.linalg.solve(system, solution - target)
    assert torch.allclose(found["w"], expected, rtol=1e-9)
    assert torch.equal(found["other"], torch.zeros(2, dtype=torch.float64))


def test_more_iterations_come_closer_and_too_many_do_no_harm(problem):
    curvature, target, theta = problem
    args = {"w": theta}, TASK, context_of(1), Engine("loop")
    exact, *rest = (
        implicit_gradient(quadratic(curvature, target, 400), "conjugate_gradient", n, *args).grads["w"]
        for n in (4, 1, 2, 3, 60)
    )
    errors = [float((each - exact).norm()) for each in rest]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 1e-12


@pytest.mark.parametrize("settings", [{"solver": "neumann"}, {"inner_optimizer": InnerOptimizer("adam")}], ids=str)
def test_vmap_and_loop_agree_for_each_solver_and_optimizer(settings):
    model = build_model(MLP(width=6, depth=1), SPEC, seed=0).to(torch.device("cpu"), torch.float64)
    algorithm = IMAML(0.05, 4, **settings)
    tasks = random_episodes(SPEC, 3)
    found = [algorithm.meta_gradient(model, model.initial(), tasks, context_of(3), Engine(v)) for v in ("loop", "vmap")]
    assert all(torch.allclose(found[0].grads[name], found[1].grads[name], rtol=1e-9) for name in found[0].grads)


def test_adapting_stays_near_the_initial_weights_the_more_so_the_stronger_the_term():
    model = build_model(MLP(width=6, depth=1), SPEC, seed=0)
    params = model.initial()
    support = torch.utils._pytree.tree_map(lambda leaf: leaf[0], random_episodes(SPEC, 1, dtype=torch.float32)).support
    context = context_of(1)._replace(noise=torch.tensor(-1))
    moved = []
    for strength in (0.01, 1.0, 8.0):
        *_, last = IMAML(0.1, 50, strength).trajectory(model, params, support, context)
        moved.append(sum(float((last.fast[name] - params[name]).norm()) for name in params))
    assert moved[0] > 1.5 * moved[1] > 3 * moved[2]

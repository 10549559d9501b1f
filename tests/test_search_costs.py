"""What a configuration costs: by hand for a small network, and something sensible for every method and model."""

import pytest
import torch

from metatrain.algorithms import ALGORITHMS
from metatrain.config.load import read_config
from metatrain.metrics import task_loss
from metatrain.training.worker import Worker
from metatrain.types import Shard, ShardRequest
from tests.configurations import NEURAL_PROCESSES, ON_PICTURES, ON_TABLES, method, tiny
from tune.execution.costs import COSTS, build_adaptation, measure_costs

SIZES = [(1, 16), (16, 16), (16, 1)]
"""Inputs and outputs of each layer of the MLP below."""
SHOTS, QUERIES, STEPS = 10, 7, 3


def worker(*overrides: str) -> Worker:
    return Worker(tiny(*overrides), torch.device("cpu"))


def sinusoid(algorithm: str, **evaluation: int) -> Worker:
    shape = {"ways": None, "shots": SHOTS, "queries": QUERIES}
    raw = {
        "tasks": {"name": "sinusoid", "train": {**shape, "shots": 5}, "test": shape},
        "model": {"name": "mlp", "width": 16, "depth": 2},
        "algorithm": {"name": algorithm},
        "evaluation": {"inner_steps": STEPS} if hasattr(ALGORITHMS[algorithm], "inner_steps") else {},
        "tracking": {"uri": None},
    }
    return Worker(read_config(raw), torch.device("cpu"))


def products(n: int) -> int:
    """Multiplications and additions of n examples on their way through all layers."""
    return sum(2 * n * a * b for a, b in SIZES)


def test_the_operations_of_maml_are_those_counted_by_hand():
    """Each step goes forward, and back to every layer's weights and to every layer's input but the first's."""
    inputs = products(SHOTS) - 2 * SHOTS * SIZES[0][0] * SIZES[0][1]
    by_hand = STEPS * (products(SHOTS) + products(SHOTS) + inputs) + products(QUERIES)
    assert measure_costs(sinusoid("maml"), ["operations"]) == {"operations": by_hand}


def test_the_operations_of_a_convolution_are_those_of_its_positions():
    """conv4 that halves by strides: 14, 7, 4 and 2 positions a side, 3 by 3 weights, one channel and then eight."""

    def convolved(n: int) -> int:
        return sum(2 * n * side**2 * 8 * channels * 9 for side, channels in ((14, 1), (7, 8), (4, 8), (2, 8)))

    support, queries, head = 3, 9, 2 * 8 * 3
    inputs = convolved(support) - 2 * support * 14**2 * 8 * 9
    step = convolved(support) + convolved(support) + inputs + 3 * support * head
    by_hand = step + convolved(queries) + queries * head
    assert measure_costs(worker("algorithm.inner_steps=1"), ["operations"]) == {"operations": by_hand}


def test_the_operations_of_anil_pass_the_body_once():
    """The support set goes through the body once, then the head alone, forward and back to its weights; inputs of the
    head are nobody's parameters.
    """
    head = 2 * SHOTS * SIZES[-1][0] * SIZES[-1][1]
    by_hand = products(SHOTS) - head + STEPS * 2 * head + products(QUERIES)
    assert measure_costs(sinusoid("anil"), ["operations"]) == {"operations": by_hand}


def test_parameters_are_all_that_is_meta_learned():
    numbers = sum(a * b + b for a, b in SIZES)
    assert measure_costs(sinusoid("maml"), ["parameters"]) == {"parameters": numbers}
    assert measure_costs(sinusoid("meta_sgd"), ["parameters"]) == {"parameters": 2 * numbers}


def test_what_costs_more_is_said_to():
    """Twice as wide, and more inner steps in evaluation; those of training are not asked about."""
    names = ["parameters", "operations"]
    base, wide = measure_costs(worker(), names), measure_costs(worker("model.width=16"), names)
    assert wide["parameters"] > 2 * base["parameters"]
    assert wide["operations"] > 2 * base["operations"]
    more, trained = worker("evaluation.inner_steps=4"), worker("algorithm.inner_steps=7", "evaluation.inner_steps=2")
    assert measure_costs(more, names)["parameters"] == base["parameters"]
    assert 1.5 * base["operations"] < measure_costs(more, names)["operations"] < 2 * base["operations"]
    assert measure_costs(trained, names) == base


def test_adaptation_takes_time_that_grows_with_the_steps():
    few, many = worker("evaluation.inner_steps=1"), worker("evaluation.inner_steps=40")
    seconds = [measure_costs(one, ["adaptation_seconds"])["adaptation_seconds"] for one in (few, many)]
    assert 0 < 4 * seconds[0] < seconds[1]


@pytest.mark.parametrize("model", ["{name: conv4, width: 8}", "{name: mlp, width: 8}"], ids=["conv4", "mlp"])
@pytest.mark.parametrize("name", ON_PICTURES)
def test_every_method_and_network_has_its_costs_on_pictures(name, model):
    """What is counted is what the evaluation computes."""
    one = worker(*method(name), f"model={model}")
    found = measure_costs(one, list(COSTS))
    assert list(found) == ["parameters", "operations", "adaptation_seconds"]
    assert all(type(number) is float and number > 0 for number in found.values())
    assert measure_costs(one, ["operations"])["operations"] == found["operations"]
    predicted = build_adaptation(one)()
    assert predicted.shape == (9, 3)
    request, shard = ShardRequest("score", "validation", 0), Shard(0, (0,))
    scored = one.score(request, one.initial(), shard).values["loss"][0, -1]
    torch.testing.assert_close(task_loss(predicted, one.task(request, 0)[0].query.y)[0], scored)
    assert not predicted.requires_grad


COMPARES_CLASSES = ("leo", "protonet", "meta_opt_net", "matching", "siamese", "relation")
REGRESS = [
    name for name in ON_PICTURES if name not in COMPARES_CLASSES and not hasattr(ALGORITHMS[name], "trains_on_classes")
]


@pytest.mark.parametrize("name", REGRESS)
def test_every_method_that_regresses_has_its_costs_on_curves(name):
    found = measure_costs(sinusoid(name), list(COSTS))
    assert all(number > 0 for number in found.values())


@pytest.mark.parametrize("name", [*NEURAL_PROCESSES, *ON_TABLES])
def test_every_method_that_is_not_for_pictures_has_its_costs(name):
    found = measure_costs(worker(*method(name)), list(COSTS))
    assert all(number > 0 for number in found.values())


def test_no_costs_asked_none_computed_and_unknown_ones_refused():
    assert measure_costs(worker(), []) == {}
    with pytest.raises(ValueError, match=r"search.objectives: no cost 'memory': choose among parameters, operations"):
        measure_costs(worker(), ["memory"])

"""What queries attend to: the weights that methods tell are those that they predict by, and the picture shows them."""

import threading

import pytest
import torch
from PIL import Image
from torch.nn.functional import one_hot

from metatrain.algorithms import ALGORITHMS
from metatrain.models.transformer import SetAttention, recorded_attention
from metatrain.report.attention_figure import draw_attention
from metatrain.report.test_task import draw_test_task
from metatrain.training.worker import Worker
from metatrain.types import Context
from tasks.types import Episode, Examples, PaddedExamples, members
from tests.configurations import method, tiny

ATTENDING = [name for name, algorithm in ALGORITHMS.items() if hasattr(algorithm, "attention")]
SILENT = Context(torch.tensor(0), torch.tensor(-1))


def test_those_that_attend_to_the_support_set_tell_to_what():
    assert set(ATTENDING) == {"matching", "anp", "tnp", "in_context", "in_context_table"}


@pytest.mark.parametrize("name", ATTENDING)
def test_weights_are_shares_and_padding_has_none(name):
    worker = Worker(tiny(*method(name)), torch.device("cpu"))
    params = worker.initial()
    batch = worker.distribution("test").episodes([3])
    task = Episode(*(type(part)(*(leaf[0] for leaf in part)) for part in batch[:2]))
    with torch.no_grad():
        (adapted,) = worker.algorithm.trajectory(worker.model, params, task.support, SILENT)
        found = worker.algorithm.attention(worker.model, params, adapted, task.query.x, SILENT)
    inside = members(task.support)
    assert found.shape[0] == len(task.query.y) and found.shape[1] >= len(inside)
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.sum(1), torch.ones(len(found)))
    assert bool((found[:, : len(inside)][:, ~inside] == 0).all())


def test_matching_networks_predict_by_the_weights_that_they_tell():
    worker = Worker(tiny(*method("matching")), torch.device("cpu"))
    params, (support, query) = worker.initial(), worker.distribution("test").episodes([0])
    support, query = (Examples(*(leaf[0] for leaf in part)) for part in (support, query))
    (adapted,) = worker.algorithm.trajectory(worker.model, params, support, SILENT)
    weights = worker.algorithm.attention(worker.model, params, adapted, query.x, SILENT)
    predicted = worker.algorithm.predict(worker.model, params, adapted, query.x, SILENT).softmax(1)
    torch.testing.assert_close(predicted, weights @ one_hot(support.y, 3).float())


def test_what_is_recorded_is_what_this_thread_s_attention_weighed_by():
    torch.manual_seed(0)
    attention, other = (SetAttention(4, 4, 6, 2).double() for _ in range(2))
    queries, keys = torch.randn(3, 4).double(), torch.randn(5, 4).double()
    mask = torch.tensor([True, True, False, True, True])
    with recorded_attention() as found:
        expected = attention(queries, keys, keys, mask)
        thread = threading.Thread(target=other, args=(queries, keys, keys, mask))
        thread.start()
        thread.join()
    attention(queries, keys, keys, mask)
    (weights,) = found
    values = attention.value(keys).view(5, 2, 3).transpose(0, 1)
    torch.testing.assert_close(attention.output((weights @ values).transpose(0, 1).flatten(1)), expected)


def test_classes_are_drawn_in_order_and_padding_is_left_out():
    support = PaddedExamples(torch.zeros(4, 2), torch.tensor([1, 0, 0, 1]), torch.tensor([True, True, False, True]))
    query = Examples(torch.zeros(3, 2), torch.tensor([1, 0, 1]))
    weights = torch.tensor([[0.5, 0.1, 0.0, 0.4], [0.2, 0.7, 0.0, 0.1], [0.3, 0.3, 0.0, 0.4]])
    chart = draw_attention(weights, Episode(support, query), "weights")
    axes = chart.figure.axes[0]
    drawn = axes.images[0].get_array()
    assert drawn.tolist() == weights[[1, 0, 2]][:, [1, 0, 3]].tolist()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["class 1", "class 2"]
    assert [int(tick) for tick in axes.get_yticks()] == [0, 1]
    assert "on average 77% of the weight is on the query's own class" in chart.description


def test_values_of_one_number_are_drawn_in_the_order_of_their_inputs():
    x = torch.tensor([[2.0], [-1.0], [0.5]])
    weights = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    chart = draw_attention(weights, Episode(Examples(x, x), Examples(x, x)), "weights")
    axes = chart.figure.axes[0]
    assert axes.images[0].get_array().tolist() == weights[[1, 2, 0]][:, [1, 2, 0]].tolist()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x = -1", "x = 0.5", "x = 2"]


def test_a_task_without_support_examples_is_not_drawn(tmp_path):
    """Of support sets of 0 or 1 example, the first that has one is."""
    worker = Worker(tiny(*method("tnp"), "tasks.test.shots=1"), torch.device("cpu"))
    sizes = worker.distribution("test").episodes(range(4)).support.mask.sum(1).tolist()
    first = sizes.index(1)
    assert 0 in sizes
    draw_test_task(worker, worker.initial(), tmp_path, "test")
    with Image.open(tmp_path / "test-attention.png") as image:
        assert f"test task {first}: 3 queries and 1 support examples" in image.info["Description"]


@pytest.mark.parametrize("name", ["matching", "in_context_table"])
def test_it_is_drawn_for_a_test_task(name, tmp_path):
    worker = Worker(tiny(*method(name)), torch.device("cpu"))
    names = [path.name for path in draw_test_task(worker, worker.initial(), tmp_path, "test")]
    assert names == ["test-episode.png"] * (name == "matching") + ["test-attention.png"]
    assert (tmp_path / "test-attention.png").stat().st_size > 1000

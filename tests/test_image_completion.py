"""`tasks.name=image_completion`: pixels as functions of their position, and pictures of what is completed."""

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves, tree_map

from metatrain.algorithms.fills import ConstantFill, NearestFill
from metatrain.densities import mean_of, std_of
from metatrain.models import build_model
from metatrain.models.architectures import Identity
from metatrain.report.completion_figure import UNSEEN, as_image, density_images, seen_image
from metatrain.types import Context, Gaussian
from metatrain.yaml_config import apply_overrides
from tasks.sources.image_completion import ImageCompletion
from tasks.types import EpisodeShape, Examples, PaddedExamples, TaskSpec
from tests.command_line import last_json
from tests.command_line import metatrain as command
from tests.configurations import TINY

SHAPE = EpisodeShape(None, 12, 30)
STROKES = ImageCompletion("strokes", fewest=2)
INDEX = st.integers(0, 2**40)


@given(indices=st.lists(INDEX, min_size=1, max_size=4), fewest=st.sampled_from([None, 0, 2]))
def test_a_task_is_the_same_whatever_is_asked_with_it(indices, fewest):
    drawn = ImageCompletion("strokes", fewest=fewest).distribution("test", SHAPE, 3)
    together = drawn.episodes(indices)
    for row, index in enumerate(indices):
        for one, all_ in zip(tree_leaves(drawn.episodes([index])), tree_leaves(together), strict=True):
            assert torch.equal(one[0], all_[row])


@given(index=INDEX)
def test_pixels_are_those_of_the_image_at_their_positions_and_no_query_is_seen(index):
    drawn = STROKES.distribution("train", SHAPE, 0)
    one, image = drawn.episodes([index]), drawn.images([index])[0]
    inside = one.support.mask[0]
    assert 2 <= int(inside.sum()) <= 12
    assert not bool(one.support.x[0, ~inside].any()) and not bool(one.support.y[0, ~inside].any())
    found = []
    for x, y in ((one.support.x[0, inside], one.support.y[0, inside]), (one.query.x[0], one.query.y[0])):
        row, column = ((x + 1) / 2 * 27).round().long().T
        assert torch.equal(image[0, row, column], y[:, 0])
        found += list(zip(row.tolist(), column.tolist(), strict=True))
    assert len(set(found)) == len(found)


def test_a_completion_asks_all_pixels_and_shows_the_first_of_the_task():
    drawn = STROKES.distribution("test", SHAPE, 0)
    whole, task, image = drawn.completion(4, 12), drawn.episodes([4]), drawn.images([4])[0]
    assert torch.equal(as_image(whole.query.y[0], (1, 28, 28)), image)
    seen = int(task.support.mask.sum())
    assert torch.equal(whole.support.x[0, :seen], task.support.x[0, :seen])
    picture = seen_image(tree_map(lambda leaf: leaf[0], whole), (1, 28, 28))
    shown = (picture != UNSEEN[:, None, None]).any(0)
    assert int(shown.sum()) == 12 and torch.equal(picture[:, shown], (1 - image[:, shown]).expand(3, -1))


def test_means_and_deviations_become_images():
    mean, std = torch.linspace(-0.5, 1.5, 6)[:, None], torch.tensor([0.0, 0.1, 0.25, 0.5, 0.7, 0.2])[:, None]
    first, second = density_images(Gaussian(mean, std), (1, 2, 3))
    assert first.shape == second.shape == (1, 2, 3)
    assert first[0, 0, 0] == 0 and first[0, 1, 2] == 1
    assert second.flatten().tolist() == pytest.approx([0.0, 0.2, 0.5, 1.0, 1.0, 0.4])


SPEC = TaskSpec("regression", None, (2,), (1,), masked=True)
MODEL = build_model(Identity(), SPEC, 0)


def predict(method, support, x) -> Gaussian:
    context = Context(torch.tensor(0), torch.tensor(-1))
    (known,) = method.trajectory(MODEL, {}, support, context)
    return method.predict(MODEL, {}, known, x, context)


def test_fills_are_what_they_say():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [9.0, 9.0]])
    y = torch.tensor([[1.0], [2.0], [6.0], [100.0]])
    support = PaddedExamples(x, y, torch.tensor([True, True, True, False]))
    asked = torch.tensor([[0.1, 0.0], [8.0, 8.0]])
    constant, nearest = predict(ConstantFill(), support, asked), predict(NearestFill(), support, asked)
    assert mean_of(constant).flatten().tolist() == [3.0, 3.0]
    assert float(std_of(constant)[0]) == pytest.approx(((1 + 4 + 1 + 9) / 4) ** 0.5)
    assert mean_of(nearest).flatten().tolist() == [1.0, 6.0], "padding is nearest to nothing"
    assert float(std_of(nearest)[0]) == pytest.approx(((1 + 1 + 1 + 25) / 4) ** 0.5)
    for method in (ConstantFill(), NearestFill()):
        for count, value in ((0, 0.0), (1, 1.0)):
            few = support._replace(mask=torch.arange(4) < count)
            assert mean_of(predict(method, few, asked)).flatten().tolist() == [value, value]
            expected = (1 / (1 + count)) ** 0.5
            assert std_of(predict(method, few, asked)).flatten().tolist() == pytest.approx([expected] * 2)
        alone = predict(method, Examples(x[:3], y[:3]), asked)
        assert torch.equal(mean_of(alone), mean_of(predict(method, support, asked)))


def test_a_run_completes_images_beside_fills_and_draws_them(tmp_path):
    tasks = {"name": "image_completion", "images": "strokes", "fewest": 1}
    tasks |= {"train": {"ways": None, "shots": 8, "queries": 10}, "test": {"ways": None, "shots": 8, "queries": 10}}
    raw = {**TINY, "tasks": tasks, "model": {"name": "identity"}, "algorithm": {"name": "cnp", "width": 8}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    found = last_json(command(tmp_path, "train", "c.yaml", "--json"))
    assert found["test"]["score"] == "log_likelihood"
    assert {one["learner"] for one in found["baselines"]} == {"untrained", "constant_fill", "nearest_fill"}
    run = tmp_path / found["run_dir"]
    assert (run / "plots" / "test-completions.png").stat().st_size > 5_000
    command(tmp_path, "report", found["run_dir"])
    assert "Images of test tasks, completed" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["tasks.images=letters"], "tasks.images: no images are called 'letters': set one of omniglot"),
        (["tasks.fewest=-1"], "tasks.fewest: -1 is no number of pixels"),
        (["tasks.fewest=9"], "tasks.fewest: 9 pixels at least, and 8 at most: raise tasks.train.shots"),
        (["tasks.train.ways=3"], "tasks.train.ways: pixels have no classes"),
        (["tasks.train.queries=777"], "8 pixels seen and 777 asked are more than the 784 of an image"),
        (["tasks.settings={colour: red}"], "tasks.settings: strokes"),
        (["algorithm={name: conv_cnp}"], "conv_cnp takes one input"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(tmp_path, overrides, says):
    tasks = {"name": "image_completion", "images": "strokes", "fewest": 1}
    tasks |= {"train": {"ways": None, "shots": 8, "queries": 10}, "test": {"ways": None, "shots": 8, "queries": 10}}
    raw = {**TINY, "tasks": tasks, "model": {"name": "identity"}, "algorithm": {"name": "cnp", "width": 8}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(apply_overrides(raw, overrides)))
    done = command(tmp_path, "train", "c.yaml", expect=2)
    assert says in done.err and len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()

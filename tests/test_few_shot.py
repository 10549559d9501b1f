"""Episodes by index: the law of every task distribution, and what a request beyond the classes is told."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.few_shot import FewShot
from tasks.random import Integers
from tasks.sources.awa2 import AwA2
from tasks.sources.cub import CUB
from tasks.sources.image_folder import ImageFolder
from tasks.sources.medmnist import MedMNIST
from tasks.sources.meta_dataset import MetaDataset
from tasks.sources.mini_imagenet import MiniImageNet
from tasks.sources.omniglot import Omniglot
from tasks.sources.strokes import Strokes
from tasks.types import SPLITS, EpisodeShape, Shape, TaskSource
from tests import conformance_distributions as conformance
from tests import drawings, miniatures, pictures

SHAPE = EpisodeShape(ways=3, shots=2, queries=4)


def _omniglot(folder: Path) -> TaskSource:
    return Omniglot(root=str(drawings.write_zips(folder / "raw")), cache=str(folder / "cache"))


def _image_folder(folder: Path) -> TaskSource:
    root = pictures.write(folder / "raw", pictures.class_files([f"class {number}" for number in range(16)]))
    return ImageFolder(root=str(root), cache=str(folder / "cache"), size=pictures.SIDE)


def _mini_imagenet(folder: Path) -> TaskSource:
    root = pictures.write_zip(folder / "mini.zip", pictures.table_files())
    return MiniImageNet(root=str(root), cache=str(folder / "cache"), size=pictures.SIDE)


def _cub(folder: Path) -> TaskSource:
    names = [f"{number:03d}.Bird" for number in range(1, 13)]
    root = pictures.write(folder / "raw", miniatures.bird_files(names))
    return CUB(root=str(root), cache=str(folder / "cache"), size=pictures.SIDE)


def _awa2(folder: Path) -> TaskSource:
    root = pictures.write(folder / "raw", miniatures.animal_files())
    return AwA2(root=str(root), cache=str(folder / "cache"), size=pictures.SIDE)


def _medmnist(folder: Path) -> TaskSource:
    root = pictures.write(folder / "raw", {"bloodmnist.npz": miniatures.npz(miniatures.medical_arrays())})
    return MedMNIST(root=str(root), cache=str(folder / "cache"), size=pictures.SIDE)


def _meta_dataset(folder: Path) -> TaskSource:
    root = pictures.write(folder / "raw", miniatures.record_files())
    return MetaDataset(root=str(root), cache=str(folder / "cache"), size=pictures.SIDE)


SOURCES: dict[str, Callable[[Path], TaskSource]] = {
    "strokes": lambda _: Strokes(),
    "omniglot": _omniglot,
    "image_folder": _image_folder,
    "mini_imagenet": _mini_imagenet,
    "cub": _cub,
    "awa2": _awa2,
    "medmnist": _medmnist,
    "meta_dataset": _meta_dataset,
}


@pytest.fixture(scope="module", params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TaskSource:
    return SOURCES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize(
    "check",
    [conformance.check_law, conformance.check_shapes, conformance.check_values, conformance.check_disjoint],
)
def test_a_distribution_conforms(source: TaskSource, check: Callable[[FewShot], None]) -> None:
    check(source.distribution("train", SHAPE, 3))


def test_seeds_and_splits_differ(source: TaskSource) -> None:
    conformance.check_seeds_and_splits(source, SHAPE)


class Numbered:
    """A pool whose every image is one pixel that tells which it is. Class c has 3 + c members."""

    name = "numbered"
    example_shape: Shape = (1, 1, 1)
    num_classes = 8
    min_class_size = 3

    def sizes(self, classes: Integers) -> Integers:
        return 3 + classes

    def examples(self, classes: Integers, members: Integers) -> Tensor:
        assert (members < self.sizes(classes)).all()
        return torch.from_numpy(100.0 * classes + members).to(torch.float32).reshape(-1, 1, 1, 1)

    def class_names(self, classes: Integers) -> list[str]:
        return [str(number) for number in classes]

    def denormalize(self, x: Tensor) -> Tensor:
        return x / 800


@given(
    ways=st.integers(2, 8),
    shots=st.integers(1, 2),
    seed=st.integers(0, 2**63),
    indices=st.lists(st.integers(0, 2**50), min_size=1, max_size=4),
)
@settings(max_examples=100)
def test_images_lie_where_their_labels_say(ways: int, shots: int, seed: int, indices: list[int]) -> None:
    distribution = FewShot(Numbered(), EpisodeShape(ways, shots, 3 - shots), seed, "train")
    episode = distribution.episodes(indices)
    classes, members = distribution.draw(indices)
    for j, index in enumerate(indices):
        support, query = episode.support.x[j].reshape(ways, -1), episode.query.x[j].reshape(ways, -1)
        both = torch.cat([support, query], dim=1)
        assert torch.equal(both, torch.from_numpy(100 * classes[j][:, None] + members[j]).float())
        assert len(both.unique()) == both.numel()
        assert distribution.class_names(index) == [str(number) for number in classes[j]]


def test_a_tasks_classes_do_not_depend_on_its_shots() -> None:
    one = FewShot(Numbered(), EpisodeShape(4, 1, 1), 0, "train").draw(range(20))[0]
    two = FewShot(Numbered(), EpisodeShape(4, 2, 1), 0, "train").draw(range(20))[0]
    assert np.array_equal(one, two)


def test_what_a_person_can_look_at_is_the_pools_affair(source: TaskSource) -> None:
    distribution = source.distribution("train", SHAPE, 3)
    x = distribution.episodes([0]).query.x
    assert torch.equal(distribution.denormalize(x), x)
    assert torch.equal(FewShot(Numbered(), EpisodeShape(4, 1, 1), 0, "train").denormalize(x), x / 800)


def test_splits_draw_differently_from_pools_of_one_size() -> None:
    drawn = [FewShot(Numbered(), EpisodeShape(4, 1, 1), 0, split).draw(range(20))[0] for split in SPLITS]
    assert not any(np.array_equal(drawn[i], drawn[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_every_class_and_every_member_gets_its_turn_as_often_as_any_other() -> None:
    """Chi-square, 0.999 quantiles: 8 classes alike, 24.3; 5 members of class 2 alike, 18.5."""
    classes, members = FewShot(Numbered(), EpisodeShape(2, 1, 1), 1, "train").draw(range(8000))
    counts = np.bincount(classes.reshape(-1), minlength=8)
    assert ((counts - 2000) ** 2 / 2000).sum() < 24.3
    first = members[classes == 2][:, 0]
    expected = len(first) / 5
    assert ((np.bincount(first, minlength=5) - expected) ** 2 / expected).sum() < 18.5


@pytest.mark.parametrize(
    ("shape", "split", "message"),
    [
        (
            EpisodeShape(10, 1, 1),
            "test",
            "10-way needs 10 classes; 'test' of numbered has 8: lower tasks.test.ways",
        ),
        (
            EpisodeShape(5, 1, 3),
            "train",
            "1 shots and 3 queries need 4 examples of a class; the class '0' has only 3 in 'train' of numbered: "
            "lower tasks.train.shots or tasks.train.queries",
        ),
        (EpisodeShape(None, 1, 1), "validation", "set tasks.test.ways"),
    ],
)
def test_too_much_asked_for_names_the_remedy(shape: EpisodeShape, split: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        FewShot(Numbered(), shape, 0, split)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_drawing_indices_stays_cheap() -> None:
    """Tens of microseconds an episode, where a generator per episode would take hundreds."""
    distribution = FewShot(Strokes().distribution("train", EpisodeShape(), 0).pool, EpisodeShape(), 0, "train")
    distribution.draw(range(64))
    best = min(_seconds(lambda: distribution.draw(range(64))) for _ in range(20))
    assert best / 64 < 100e-6


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

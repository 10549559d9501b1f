"""Check the promises of every task distribution; a new one joins by a row in `test_few_shot.py`."""

import pickle

import torch

from tasks.few_shot import FewShot
from tasks.types import Episode, EpisodeShape, Examples, TaskDistribution, TaskSource


def tensors(episode: Episode) -> list[torch.Tensor]:
    return [episode.support.x, episode.support.y, episode.query.x, episode.query.y]


def same(left: Episode, right: Episode) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(left), tensors(right), strict=True))


def row(episode: Episode, j: int) -> Episode:
    return Episode(*(Examples(part.x[j : j + 1], part.y[j : j + 1]) for part in episode))


def check_law(distribution: TaskDistribution[Episode]) -> None:
    """Check that row j of `episodes(indices)` equals `episodes([indices[j]])`, bit for bit, for any other indices."""
    indices = [5, 0, 2**40, 5, 1, 77]
    together = distribution.episodes(indices)
    for j, index in enumerate(indices):
        assert same(row(together, j), distribution.episodes([index]))
    backwards = distribution.episodes(indices[::-1])
    assert all(torch.equal(a, b.flip(0)) for a, b in zip(tensors(together), tensors(backwards), strict=True))
    assert not same(row(together, 0), row(together, 1))
    assert same(pickle.loads(pickle.dumps(distribution)).episodes(indices), together)


def check_shapes(distribution: FewShot) -> None:
    """Check that episodes have the shapes of tasks/types.py, also for no indices."""
    spec, shape = distribution.spec, distribution.episode
    assert spec.kind == "classification"
    assert spec.ways == shape.ways
    for indices in ([], [3], [0, 1, 2]):
        episode = distribution.episodes(indices)
        for part, each in ((episode.support, shape.shots), (episode.query, shape.queries)):
            assert part.x.shape == (len(indices), shape.ways * each, *spec.x)
            assert part.x.dtype == torch.float32
            assert part.x.is_contiguous()
            assert part.y.dtype == torch.int64
            labels = torch.arange(shape.ways).repeat_interleave(each)
            assert torch.equal(part.y, labels.expand(len(indices), -1))


def check_values(distribution: FewShot) -> None:
    """Check that ink is 1 and paper 0: mostly paper, all within [0, 1]."""
    x = distribution.episodes(range(4)).query.x
    assert 0 <= x.min() < 0.01
    assert 0.9 < x.max() <= 1
    assert 0.01 < x.mean() < 0.4


def check_disjoint(distribution: FewShot) -> None:
    """Check that no class is twice in a task, and no drawing in both support and query."""
    classes, members = distribution.draw(range(50))
    for task_classes, task_members in zip(classes, members, strict=True):
        assert len(set(task_classes.tolist())) == distribution.episode.ways
        for drawings in task_members:
            assert len(set(drawings.tolist())) == len(drawings)


def check_seeds_and_splits(source: TaskSource, shape: EpisodeShape) -> None:
    """Check that another seed gives other tasks, and another split too."""
    base = source.distribution("test", shape, 0).episodes([0])
    assert same(base, source.distribution("test", shape, 0).episodes([0]))
    assert not same(base, source.distribution("test", shape, 1).episodes([0]))
    assert not same(base, source.distribution("validation", shape, 0).episodes([0]))

"""Serve images as functions from a pixel's position to its value: complete an image of which few pixels are seen.

The tasks on which conditional neural processes were shown (Garnelo et al. 2018). Images come from any source of images
in classes; a task is one image of one class of the split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.few_shot import FewShot
from tasks.io.home import PathText
from tasks.random import Integers, stream, uniforms
from tasks.sources.image_folder import ImageFolder
from tasks.sources.many_sizes import draw_sizes, require_fewest, require_no_ways
from tasks.sources.mini_imagenet import MiniImageNet
from tasks.sources.omniglot import Omniglot
from tasks.sources.strokes import Strokes
from tasks.text import part_of
from tasks.types import DataRecord, Episode, EpisodeShape, Examples, PaddedExamples, Progress, Split, TaskSpec

IMAGES: dict[str, type[Any]] = {
    "omniglot": Omniglot,
    "mini_imagenet": MiniImageNet,
    "image_folder": ImageFolder,
    "strokes": Strokes,
}


@dataclass(frozen=True)
class ImageCompletion:
    """Pixels of images: x is (row, column), from −1 at the first to 1 at the last, and y the value of each channel.

    images: the source of images, by its name. root: where it lies, if it lies anywhere. settings: others of that
    source, such as {size: 32, splits: auto}. fewest: the least number of pixels seen; each task has between `fewest`
    and `shots`, padded to `shots`; None: all have `shots`. Queries are other pixels of the same image.
    """

    images: str = "omniglot"
    root: PathText | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    fewest: int | None = None

    def __post_init__(self) -> None:
        if self.images not in IMAGES:
            raise ValueError(f"images: no images are called '{self.images}': set one of {', '.join(IMAGES)}")
        if self.fewest is not None and self.fewest < 0:
            raise ValueError(f"fewest: {self.fewest} is no number of pixels: set 0 or more")
        self.source()

    def source(self) -> Any:
        """Return the source of images. ValueError: it has no such settings."""
        root = {} if self.root is None else {"root": self.root}
        try:
            return IMAGES[self.images](**root, **self.settings)
        except TypeError as error:
            raise ValueError(f"settings: {self.images}: {error}: remove that one") from error

    def prepare(self, progress: Progress) -> str:
        """Prepare the images, and return what there is."""
        return f"image_completion of {self.source().prepare(progress)}"

    def data(self) -> DataRecord | None:
        """Return what images are drawn from, if their source tells."""
        told = getattr(self.source(), "data", None)
        return None if told is None else told()

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> "Completions":
        """Return the images of one split's classes."""
        return Completions(self, split, episode, seed)


@dataclass(frozen=True)
class Completions:
    """One split's tasks, addressed by (seed, split, index): an image, and the order in which its pixels are taken."""

    source: ImageCompletion
    split: Split
    episode: EpisodeShape
    seed: int

    def __post_init__(self) -> None:
        require_no_ways(self.split, self.episode, "pixels have no classes to tell apart")
        require_fewest(self.split, self.episode, self.source.fewest, "pixels")
        _, height, width = self.image_shape
        if self.episode.shots + self.episode.queries > height * width:
            part = part_of(self.split)
            asked = f"{self.episode.shots} pixels seen and {self.episode.queries} asked"
            need = f"{asked} are more than the {height * width} of an image"
            raise ValueError(f"{part}.shots: {need}: lower it, or {part}.queries")

    def images(self, indices: Sequence[int]) -> Tensor:
        """Return the images of the tasks at `indices` [B, C, H, W], in [0, 1]."""
        drawn = self._drawn
        x: Tensor = drawn.denormalize(drawn.episodes(indices).support.x[:, 0])
        return x

    @cached_property
    def _drawn(self) -> FewShot:
        # Of two classes, as sources ask for, with one image each; the first is the task's.
        found: FewShot = self.source.source().distribution(self.split, EpisodeShape(2, 1, 1), self.seed)
        return found

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        channels, height, width = self._drawn.spec.x
        return channels, height, width

    @property
    def spec(self) -> TaskSpec:
        """Return the spec of a regression from positions to pixels."""
        return TaskSpec("regression", None, (2,), (self.image_shape[0],), masked=self.source.fewest is not None)

    def episodes(self, indices: Sequence[int]) -> Episode:
        """Return the tasks at `indices`, stacked: support.x [B, shots, 2], .y [B, shots, C]; query.x, .y alike.

        Padding is 0, in x and y.
        """
        shots, fewest = self.episode.shots, self.source.fewest
        order = self._order(indices)[:, : shots + self.episode.queries]
        x, y = self._pixels(self.images(indices), order)
        query = Examples(x[:, shots:].contiguous(), y[:, shots:].contiguous())
        if fewest is None:
            return Episode(Examples(x[:, :shots].contiguous(), y[:, :shots].contiguous()), query)
        sizes = draw_sizes(self.seed, stream("image-completion", self.split, "size"), indices, fewest, shots)
        mask = torch.from_numpy(np.arange(shots) < sizes[:, None])
        seen_x, seen_y = (part[:, :shots] * mask[..., None] for part in (x, y))
        padded: Any = PaddedExamples(seen_x, seen_y, mask)
        return Episode(padded, query)

    def completion(self, index: int, seen: int) -> Episode:
        """Return one image with its first `seen` pixels as support set, and all pixels, row by row, as queries."""
        image, order = self.images([index]), self._order([index])[:, :seen]
        everything = np.arange(image.shape[2] * image.shape[3])[None]
        return Episode(*(Examples(*self._pixels(image, which)) for which in (order, everything)))

    def _order(self, indices: Sequence[int]) -> Integers:
        """Return the pixels' numbers, row by row, in the random order of each task [B, H·W]."""
        _, height, width = self.image_shape
        keys = uniforms(self.seed, stream("image-completion", self.split), indices, height * width)
        return keys.argsort(1, kind="stable").astype(np.int64)

    def _pixels(self, images: Tensor, order: Integers) -> tuple[Tensor, Tensor]:
        """Return positions [B, n, 2] and values [B, n, C] of the pixels with these numbers [B, n]."""
        _, channels, height, width = images.shape
        row, column = order // width, order % width
        size = (max(height - 1, 1), max(width - 1, 1))
        x = np.stack([2 * row / size[0] - 1, 2 * column / size[1] - 1], -1)
        index = torch.from_numpy(order)[:, None].expand(-1, channels, -1)
        return torch.from_numpy(x).float(), images.flatten(2).gather(2, index).transpose(1, 2)

"""Serve one split of a store as a pool of classes, from which `few_shot` samples episodes."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tasks.few_shot import ClassGroups
from tasks.normalization import denormalize, moment_tensors
from tasks.random import Integers
from tasks.store.store import Images, Store
from tasks.types import Shape


@dataclass(frozen=True)
class StorePool:
    """The classes `numbers` of a store, its images returned as float32: (x/255 - mean) / std, channel by channel.

    mean, std: one number for all channels or one for each; () for 0 and 1, which leaves [0, 1].
    turns: 1, or 4 to add each class rotated by 90°, 180° and 270° as further classes (Santoro et al. 2016). Class c is
    the class numbers[c % n] turned counter-clockwise by c // n quarter turns.
    """

    name: str
    store: Store
    numbers: tuple[int, ...]
    turns: int = 1
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    grouped: tuple[tuple[int, ...], ...] = ()
    """Places in `numbers` of classes that belong together: an alphabet's, or those below a node; () for none."""
    whole_groups: bool = False
    """Whether a task has all classes of a group: of those below a node of a hierarchy."""
    few_remedy: str = ""
    """The setting that leaves out classes with too few images, for messages; empty where there is none."""

    @property
    def num_classes(self) -> int:
        """Return the number of classes, rotations counted as classes of their own."""
        return len(self.numbers) * self.turns

    @property
    def example_shape(self) -> Shape:
        """Return (C, H, W)."""
        return self.store.header.image_shape

    @property
    def min_class_size(self) -> int:
        """Return the number of images of the smallest class."""
        return int(self._sizes.min(initial=np.iinfo(np.int64).max))

    def sizes(self, classes: Integers) -> Integers:
        """Return the number of images of each of `classes`."""
        return self._sizes[classes % len(self.numbers)]

    def examples(self, classes: Integers, members: Integers) -> Tensor:
        """Return image number members[r] of class classes[r], both [R]: float32 [R, C, H, W]."""
        return self.normalise(self.pixels(classes, members))

    def groups(self) -> ClassGroups | None:
        """Return the classes of each group, each turn of it as one of its own; None where classes have no groups."""
        if not self.grouped:
            return None
        within = [np.array(one, dtype=np.int64) for one in self.grouped]
        turned = tuple(one + turn * len(self.numbers) for turn in range(self.turns) for one in within)
        return ClassGroups(turned, self.whole_groups)

    def denormalize(self, x: Tensor) -> Tensor:
        """Map normalised images [..., C, H, W] of any dtype and device back to values in [0, 1], for display."""
        return denormalize(x, self.mean, self.std)

    def class_names(self, classes: Integers) -> list[str]:
        """Return the display name of each of `classes`."""
        turns, kinds = np.divmod(classes, len(self.numbers))
        names = (self.store.header.classes[self.numbers[kind]].name for kind in kinds)
        return [f"{name} {90 * turn}°" if turn else name for name, turn in zip(names, turns, strict=True)]

    def normalise(self, pixels: Images) -> Tensor:
        """Return images of 0 to 255 as float32, in [0, 1] or normalised."""
        images = torch.from_numpy(pixels).to(torch.float32)
        if not (self.mean or self.std):
            return images.mul_(1 / 255)
        mean, std = self._moments
        return images.mul_(1 / (255 * std)).sub_(mean / std)

    def pixels(self, classes: Integers, members: Integers, out: Images | None = None) -> Images:
        """Return image number members[r] of class classes[r], both [R], turned: [R, C, H, W]; in `out`, if given."""
        turns, kinds = np.divmod(classes, len(self.numbers))
        # All rows exist; with another mode numpy would write to a copy of `out` first.
        pixels = self.store.images.take(self._starts[kinds] + members, axis=0, out=out, mode="clip")
        for turn in range(1, self.turns):
            where = np.flatnonzero(turns == turn)
            pixels[where] = np.rot90(pixels[where], turn, axes=(-2, -1))
        return pixels

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and std, each [1 or C, 1, 1]."""
        return moment_tensors(self.mean, self.std)

    @cached_property
    def _starts(self) -> Integers:
        return np.array([self.store.header.classes[number].start for number in self.numbers], dtype=np.int64)

    @cached_property
    def _sizes(self) -> Integers:
        stops = np.array([self.store.header.classes[number].stop for number in self.numbers], dtype=np.int64)
        return stops - self._starts

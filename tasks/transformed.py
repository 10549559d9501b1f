"""Serve the images of another pool or source after a transform: resized, or corrupted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.nn.functional import interpolate

from tasks.few_shot import EmptySplit, FewShot, few_shot
from tasks.normalization import denormalize, moment_tensors
from tasks.random import Integers
from tasks.store.class_pool import StorePool
from tasks.types import DataRecord, EpisodeShape, Progress, Shape, Split
from tasks.wrapped_pool import WrappedPool

_GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey (ITU-R BT.601)."""


class ImageTransform(Protocol):
    """A function of images in [0, 1] that depends on nothing but the image and its address."""

    def shape(self, found: Shape) -> Shape:
        """Return the shape of images that had the shape `found`, (C, H, W)."""

    def __call__(self, x: Tensor, classes: Integers, members: Integers) -> Tensor:
        """Return images [R, C, H, W] in [0, 1] of the members [R] of classes [R]."""


@dataclass(frozen=True)
class Resize:
    """Resize images to `target`, (C, H, W), without regard to proportions.

    A longer side is averaged and a shorter one interpolated (bilinear, antialiased). Grey images get three equal
    channels; of coloured ones grey is the weighted sum of ITU-R BT.601. Images that have the shape are as they are.
    """

    target: Shape

    def shape(self, found: Shape) -> Shape:
        """Return the target."""
        return self.target

    def __call__(self, x: Tensor, classes: Integers, members: Integers) -> Tensor:
        """Return images [R, *target]."""
        return resize(x, self.target)


def resize(x: Tensor, shape: Shape) -> Tensor:
    """Return images [n, C, H, W] in [0, 1] as [n, *shape], by the rules of `Resize`."""
    channels, height, width = shape
    if x.shape[1] == 3 and channels == 1:
        x = (x * x.new_tensor(_GREY)[:, None, None]).sum(1, keepdim=True)
    if x.shape[-2:] != (height, width):
        x = interpolate(x, (height, width), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    return x.expand(-1, channels, -1, -1).contiguous()


@dataclass(frozen=True)
class TransformedPool(WrappedPool):
    """The classes of another pool, their images transformed and then normalised by `mean` and `std`.

    What is transformed are images in [0, 1], whatever the other pool normalises by. mean, std: one number for all
    channels or one for each; () for 0 and 1.
    """

    transform: ImageTransform
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    setting: str = "tasks.size"
    """What asks for the transform, for messages."""

    def __post_init__(self) -> None:
        found = self.pool.example_shape
        if len(found) != 3 or found[0] not in (1, 3):
            reason = f"examples of {self.pool.name} have shape {found}, and only images [1 or 3, H, W] can be changed"
            raise ValueError(f"{self.setting}: {reason}: leave it out, or use images")

    @property
    def example_shape(self) -> Shape:
        """Return (C, H, W)."""
        return self.transform.shape(self.pool.example_shape)

    def examples(self, classes: Integers, members: Integers) -> Tensor:
        """Return image number members[r] of class classes[r], both [R]: float32 [R, C, H, W]."""
        x = self.transform(self.pool.denormalize(self.pool.examples(classes, members)), classes, members)
        if not (self.mean or self.std):
            return x
        mean, std = moment_tensors(self.mean, self.std)
        return (x - mean) / std

    def denormalize(self, x: Tensor) -> Tensor:
        """Map images [..., C, H, W] back to values in [0, 1], for display."""
        return denormalize(x, self.mean, self.std)


def resize_pool(pool: Any, target: Shape) -> "TransformedPool | StorePool":
    """Return a pool of images in [0, 1] of the shape `target`: a store's own pool where its images are such already."""
    if isinstance(pool, StorePool) and pool.example_shape == target and not (pool.mean or pool.std):
        return pool
    return TransformedPool(pool, Resize(target))


@dataclass(frozen=True)
class TransformedSource:
    """Another source of classes, its images transformed and normalised: see `TransformedPool`."""

    source: Any
    transform: ImageTransform
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    setting: str = "tasks.size"

    def prepare(self, progress: Progress) -> str:
        """Prepare the other source."""
        return str(self.source.prepare(progress))

    def data(self) -> DataRecord | None:
        """Return what the other source draws from, if it tells."""
        told = getattr(self.source, "data", None)
        found: DataRecord | None = None if told is None else told()
        return found

    def pool(self, split: Split) -> TransformedPool:
        """Return the other source's classes of one split."""
        return TransformedPool(self.source.pool(split), self.transform, self.mean, self.std, self.setting)

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> FewShot | EmptySplit:
        """Return few-shot episodes over one split's classes."""
        return few_shot(self.pool(split), episode, seed, split)


def moments_of(source: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation that a source normalises images by; () for 0 and 1."""
    found = (getattr(source, name, ()) for name in ("mean", "std"))
    mean, std = (tuple(one) if isinstance(one, Sequence) and not isinstance(one, str) else () for one in found)
    return mean, std

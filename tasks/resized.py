"""Bring images of several sources to one shape: side and channels."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import interpolate

from tasks.random import Integers
from tasks.types import Shape

_GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey (ITU-R BT.601)."""


@dataclass(frozen=True)
class ResizedPool:
    """The classes of another pool, their images [C, H, W] resized to `shape`.

    Images are those in [0, 1] that the other would display, whatever mean and standard deviation it normalises by. A
    longer side is averaged and a shorter one interpolated (bilinear, antialiased), without regard to proportions. Grey
    images get three equal channels; of coloured ones grey is the weighted sum of ITU-R BT.601. Images that have the
    shape are as they are.
    """

    pool: Any
    shape: Shape

    def __post_init__(self) -> None:
        found = self.pool.example_shape
        if len(found) != 3 or found[0] not in (1, 3):
            raise ValueError(f"examples of {self.pool.name} have shape {found}, and images [1 or 3, H, W] are resized")

    @property
    def name(self) -> str:
        """Return the name of the source."""
        return str(self.pool.name)

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return int(self.pool.num_classes)

    @property
    def example_shape(self) -> Shape:
        """Return (C, H, W)."""
        return self.shape

    @property
    def min_class_size(self) -> int:
        """Return the number of images of the smallest class."""
        return int(self.pool.min_class_size)

    @property
    def few_remedy(self) -> str:
        """Return the setting that leaves out classes with too few images."""
        return str(getattr(self.pool, "few_remedy", ""))

    def groups(self) -> Any:
        """Return the groups of classes that belong together, if the pool has such."""
        find = getattr(self.pool, "groups", None)
        return None if find is None else find()

    def sizes(self, classes: Integers) -> Integers:
        """Return the number of images of each of `classes`."""
        found: Integers = self.pool.sizes(classes)
        return found

    def examples(self, classes: Integers, members: Integers) -> Tensor:
        """Return image number members[r] of class classes[r], both [R]: float32 [R, C, H, W] in [0, 1]."""
        x: Tensor = self.pool.denormalize(self.pool.examples(classes, members))
        return resize(x, self.shape)

    def denormalize(self, x: Tensor) -> Tensor:
        """Return images as they are: they are in [0, 1]."""
        return x

    def class_names(self, classes: Integers) -> list[str]:
        """Return the display name of each of `classes`."""
        found: list[str] = self.pool.class_names(classes)
        return found


def resize(x: Tensor, shape: Shape) -> Tensor:
    """Return images [n, C, H, W] as [n, *shape], by the rules of `ResizedPool`."""
    channels, height, width = shape
    if x.shape[1] == 3 and channels == 1:
        x = (x * x.new_tensor(_GREY)[:, None, None]).sum(1, keepdim=True)
    if x.shape[-2:] != (height, width):
        x = interpolate(x, (height, width), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    return x.expand(-1, channels, -1, -1).contiguous()

"""Check the settings that all sources of images share: size, channels, mean and std, bad images."""

import math
from typing import Any, Literal

Channels = Literal["rgb", "grey"]
CHANNELS: dict[str, int] = {"rgb": 3, "grey": 1}

OnBadImage = Literal["error", "skip"]
ON_BAD_IMAGE: tuple[OnBadImage, ...] = ("error", "skip")


def check_settings(source: Any) -> None:
    """Check size, channels, mean and std of a source of images, and make mean and std tuples.

    ValueError: no image can have these.
    """
    size, channels, mean, std = source.size, source.channels, source.mean, source.std
    if size < 1:
        raise ValueError(f"size: an image of {size} pixels shows nothing: set tasks.size to 1 or more, such as 84")
    if channels not in CHANNELS:
        raise ValueError(f"channels: there are no '{channels}' images: set tasks.channels to {' or '.join(CHANNELS)}")
    count = CHANNELS[channels]
    for field, values in (("mean", mean), ("std", std)):
        if len(values) not in {0, 1, count}:
            counts = "1 number" if count == 1 else f"1 or {count} numbers"
            raise ValueError(f"{field}: {len(values)} numbers for {count} channels: set tasks.{field} to {counts}")
        object.__setattr__(source, field, tuple(values))
    if not all(0 <= value <= 1 for value in mean):
        raise ValueError(f"mean: {list(mean)} is no mean of values in [0, 1]: set tasks.mean to such (x/255)")
    if not all(0 < value < math.inf for value in std):
        raise ValueError(f"std: nothing can be divided by {list(std)}: set tasks.std to positive numbers")


def check_bad_image(source: Any) -> None:
    """Check what a source does with images that do not decode. ValueError: there is no such choice."""
    if source.on_bad_image not in ON_BAD_IMAGE:
        choices = " or ".join(ON_BAD_IMAGE)
        raise ValueError(f"on_bad_image: there is no '{source.on_bad_image}': set tasks.on_bad_image to {choices}")


def check_min_examples(source: Any) -> None:
    """Check the least number of images of a class. ValueError: it is below one."""
    if source.min_examples < 1:
        raise ValueError(f"min_examples: {source.min_examples} is below 1: set tasks.min_examples to 1 or more")

"""Serve a folder or zip of a user's images, a class per folder, as a task source: PNG, JPEG, BMP, WebP and GIF.

The images become a store of squares of one size.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from tasks.io.home import PathText
from tasks.sources.image_layout import find_layout
from tasks.sources.image_store import ImageFormat, SourceInfo, split_pool
from tasks.sources.listed_images import FEW_REMEDY, ListedImages
from tasks.store.class_pool import StorePool
from tasks.types import Split, no_progress

_INFO = SourceInfo(
    "image_folder",
    "a folder of images of the user's own",
    "",
    "CLASS/IMAGE in one place, or in each of train/, val/ and test/, or train.csv, val.csv and test.csv, or "
    "labels.csv (filename,label) beside images/",
)


@dataclass(frozen=True)
class ImageFolder(ListedImages):
    """A user's folder of images as a task source, a folder for each class.

    root: a folder, a zip, or a folder with one zip in it, or a URI of either, such as s3://BUCKET/FOLDER. It is only
    read.
    cache: where the store is kept; None for $METATRAIN_CACHE or ~/.cache/metatrain. A URI, such as s3://BUCKET/FOLDER,
    is a cache that machines share; each keeps its downloads in the folder for None.
    size: the side of an image in pixels: the shorter side is resized to it, the longer cropped at both ends.
    channels: "rgb" or "grey". mean, std: x in [0, 1] becomes (x - mean) / std, with one number or one for each
    channel; empty for 0 and 1.
    splits: the classes for training, validation and test. "auto" for those of the root's folders (train/, val/ or
    validation/, test/) or tables (train.csv, val.csv, test.csv); classes in one place are divided by a hash of their
    names, 64, 16 and 20 %, so that a folder that grows does not reshuffle, and a split that the root lacks is taken
    from train in the same way. Else a folder with train.txt, validation.txt and test.txt; the lists themselves, as
    {train: […], validation: […], test: […]}; or the name of lists that ship with metatrain: "tiny-imagenet-140" (80, 20
    and 40 classes of Tiny ImageNet, by a fixed shuffle of their sorted ids). For evaluation alone: "test" for the
    root's test/ or test.csv or, without one, all its classes; a list of test classes alone. "shuffle" is "auto" with
    the fixed shuffle of version 0.1.
    min_examples: classes with fewer images are left out.
    hierarchy: a file of lines PARENT CHILD, such as ImageNet's wordnet.is_a.txt, whose children are the classes: with
    the sampler meta_dataset a task's classes are those below one node.
    on_bad_image: "error" for an error that lists all images that do not decode, "skip" to leave them out.
    """

    hierarchy: PathText | None = None

    info: ClassVar[SourceInfo] = _INFO

    def pool(self, split: Split) -> StorePool:
        """Return one split's classes."""
        return split_pool(self.store(no_progress), split, self.mean, self.std, FEW_REMEDY, self.hierarchy)

    def _format(self) -> ImageFormat:
        return ImageFormat(partial(find_layout, forms=_INFO.forms))

"""Serve the raw folders of datasets that Meta-Dataset draws from, which differ in how they list their images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from tasks.sources.image_layout import Layout
from tasks.sources.image_store import ImageFormat, SourceInfo
from tasks.sources.list_files import DatasetFiles
from tasks.sources.listed_images import ListedImages
from tasks.sources.raw_listings import (
    ANNOTATIONS,
    VARIANTS,
    Lister,
    list_aircraft,
    list_coco,
    list_flowers,
    list_fungi,
    list_signs,
    list_textures,
)
from tasks.store.archive import OpenArchive
from tasks.store.store import Images


@dataclass(frozen=True)
class RawDataset(ListedImages):
    """A dataset as it unpacks, from a copy of the user's own; a subclass says which.

    root: the folder, or one above it, or a zip of it, or a URI. It is only read.
    splits: "auto" divides the classes by a hash of their names, as in ImageFolder; for the official classes of
    Meta-Dataset, set it to its JSON list, such as aircraft_splits.json. Others, and other settings: as in ImageFolder.

    marker: the file by which the folder is found. lister: lists the images.
    """

    marker: ClassVar[str]
    lister: ClassVar[Lister]

    def _format(self) -> ImageFormat:
        return ImageFormat(partial(_find_classes, type(self)))


def _find_classes(of: type[RawDataset], where: str, contents: OpenArchive) -> Layout:
    return of.lister(DatasetFiles(where, contents, of.marker, of.info.forms))


@dataclass(frozen=True)
class Aircraft(RawDataset):
    """FGVC-Aircraft: 100 variants of aircraft, 100 images each, each cut to the aircraft's box."""

    info: ClassVar[SourceInfo] = SourceInfo(
        "aircraft",
        "FGVC-Aircraft, https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        "Maji, S., Rahtu, E., Kannala, J., Blaschko, M., and Vedaldi, A. (2013). Fine-grained visual classification of "
        "aircraft. arXiv:1306.5151.",
        "data/images/, data/images_variant_train.txt, …val.txt and …test.txt and data/images_box.txt",
    )
    marker: ClassVar[str] = VARIANTS[0]
    lister: ClassVar[Lister] = staticmethod(list_aircraft)


@dataclass(frozen=True)
class DTD(RawDataset):
    """The Describable Textures Dataset: 47 textures, 120 images each."""

    info: ClassVar[SourceInfo] = SourceInfo(
        "dtd",
        "Describable Textures Dataset, https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        "Cimpoi, M., Maji, S., Kokkinos, I., Mohamed, S., and Vedaldi, A. (2014). Describing textures in the wild. "
        "CVPR.",
        "images/CLASS/IMAGE and labels/labels_joint_anno.txt",
    )
    marker: ClassVar[str] = "labels/labels_joint_anno.txt"
    lister: ClassVar[Lister] = staticmethod(list_textures)


@dataclass(frozen=True)
class Fungi(RawDataset):
    """The fungi of FGVCx 2018: 1394 species, of training and validation together; 6 to 368 images each."""

    info: ClassVar[SourceInfo] = SourceInfo(
        "fungi",
        "FGVCx Fungi Classification Challenge 2018, https://github.com/visipedia/fgvcx_fungi_comp",
        "Schroeder, B., and Cui, Y. (2018). FGVCx fungi classification challenge 2018.",
        "images/, train.json and val.json",
    )
    marker: ClassVar[str] = "train.json"
    lister: ClassVar[Lister] = staticmethod(list_fungi)


@dataclass(frozen=True)
class VGGFlower(RawDataset):
    """VGG Flower: 102 flowers, called by their numbers; 40 to 258 images each. scipy reads its labels."""

    info: ClassVar[SourceInfo] = SourceInfo(
        "vgg_flower",
        "102 Category Flower Dataset, https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        "Nilsback, M.-E., and Zisserman, A. (2008). Automated flower classification over a large number of classes. "
        "ICVGIP.",
        "jpg/ and imagelabels.mat",
    )
    marker: ClassVar[str] = "imagelabels.mat"
    lister: ClassVar[Lister] = staticmethod(list_flowers)


@dataclass(frozen=True)
class MSCOCO(RawDataset):
    """MSCOCO 2017: 80 categories of objects, an example being the box of an annotation; for testing in Meta-Dataset.

    Its annotations (half a gigabyte) are read at the beginning of each run.
    """

    info: ClassVar[SourceInfo] = SourceInfo(
        "mscoco",
        "COCO 2017, https://cocodataset.org",
        "Lin, T.-Y., Maire, M., Belongie, S., Hays, J., Perona, P., Ramanan, D., Dollár, P., and Zitnick, C. L. "
        "(2014). Microsoft COCO: common objects in context. ECCV.",
        f"train2017/ and {ANNOTATIONS}",
    )
    marker: ClassVar[str] = ANNOTATIONS
    lister: ClassVar[Lister] = staticmethod(list_coco)


@dataclass(frozen=True)
class TrafficSign(RawDataset):
    """GTSRB: 43 German traffic signs, called by their numbers; for testing in Meta-Dataset (tasks.splits=test).

    Its images are frames of films of a sign, 30 of each film.
    """

    info: ClassVar[SourceInfo] = SourceInfo(
        "traffic_sign",
        "German Traffic Sign Recognition Benchmark, https://benchmark.ini.rub.de",
        "Houben, S., Stallkamp, J., Salmen, J., Schlipsing, M., and Igel, C. (2013). Detection of traffic signs in "
        "real-world images: the German traffic sign detection benchmark. IJCNN.",
        "Final_Training/Images/00000/00000_00000.ppm and so on, as GTSRB_Final_Training_Images.zip unpacks",
    )
    marker: ClassVar[str] = "Final_Training/Images/00000/GT-00000.csv"
    lister: ClassVar[Lister] = staticmethod(list_signs)

    def _format(self) -> ImageFormat:
        return super()._format()._replace(decoder=_pixmap_decoder)


def _pixmap_decoder(size: int, channels: int) -> Callable[..., Images]:
    from tasks.store.decoding import FORMATS, image_decoder

    return image_decoder(size, channels, (*FORMATS, "PPM"))

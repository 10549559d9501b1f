"""Map names to the sources whose tasks are made of classes of examples, which can be mixed."""

from typing import Any

from tasks.sources.awa2 import AwA2
from tasks.sources.cifar_splits import FC100, CifarFS
from tasks.sources.cub import CUB
from tasks.sources.features import Features
from tasks.sources.image_folder import ImageFolder
from tasks.sources.medmnist import MedMNIST
from tasks.sources.meta_dataset import MetaDataset
from tasks.sources.mini_imagenet import MiniImageNet
from tasks.sources.omniglot import Omniglot
from tasks.sources.quick_draw import QuickDraw
from tasks.sources.raw_datasets import DTD, MSCOCO, Aircraft, Fungi, TrafficSign, VGGFlower
from tasks.sources.strokes import Strokes
from tasks.sources.tiered_imagenet import TieredImageNet

CLASS_SOURCES: dict[str, type[Any]] = {
    "aircraft": Aircraft,
    "awa2": AwA2,
    "cifar_fs": CifarFS,
    "cub": CUB,
    "dtd": DTD,
    "fc100": FC100,
    "features": Features,
    "fungi": Fungi,
    "image_folder": ImageFolder,
    "medmnist": MedMNIST,
    "meta_dataset": MetaDataset,
    "mini_imagenet": MiniImageNet,
    "mscoco": MSCOCO,
    "omniglot": Omniglot,
    "quick_draw": QuickDraw,
    "strokes": Strokes,
    "tiered_imagenet": TieredImageNet,
    "traffic_sign": TrafficSign,
    "vgg_flower": VGGFlower,
}

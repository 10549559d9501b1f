"""Networks as pure functions: `Model` applies an `nn.Module` to parameters given as an argument.

Reading order: `protocol.py`, `model.py`, `architectures.py`, `normalization.py`, `dropout.py`, `part.py`; then the
larger networks, `resnet12.py` and `torchvision_classifiers.py`.
"""

from metatrain.models.architectures import ARCHITECTURES, MLP, Conv4, Custom
from metatrain.models.dropout import DropBlock, Dropout, fold
from metatrain.models.model import Model, build_model
from metatrain.models.normalization import TaskNorm
from metatrain.models.part import Part
from metatrain.models.protocol import Architecture
from metatrain.models.resnet12 import ResNet12
from metatrain.models.torchvision_classifiers import Torchvision

__all__ = [
    "ARCHITECTURES",
    "MLP",
    "Architecture",
    "Conv4",
    "Custom",
    "DropBlock",
    "Dropout",
    "Model",
    "Part",
    "ResNet12",
    "TaskNorm",
    "Torchvision",
    "build_model",
    "fold",
]

"""Networks, made pure: `Model` applies an `nn.Module` to parameters that are handed in.

Reading order: `model.py`, `architectures.py`, `normalization.py`, `dropout.py`.
"""

from metatrain.models.architectures import ARCHITECTURES, MLP, Architecture, Conv4, Custom
from metatrain.models.dropout import Dropout
from metatrain.models.model import Model, build_model
from metatrain.models.normalization import TaskNorm

__all__ = ["ARCHITECTURES", "MLP", "Architecture", "Conv4", "Custom", "Dropout", "Model", "TaskNorm", "build_model"]

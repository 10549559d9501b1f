"""Ways of learning to learn, one file each, close to its equations. Start with `maml.py`."""

from typing import Any

from metatrain.algorithms.fomaml import FOMAML
from metatrain.algorithms.maml import MAML
from metatrain.algorithms.protonet import ProtoNet

ALGORITHMS: dict[str, type[Any]] = {
    "maml": MAML,
    "fomaml": FOMAML,
    "protonet": ProtoNet,
}

__all__ = ["ALGORITHMS", "FOMAML", "MAML", "ProtoNet"]

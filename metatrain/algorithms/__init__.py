"""Register meta-learning methods by name; one file each, close to its equations. Start with `maml.py`."""

from typing import Any

from metatrain.algorithms.anil import ANIL
from metatrain.algorithms.baseline_plus_plus import BaselinePlusPlus
from metatrain.algorithms.boil import BOIL
from metatrain.algorithms.fine_tune import FineTune
from metatrain.algorithms.fomaml import FOMAML
from metatrain.algorithms.imaml import IMAML
from metatrain.algorithms.leo import LEO
from metatrain.algorithms.logistic_regression import LogisticRegression
from metatrain.algorithms.maml import MAML
from metatrain.algorithms.maml_plus_plus import MAMLPlusPlus
from metatrain.algorithms.matching import Matching
from metatrain.algorithms.meta_curvature import MetaCurvature
from metatrain.algorithms.meta_lstm import MetaLSTM
from metatrain.algorithms.meta_opt_net import MetaOptNet
from metatrain.algorithms.meta_sgd import MetaSGD
from metatrain.algorithms.nearest_centroid import NearestCentroid
from metatrain.algorithms.protonet import ProtoNet
from metatrain.algorithms.r2d2 import R2D2
from metatrain.algorithms.relation import Relation
from metatrain.algorithms.reptile import Reptile
from metatrain.algorithms.siamese import Siamese
from metatrain.algorithms.simple_shot import SimpleShot

ALGORITHMS: dict[str, type[Any]] = {
    "maml": MAML,
    "fomaml": FOMAML,
    "maml_plus_plus": MAMLPlusPlus,
    "imaml": IMAML,
    "reptile": Reptile,
    "anil": ANIL,
    "boil": BOIL,
    "meta_sgd": MetaSGD,
    "meta_curvature": MetaCurvature,
    "meta_lstm": MetaLSTM,
    "leo": LEO,
    "protonet": ProtoNet,
    "r2d2": R2D2,
    "meta_opt_net": MetaOptNet,
    "matching": Matching,
    "siamese": Siamese,
    "relation": Relation,
    "nearest_centroid": NearestCentroid,
    "simple_shot": SimpleShot,
    "logistic_regression": LogisticRegression,
    "baseline_plus_plus": BaselinePlusPlus,
    "fine_tune": FineTune,
}

__all__ = [
    "ALGORITHMS",
    "ANIL",
    "BOIL",
    "FOMAML",
    "IMAML",
    "LEO",
    "MAML",
    "R2D2",
    "BaselinePlusPlus",
    "FineTune",
    "LogisticRegression",
    "MAMLPlusPlus",
    "Matching",
    "MetaCurvature",
    "MetaLSTM",
    "MetaOptNet",
    "MetaSGD",
    "NearestCentroid",
    "ProtoNet",
    "Relation",
    "Reptile",
    "Siamese",
    "SimpleShot",
]

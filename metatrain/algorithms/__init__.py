"""Register meta-learning methods by name; one file each, close to its equations. Start with `optimization/maml.py`."""

from typing import Any

from metatrain.algorithms.in_context.in_context import InContext
from metatrain.algorithms.in_context.table import InContextTable
from metatrain.algorithms.memory.lstm import LSTMLearner
from metatrain.algorithms.memory.mann import MANN
from metatrain.algorithms.memory.snail import SNAIL
from metatrain.algorithms.metric.described_protonet import DescribedProtoNet
from metatrain.algorithms.metric.matching import Matching
from metatrain.algorithms.metric.meta_opt_net import MetaOptNet
from metatrain.algorithms.metric.protonet import ProtoNet
from metatrain.algorithms.metric.r2d2 import R2D2
from metatrain.algorithms.metric.relation import Relation
from metatrain.algorithms.metric.siamese import Siamese
from metatrain.algorithms.neural_processes.anp import ANP
from metatrain.algorithms.neural_processes.cnp import CNP
from metatrain.algorithms.neural_processes.conv_cnp import ConvCNP
from metatrain.algorithms.neural_processes.np import NP
from metatrain.algorithms.neural_processes.tnp import TNP
from metatrain.algorithms.optimization.anil import ANIL
from metatrain.algorithms.optimization.boil import BOIL
from metatrain.algorithms.optimization.fomaml import FOMAML
from metatrain.algorithms.optimization.imaml import IMAML
from metatrain.algorithms.optimization.leo import LEO
from metatrain.algorithms.optimization.maml import MAML
from metatrain.algorithms.optimization.maml_plus_plus import MAMLPlusPlus
from metatrain.algorithms.optimization.meta_curvature import MetaCurvature
from metatrain.algorithms.optimization.meta_lstm import MetaLSTM
from metatrain.algorithms.optimization.meta_sgd import MetaSGD
from metatrain.algorithms.optimization.reptile import Reptile
from metatrain.algorithms.pretrained.baseline_plus_plus import BaselinePlusPlus
from metatrain.algorithms.pretrained.fine_tune import FineTune
from metatrain.algorithms.pretrained.logistic_regression import LogisticRegression
from metatrain.algorithms.pretrained.nearest_centroid import NearestCentroid
from metatrain.algorithms.pretrained.simple_shot import SimpleShot
from metatrain.algorithms.reinforcement.maml_trpo import MAMLTRPO
from metatrain.algorithms.reinforcement.rl2 import RL2

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
    "described_protonet": DescribedProtoNet,
    "r2d2": R2D2,
    "meta_opt_net": MetaOptNet,
    "matching": Matching,
    "siamese": Siamese,
    "relation": Relation,
    "cnp": CNP,
    "np": NP,
    "anp": ANP,
    "conv_cnp": ConvCNP,
    "tnp": TNP,
    "lstm": LSTMLearner,
    "mann": MANN,
    "snail": SNAIL,
    "in_context": InContext,
    "in_context_table": InContextTable,
    "nearest_centroid": NearestCentroid,
    "simple_shot": SimpleShot,
    "logistic_regression": LogisticRegression,
    "baseline_plus_plus": BaselinePlusPlus,
    "fine_tune": FineTune,
    "maml_trpo": MAMLTRPO,
    "rl2": RL2,
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
    "RL2",
    "BaselinePlusPlus",
    "DescribedProtoNet",
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

"""Share what methods with attention to the support set have in common: how it begins, and what it tells pictures."""

from torch import Tensor

from metatrain.algorithms.metric.comparison import Compares
from metatrain.models import Model
from metatrain.models.transformer import recorded_attention
from metatrain.types import Context, Params
from tasks.types import Tree

GAIN = 3.0
"""The size of first keys and queries, beside that of torch's linear layers."""


def begin_alike(weights: Params) -> Params:
    """Return initial weights in which the keys of each attention are its queries, of `GAIN` times their size.

    Attention then begins as a kernel of its inputs: like examples find each other, and labels have a gradient from the
    first step. Random keys and queries agree only after thousands of steps.
    """
    begun = dict(weights)
    for name, value in weights.items():
        if ".query." in name:
            begun[name] = GAIN * value
            begun[name.replace(".query.", ".key.")] = GAIN * value
    return begun


def last_attention(self: Compares, model: Model, params: Params, adapted: Tree, x: Tree, context: Context) -> Tensor:
    """Return the weights [q, n] of the last `SetAttention` that `predict` applies to `x`, their mean over heads.

    The `attention` of a method whose queries attend to the n support examples; what it has beside them, such as a
    learned token, has further columns.
    """
    with recorded_attention() as found:
        self.predict(model, params, adapted, x, context)
    return found[-1].flatten(0, -3).mean(0)

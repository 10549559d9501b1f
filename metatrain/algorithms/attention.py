"""Tell what queries attend to in the support set, for pictures: the weights of a method's last layer of attention."""

from torch import Tensor

from metatrain.algorithms.metric.comparison import Compares
from metatrain.models import Model
from metatrain.models.transformer import recorded_attention
from metatrain.types import Context, Params
from tasks.types import Tree


def last_attention(self: Compares, model: Model, params: Params, adapted: Tree, x: Tree, context: Context) -> Tensor:
    """Return the weights [q, n] of the last `SetAttention` that `predict` applies to `x`, their mean over heads.

    The `attention` of a method whose queries attend to the n support examples; what it has beside them, such as a
    learned token, has further columns.
    """
    with recorded_attention() as found:
        self.predict(model, params, adapted, x, context)
    return found[-1].flatten(0, -3).mean(0)

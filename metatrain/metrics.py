"""How a prediction is judged: cross-entropy for class labels, squared error for regression. Means over examples."""

from torch import Tensor
from torch.nn import functional as F

from metatrain.types import Prediction


def task_loss(prediction: Prediction, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, metrics) of predictions [n, ...] for targets [n, ...]; labels are integers, regression targets are not."""
    if y.is_floating_point():
        error = F.mse_loss(prediction, y)
        return error, {"loss": error, "mse": error}
    loss = F.cross_entropy(prediction, y)
    accuracy = (prediction.argmax(1) == y).to(prediction.dtype).mean()
    return loss, {"loss": loss, "accuracy": accuracy}

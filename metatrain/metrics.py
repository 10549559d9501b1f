"""Compute the loss and metrics of predictions: cross-entropy and accuracy, or squared error. Means over examples."""

from torch import Tensor
from torch.nn import functional as F

from metatrain.types import Prediction


def task_loss(prediction: Prediction, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (loss, metrics) of predictions [n, ...]; integer targets are labels, float targets values.

    ValueError: the shapes of predictions and values differ, so that one would be repeated over the other.
    """
    if y.is_floating_point():
        if prediction.shape != y.shape:
            found, wanted = tuple(prediction.shape), tuple(y.shape)
            raise ValueError(f"predictions of shape {found} for targets of shape {wanted}: make both [n, *y]")
        error = F.mse_loss(prediction, y)
        return error, {"loss": error, "mse": error}
    loss = F.cross_entropy(prediction, y)
    accuracy = (prediction.argmax(1) == y).to(prediction.dtype).mean()
    return loss, {"loss": loss, "accuracy": accuracy}

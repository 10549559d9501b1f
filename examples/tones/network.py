"""A network of one's own: any `nn.Module` from a batch of examples [B, 1, L] to features [B, D]."""

import torch
from torch import Tensor, nn


class Listener(nn.Module):
    """A bank of filters, their loudness over time, and a perceptron on it: features [B, width].

    Each sound is heard alone, brought to power 1 by its own, so a prediction depends on no other query.
    """

    def __init__(self, filters: int = 48, width: int = 64, kernel: int = 96) -> None:
        super().__init__()
        self.filters = nn.Conv1d(1, filters, kernel, stride=8, bias=False)
        self.hidden = nn.Linear(filters, width)
        self.features = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, 1, L]."""
        x = x * torch.rsqrt(x.square().mean(dim=(1, 2), keepdim=True) + 1e-6)
        power = self.filters(x).square().mean(dim=2)
        features: Tensor = self.features(torch.relu(self.hidden(torch.log(power + 1e-3))))
        return features

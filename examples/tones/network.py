"""Define a custom network: any `nn.Module` from a batch of examples [B, 1, L] to features [B, D]."""

import torch
from torch import Tensor, nn


class Listener(nn.Module):
    """Map sounds to features [B, width]: a filter bank, the log power of each filter over time, and a perceptron.

    Each sound is scaled to power 1 on its own, so that a prediction depends on no other query.
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

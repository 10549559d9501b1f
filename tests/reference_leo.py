"""Compute LEO's scores and penalties naively, for the gradients of `tests/reference.py`: pair by pair, class by class.

Imports nothing of metatrain. Settings are those of the row: two steps of each kind, three latents.
"""

import torch
from torch import Tensor

from tests.reference import log_softmax_loss


def scores(theta: dict[str, Tensor], support: Tensor, y: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of the queries, and the weighted sum of all penalties."""
    codes = [theta["encoder.weight"] @ f for f in support]
    related = [torch.stack([relation(theta, torch.cat([a, b])) for b in codes]).mean(dim=0) for a in codes]
    classes = [torch.stack([r for r, label in zip(related, y, strict=True) if label == n]) for n in y.unique()]
    mean = torch.stack([each.mean(dim=0)[:3] for each in classes])
    log_var = 2 * (torch.stack([each.mean(dim=0)[3:] for each in classes]) + torch.log(torch.tensor(0.1).double()))
    z = mean
    for _ in range(2):
        (slope,) = torch.autograd.grad(log_softmax_loss(support @ head(theta, z).T, y), z, create_graph=True)
        z = z - theta["inner_lr.latent"] * slope
    w = head(theta, z)
    for _ in range(2):
        (slope,) = torch.autograd.grad(log_softmax_loss(support @ w.T, y), w, create_graph=True)
        w = w - theta["inner_lr.classifier"] * slope
    divergence = -0.5 * (1 + log_var - mean**2 - torch.exp(log_var)).mean()
    moved = ((z.detach() - mean) ** 2).mean()
    columns = theta["decoder.weight"].unbind(1)
    off = [
        (a @ b / (a.norm() * b.norm()) - (1 if i == j else 0)) ** 2
        for i, a in enumerate(columns)
        for j, b in enumerate(columns)
    ]
    return query @ w.T, 1e-3 * divergence + 0.1 * moved + 1e-3 * torch.stack(off).mean()


def loss(found: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    return log_softmax_loss(found[0], y) + found[1]


def relation(theta: dict[str, Tensor], x: Tensor) -> Tensor:
    for layer in (0, 2, 4):
        x = theta[f"relation.{layer}.weight"] @ x
        x = x if layer == 4 else x.clamp(min=0)
    return x


def head(theta: dict[str, Tensor], z: Tensor) -> Tensor:
    both = z @ theta["decoder.weight"].T
    return both[:, : both.shape[1] // 2]

"""Compute references for methods that learn how the inner loop moves weights: explicit sums, torch's LSTM cell."""

import math

import torch
from torch import Tensor

from tests.reference import log_softmax_loss, logits


def by_own_rates(theta: dict[str, Tensor], name: str, slope: Tensor) -> Tensor:
    return theta[f"inner_lr.{name}"] * slope


def by_curvature(theta: dict[str, Tensor], name: str, slope: Tensor) -> Tensor:
    own = f"curvature.{name}"
    if slope.dim() == 1:
        return theta[own + ".out"] * slope
    if slope.dim() == 2:
        return torch.einsum("po,qi,oi->pq", theta[own + ".out"], theta[own + ".in"], slope)
    matrices = theta[own + ".out"], theta[own + ".in"], theta[own + ".position"]
    modes = slope.reshape(slope.shape[0], slope.shape[1], -1)
    return torch.einsum("po,qi,rf,oif->pqr", *matrices, modes).reshape(slope.shape)


def meta_lstm(
    params: dict[str, Tensor], tasks, steps: int, blocks: int, stride: int, *, second: bool, inductive: bool
) -> dict[str, Tensor]:
    """Sum over tasks of d/dθ L_Q; each tensor's weights are updated by torch's own LSTM cell, one tensor at a time."""
    theta = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    total = {name: torch.zeros_like(value.detach()) for name, value in theta.items()}
    rule = {name.removeprefix("update_rule."): value for name, value in theta.items() if "update_rule" in name}
    lstm, size = (rule["lstm.weight"][:, :4], rule["lstm.weight"][:, 4:]), rule["lstm.weight"].shape[0] // 4
    for sx, sy, qx, qy in tasks:
        w = {name: value for name, value in theta.items() if name.startswith(("body.", "head."))}
        state = {n: [torch.zeros(v.numel(), s, dtype=v.dtype) for s in (size, size, 1, 1)] for n, v in w.items()}
        for _ in range(steps):
            loss = log_softmax_loss(logits(w, sx, blocks, stride), sy)
            slopes = torch.autograd.grad(loss, list(w.values()), create_graph=second)
            seen = loss if second else loss.detach()
            for (name, value), slope in zip(list(w.items()), slopes, strict=True):
                h, c, f, i = state[name]
                rows = torch.stack([torch.cat([log_and_sign(g), log_and_sign(seen)]) for g in slope.reshape(-1)])
                h, c = torch.lstm_cell(rows, (h, c), *lstm, rule["lstm.bias"], torch.zeros_like(rule["lstm.bias"]))
                column = value.reshape(-1, 1)
                f, i = (
                    torch.cat([h, column, gate], 1) @ rule[f"{kind}_gate.weight"].T + rule[f"{kind}_gate.bias"]
                    for kind, gate in (("forget", f), ("input", i))
                )
                moved = torch.sigmoid(f) * column - torch.sigmoid(i) * slope.reshape(-1, 1)
                w[name], state[name] = moved.reshape(value.shape), [h, c, f, i]
        outer = log_softmax_loss(logits(w, qx, blocks, stride, sx if inductive else None), qy)
        for (name, _), g in zip(theta.items(), torch.autograd.grad(outer, list(theta.values())), strict=True):
            total[name] += g
    return total


def log_and_sign(x: Tensor) -> Tensor:
    if abs(float(x.detach())) >= math.exp(-10):
        return torch.stack([torch.log(torch.abs(x)) / 10, torch.sign(x)])
    return torch.stack([-torch.ones_like(x), math.exp(10) * x])

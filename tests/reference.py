"""Compute reference meta-gradients from torch alone: one task at a time, with the whole graph and double backward.

Imports nothing of metatrain; slow and simple on purpose, since the engine is tested against it.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def conv_net(w: dict[str, Tensor], x: Tensor, blocks: int, stride: int, reference: int | None = None) -> Tensor:
    """Apply convolution, batch normalisation (by the batch or its first rows), ReLU, and pooling or stride."""
    for b in range(blocks):
        x = F.conv2d(x, w[f"body.{b}.0.weight"], w[f"body.{b}.0.bias"], stride=stride, padding=1)
        mean = x[:reference].mean(dim=(0, 2, 3), keepdim=True)
        var = ((x[:reference] - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
        x = (x - mean) / torch.sqrt(var + 1e-5)
        x = x * w[f"body.{b}.1.weight"].reshape(1, -1, 1, 1) + w[f"body.{b}.1.bias"].reshape(1, -1, 1, 1)
        x = torch.clamp(x, min=0)
        if stride == 1:
            x = F.max_pool2d(x, 2)
    return x.flatten(1) if stride == 1 else x.mean(dim=(2, 3))


def logits(w: dict[str, Tensor], x: Tensor, blocks: int, stride: int, reference: Tensor | None = None) -> Tensor:
    if reference is None:
        embedded = conv_net(w, x, blocks, stride)
    else:
        embedded = conv_net(w, torch.cat([reference, x]), blocks, stride, len(reference))[len(reference) :]
    return embedded @ w["head.weight"].T + w["head.bias"]


def log_softmax_loss(scores: Tensor, y: Tensor) -> Tensor:
    return -(scores - scores.logsumexp(dim=1, keepdim=True))[torch.arange(len(y)), y].mean()


def maml(
    params: dict[str, Tensor],
    tasks,
    lr: float,
    steps: int,
    blocks: int,
    stride: int,
    *,
    second: bool,
    inductive: bool,
    adapted: str = "",
    move: Callable[..., Tensor] | None = None,
) -> dict[str, Tensor]:
    """Sum over tasks of d/dθ L_Q(θ − α∇L_S(θ) − …); without `second` the inner gradients count as constants.

    Only what begins with `adapted` moves in the inner loop; `move` gives another step than ∇L_S, times α.
    """
    theta = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    total = {name: torch.zeros_like(value.detach()) for name, value in theta.items()}
    for sx, sy, qx, qy in tasks:
        w = dict(theta)
        moving = [name for name in w if name.startswith(adapted) and name.startswith(("body.", "head."))]
        for _ in range(steps):
            loss = log_softmax_loss(logits(w, sx, blocks, stride), sy)
            slopes = torch.autograd.grad(loss, [w[name] for name in moving], create_graph=second)
            for name, slope in zip(moving, slopes, strict=True):
                w[name] = w[name] - lr * (slope if move is None else move(theta, name, slope))
        outer = log_softmax_loss(logits(w, qx, blocks, stride, sx if inductive else None), qy)
        for (name, _), g in zip(theta.items(), torch.autograd.grad(outer, list(theta.values())), strict=True):
            total[name] += g
    return total


def maml_plus_plus(
    params: dict[str, Tensor],
    tasks,
    lr: float,
    steps: int,
    blocks: int,
    stride: int,
    *,
    inductive: bool,
    share: float,
    second: bool = True,
) -> dict[str, Tensor]:
    """Sum over tasks of d/dθ Σ_t w_t L_Q(φ_t), w_t = `share` before the last step and the rest of 1 after it.

    Rates are rows of "inner_lr.…" where there are such, else `lr`; normalisation does not adapt, and reads rows of
    "step_norm.…" where there are such.
    """
    theta = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    total = {name: torch.zeros_like(value.detach()) for name, value in theta.items()}
    for sx, sy, qx, qy in tasks:
        w = {name: value for name, value in theta.items() if name.startswith(("body.", "head."))}
        moving = [name for name in w if not name.endswith((".1.weight", ".1.bias"))]
        outer = 0.0
        for t in range(steps):
            w |= {name[10:]: table[t] for name, table in theta.items() if name.startswith("step_norm.")}
            loss = log_softmax_loss(logits(w, sx, blocks, stride), sy)
            slopes = torch.autograd.grad(loss, [w[name] for name in moving], create_graph=second)
            for name, slope in zip(moving, slopes, strict=True):
                rates = theta.get(f"inner_lr.{name}")
                w[name] = w[name] - (lr if rates is None else rates[t]) * slope
            weight = share if t < steps - 1 else 1 - share * (steps - 1)
            outer = outer + weight * log_softmax_loss(logits(w, qx, blocks, stride, sx if inductive else None), qy)
        for (name, _), g in zip(
            theta.items(), torch.autograd.grad(outer, list(theta.values()), allow_unused=True), strict=True
        ):
            total[name] += 0 if g is None else g
    return total


def imaml(
    params: dict[str, Tensor],
    tasks,
    lr: float,
    steps: int,
    strength: float,
    damping: float,
    blocks: int,
    stride: int,
    *,
    inductive: bool,
) -> dict[str, Tensor]:
    """Sum over tasks of (I + H/(λ + δ))⁻¹ ∇L_Q(φ), H the dense Hessian of L_S at φ, solved by elimination."""
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    sizes = [value.numel() for value in params.values()]
    theta = torch.cat([value.reshape(-1) for value in params.values()])

    def named(flat: Tensor) -> dict[str, Tensor]:
        parts = zip(params.items(), flat.split(sizes), strict=True)
        return {name: part.view(value.shape) for (name, value), part in parts}

    for sx, sy, qx, qy in tasks:

        def support_loss(flat, sx=sx, sy=sy):
            return log_softmax_loss(logits(named(flat), sx, blocks, stride), sy)

        def query_loss(flat, sx=sx, qx=qx, qy=qy):
            return log_softmax_loss(logits(named(flat), qx, blocks, stride, sx if inductive else None), qy)

        phi = theta.clone()
        for _ in range(steps):
            slope = torch.autograd.functional.jacobian(support_loss, phi)
            phi = phi - lr * (slope + strength * (phi - theta))
        hessian = torch.autograd.functional.hessian(support_loss, phi, vectorize=True)
        slope = torch.autograd.functional.jacobian(query_loss, phi)
        found = torch.linalg.solve(torch.eye(len(phi), dtype=phi.dtype) + hessian / (strength + damping), slope)
        for name, value in named(found).items():
            total[name] += value
    return total


def reptile(
    params: dict[str, Tensor], tasks, lr: float, steps: int, blocks: int, stride: int, *, inductive: bool
) -> dict[str, Tensor]:
    """Sum over tasks of θ − φ, φ after steps of Adam (β1 = 0, TensorFlow's ε) on the whole support set.

    `inductive` changes nothing: no query takes part.
    """
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    for sx, sy, _, _ in tasks:
        w = {name: value.clone().requires_grad_() for name, value in params.items()}
        moments = dict.fromkeys(w, 0.0)
        for t in range(1, steps + 1):
            slopes = torch.autograd.grad(log_softmax_loss(logits(w, sx, blocks, stride), sy), list(w.values()))
            with torch.no_grad():
                for (name, value), g in zip(w.items(), slopes, strict=True):
                    moments[name] = 0.999 * moments[name] + 0.001 * g * g
                    value -= lr * (1 - 0.999**t) ** 0.5 * g / (moments[name] ** 0.5 + 1e-8)
        for name, value in w.items():
            total[name] += params[name] - value.detach()
    return total


def comparison(
    params: dict[str, Tensor],
    tasks,
    scores: Callable[[dict[str, Tensor], Tensor, Tensor, Tensor], Tensor],
    blocks: int,
    stride: int,
    *,
    inductive: bool,
    loss: Callable[[Tensor, Tensor], Tensor] = log_softmax_loss,
) -> dict[str, Tensor]:
    """Sum over tasks of the gradient of the loss of scores(θ, support features, support y, query features) [n, N]."""
    theta = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    total = {name: torch.zeros_like(value.detach()) for name, value in theta.items()}
    for sx, sy, qx, qy in tasks:
        support = conv_net(theta, sx, blocks, stride)
        if inductive:
            query = conv_net(theta, torch.cat([sx, qx]), blocks, stride, len(sx))[len(sx) :]
        else:
            query = conv_net(theta, qx, blocks, stride)
        task_loss = loss(scores(theta, support, sy, query), qy)
        for (name, _), g in zip(theta.items(), torch.autograd.grad(task_loss, list(theta.values())), strict=True):
            total[name] += g
    return total


def nearest_centre(theta: dict[str, Tensor], support: Tensor, y: Tensor, query: Tensor) -> Tensor:
    """Compute −‖f(x) − c_n‖² of the prototypes c_n, pair by pair."""
    centres = torch.stack([support[y == n].mean(dim=0) for n in range(int(y.max()) + 1)])
    return -((query[:, None, :] - centres[None, :, :]) ** 2).sum(dim=2)


def ridge(theta: dict[str, Tensor], support: Tensor, y: Tensor, query: Tensor) -> Tensor:
    """Compute α f(x) W of the ridge regression W onto one-hot labels, by the normal equations of size D × D."""
    penalty = torch.exp(theta["ridge.log_lambda"]) * torch.eye(support.shape[1], dtype=support.dtype)
    weights = torch.linalg.inv(support.T @ support + penalty) @ support.T @ F.one_hot(y).to(support.dtype)
    return theta["ridge.scale"] * (query @ weights)


def classification(
    params: dict[str, Tensor],
    tasks,
    blocks: int,
    stride: int,
    *,
    inductive: bool,
    scale: float | None = None,
    centred: bool = True,
) -> dict[str, Tensor]:
    """Sum over minibatches of the gradient of a classifier's cross-entropy on support and query as one batch.

    scale: of a cosine classifier; None: a linear one. centred: features minus their mean. `inductive` changes nothing:
    a minibatch has its own statistics.
    """
    theta = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    total = {name: torch.zeros_like(value.detach()) for name, value in theta.items()}
    for sx, sy, qx, qy in tasks:
        f, w = conv_net(theta, torch.cat([sx, qx]), blocks, stride), theta["classifier.weight"]
        f = f - f.sum(dim=0) / len(f) if centred else f
        if scale is None:
            scores = f @ w.T + theta["classifier.bias"]
        else:
            scores = scale * (f @ w.T) / (f.pow(2).sum(1).sqrt()[:, None] * w.pow(2).sum(1).sqrt())
        loss = log_softmax_loss(scores, torch.cat([sy, qy]))
        slopes = torch.autograd.grad(loss, list(theta.values()), allow_unused=True)
        for name, slope in zip(theta, slopes, strict=True):
            total[name] += 0 if slope is None else slope
    return total

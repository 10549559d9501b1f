"""Solve the SVM of Crammer & Singer by scipy, and differentiate its optimum by the implicit function theorem.

Imports nothing of metatrain. scipy's general minimiser finds which constraints hold with equality; Newton's method on
the conditions of optimality of all free variables together, one dense system, then gives the optimum and its gradient.
"""

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

C, RIDGE, SMOOTHING = 0.1, 1.0, 0.1


def solve_by_scipy(kernel: np.ndarray, y: np.ndarray, c: float) -> np.ndarray:
    """Return the dual variables [n, N] to about 1e-8: ½ tr AᵀKA − Σ A_{i, y_i}, A ≤ C on own classes, else ≤ 0."""
    n, ways = len(y), int(y.max()) + 1
    own = np.eye(ways)[y]

    def objective(a):
        a = a.reshape(n, ways)
        return 0.5 * np.sum(a * (kernel @ a)) - np.sum(a * own), (kernel @ a - own).ravel()

    rows = {
        "type": "eq",
        "fun": lambda a: a.reshape(n, ways).sum(1),
        "jac": lambda a: np.kron(np.eye(n), np.ones((1, ways))),
    }
    bounds = [(None, c * is_own) for is_own in own.ravel()]
    options = {"ftol": 1e-15, "maxiter": 1000}
    start = np.zeros(n * ways)
    found = minimize(objective, start, jac=True, bounds=bounds, constraints=rows, method="SLSQP", options=options)
    return found.x.reshape(n, ways)


def solve(kernel: Tensor, y: Tensor, c: float) -> Tensor:
    """Return the dual variables as a function of the kernel: constant at their bounds; the others solve a system."""
    n, ways = len(y), int(y.max()) + 1
    own = F.one_hot(y, ways).to(kernel.dtype)
    near = torch.from_numpy(solve_by_scipy(kernel.detach().numpy(), y.numpy(), c))
    free = (c * own - near > 1e-6).flatten().nonzero().flatten()
    bound = (c * own).flatten().index_fill(0, free, 0.0)
    # Variables of example i and class k are at i·N + k: the Hessian is K ⊗ I.
    hessian = torch.kron(kernel, torch.eye(ways, dtype=kernel.dtype))
    sums = torch.kron(torch.eye(n, dtype=kernel.dtype), torch.ones(1, ways, dtype=kernel.dtype))
    system = torch.cat(
        [
            torch.cat([hessian[free][:, free], sums[:, free].T], 1),
            torch.cat([sums[:, free], torch.zeros(n, n, dtype=kernel.dtype)], 1),
        ]
    )
    right = torch.cat([(own.flatten() - hessian @ bound)[free], -sums @ bound])
    return bound.index_add(0, free, torch.linalg.solve(system, right)[: len(free)]).view(n, ways)


def scores(theta: dict[str, Tensor], support: Tensor, y: Tensor, query: Tensor) -> Tensor:
    """Compute γ f(x) Xᵀ A."""
    kernel = support @ support.T + RIDGE * torch.eye(len(y), dtype=support.dtype)
    return theta["svm.scale"] * query @ support.T @ solve(kernel, y, C)


def smoothed_loss(found: Tensor, y: Tensor) -> Tensor:
    """Compute the cross-entropy to 1 − ε at the label and ε / (N − 1) elsewhere."""
    ways = found.shape[1]
    wanted = torch.full_like(found, SMOOTHING / (ways - 1))
    wanted[torch.arange(len(y)), y] = 1 - SMOOTHING
    return -(wanted * (found - found.logsumexp(dim=1, keepdim=True))).sum(dim=1).mean()

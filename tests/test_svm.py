"""Test the SVM's dual against scipy, its optimality conditions and finite differences."""

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from metatrain.algorithms.metric.svm import solve_svm
from tests import reference_svm


def kernel_and_labels(ways: int, shots: int, scale: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Classes that overlap, in 8 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(ways).repeat_interleave(shots)
    centres = torch.rand(ways, 8, generator=generator, dtype=torch.float64)
    x = scale * (centres[y] + torch.rand(len(y), 8, generator=generator, dtype=torch.float64))
    return x @ x.T + torch.eye(len(y), dtype=torch.float64), y


def own(y: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(y).double()


@pytest.mark.parametrize("c", [0.1, 10.0])
@pytest.mark.parametrize(("ways", "shots", "scale"), [(5, 1, 3.0), (3, 4, 1.0), (2, 3, 0.1)])
def test_the_optimum_is_scipys(ways, shots, scale, c):
    kernel, y = kernel_and_labels(ways, shots, scale)
    expected = torch.from_numpy(reference_svm.solve_by_scipy(kernel.numpy(), y.numpy(), c))
    found = solve_svm(kernel, own(y), c)
    assert (found - expected).abs().max() < 1e-6 * max(1.0, c)
    single = solve_svm(kernel.float(), own(y).float(), c)
    assert (single - found).abs().max() < 1e-5 * found.abs().max()


@pytest.mark.parametrize("seed", range(3))
def test_larger_tasks_meet_the_conditions_of_optimality_all_at_once(seed):
    c, (kernel, y) = 1.0, kernel_and_labels(10, 5, 2.0, seed)
    other = kernel_and_labels(10, 5, 0.5, seed + 10)[0]
    both = torch.stack([kernel, other])
    for k, a in zip(both, vmap(lambda k: solve_svm(k, own(y), c))(both), strict=True):
        assert a.sum(1).abs().max() < 1e-12
        assert (a - c * own(y)).max() < 1e-12
        slope = k @ a - own(y)
        free = c * own(y) - a > 1e-9
        nu = -(slope * free).sum(1, keepdim=True) / free.sum(1, keepdim=True)
        assert (slope + nu)[free].abs().max() < 1e-9
        assert (slope + nu)[~free].max() < 1e-9
        assert free.any() and (~free).any()


@pytest.mark.parametrize("c", [0.1, 10.0])
def test_the_gradient_is_that_of_finite_differences(c):
    kernel, y = kernel_and_labels(3, 2, 1.0)
    weights = torch.randn(len(y), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def value(kernel):
        return (weights * solve_svm(kernel, own(y), c)).sum()

    found, eps = torch.func.grad(value)(kernel), 1e-5
    for i in range(len(y)):
        for j in range(i + 1):
            shift = torch.zeros_like(kernel)
            shift[i, j] = shift[j, i] = eps
            difference = (value(kernel + shift) - value(kernel - shift)) / (2 * eps)
            expected = found[i, j] + found[j, i] if i != j else found[i, i]
            assert float(expected) == pytest.approx(float(difference), rel=1e-6, abs=1e-8 * float(found.abs().max()))

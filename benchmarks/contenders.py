"""Compute the exact second-order MAML meta-gradient with metatrain, plain torch, higher, TorchOpt and learn2learn.

    (case, params, tasks) -> a function without arguments that returns {name: Σ_tasks ∂L_Q(φ_K(θ))/∂θ}

L_Q and L_S are means over examples; names are those of `params`. The other libraries process one task after another
and free each graph before the next, which is both the fastest and the most memory-efficient way to use them.
"""

import importlib.util
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from benchmarks import metatrain_contender
from benchmarks.cases import Case, model_of
from metatrain.types import Params
from tasks.types import Episode

Gradient = Callable[[], Params]
Task = tuple[Tensor, Tensor, Tensor, Tensor]
"""Support x and y, query x and y."""


class Net(nn.Module):
    """Plain torch network whose parts have metatrain's names."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x))
        return y


class Mean(nn.Module):
    """Average over pixels: [n, C, H, W] -> [n, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def plain_net(case: Case, params: Params) -> Net:
    """Build the case's network from torch's own layers, with the values and precision of `params`."""
    outputs = case.ways or 1
    if case.model["name"] == "mlp":
        width = case.model["width"]
        body = nn.Sequential(nn.Flatten(), nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        net = Net(body, nn.Linear(width, outputs))
    elif case.model["name"] == "conv4":
        width = case.model["width"]
        blocks = [_block(case.source["channels"] if layer == 0 else width, width) for layer in range(4)]
        net = Net(nn.Sequential(*blocks, Mean()), nn.Linear(width, outputs))
    else:
        # Our module: its TaskNorm is torch's batch_norm, the rest are torch's layers.
        model = model_of(case)
        assert model.head is not None
        net = Net(model.body, model.head)
    like = next(iter(params.values()))
    net.to(like.device, like.dtype)
    # Copy the values: the optimisers of these libraries modify their parameters.
    net.load_state_dict({name.removeprefix("model."): value for name, value in params.items()}, strict=False)
    return net


def naive(case: Case, params: Params, tasks: Episode) -> Gradient:
    """Use torch alone: functional_call and autograd through autograd. In float64 this is the reference."""
    net = plain_net(case, params)
    names = [name.removeprefix("model.") for name in params]

    def gradient() -> Params:
        theta = [value.detach().clone().requires_grad_() for value in params.values()]
        total = [torch.zeros_like(value) for value in theta]
        for sx, sy, qx, qy in _each(tasks):
            fast = theta
            for _ in range(case.inner_steps):
                support = loss(functional_call(net, dict(zip(names, fast, strict=True)), (sx,)), sy)
                slopes = torch.autograd.grad(support, fast, create_graph=True)
                fast = [value - case.inner_lr * slope for value, slope in zip(fast, slopes, strict=True)]
            query = loss(functional_call(net, dict(zip(names, fast, strict=True)), (qx,)), qy)
            for part, slope in zip(total, torch.autograd.grad(query, theta), strict=True):
                part += slope
        return dict(zip(params, total, strict=True))

    return gradient


def naive_vmap(case: Case, params: Params, tasks: Episode) -> Gradient:
    """Use torch alone: torch.func.grad of torch.func.grad, over all tasks at once by torch.func.vmap."""
    net = plain_net(case, params)

    def support_loss(fast: Params, x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(net, fast, (x,)), y)

    def query_loss(theta: Params, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        fast = theta
        for _ in range(case.inner_steps):
            slopes = grad(support_loss)(fast, sx, sy)
            fast = {name: fast[name] - case.inner_lr * slopes[name] for name in fast}
        return support_loss(fast, qx, qy)

    def gradient() -> Params:
        theta = {name.removeprefix("model."): value for name, value in params.items()}
        each = vmap(grad(query_loss), in_dims=(None, 0, 0, 0, 0))(theta, *tasks.support, *tasks.query)
        return {name: each[name.removeprefix("model.")].sum(0) for name in params}

    return gradient


def higher_(case: Case, params: Params, tasks: Episode) -> Gradient:
    """Use higher: a functional copy of the module and a differentiable optimiser for each task."""
    import higher

    net = plain_net(case, params)
    optimiser = torch.optim.SGD(net.parameters(), lr=case.inner_lr)

    def gradient() -> Params:
        net.zero_grad(set_to_none=True)
        for sx, sy, qx, qy in _each(tasks):
            with higher.innerloop_ctx(net, optimiser, copy_initial_weights=False) as (fast, inner):
                for _ in range(case.inner_steps):
                    inner.step(loss(fast(sx), sy))
                loss(fast(qx), qy).backward()
        return _grads(net, params)

    return gradient


def torchopt_(case: Case, params: Params, tasks: Episode) -> Gradient:
    """Use TorchOpt: a differentiable optimiser replaces the module's parameters, which are restored after each task."""
    import torchopt

    net = plain_net(case, params)
    leaves = list(net.parameters())
    inner = torchopt.MetaSGD(net, lr=case.inner_lr)
    net_state = torchopt.extract_state_dict(net, by="reference")
    inner_state = torchopt.extract_state_dict(inner, by="reference")

    def gradient() -> Params:
        for leaf in leaves:
            leaf.grad = None
        for sx, sy, qx, qy in _each(tasks):
            for _ in range(case.inner_steps):
                inner.step(loss(net(sx), sy))
            loss(net(qx), qy).backward()
            torchopt.recover_state_dict(net, net_state)
            torchopt.recover_state_dict(inner, inner_state)
        return _grads(net, params)

    return gradient


def learn2learn_(case: Case, params: Params, tasks: Episode) -> Gradient:
    """Use learn2learn: its MAML wrapper, cloned for each task."""
    from learn2learn.algorithms import MAML

    net = plain_net(case, params)
    maml = MAML(net, lr=case.inner_lr, first_order=False)

    def gradient() -> Params:
        maml.zero_grad(set_to_none=True)
        for sx, sy, qx, qy in _each(tasks):
            learner = maml.clone()
            for _ in range(case.inner_steps):
                learner.adapt(loss(learner(sx), sy))
            loss(learner(qx), qy).backward()
        return _grads(net, params)

    return gradient


CONTENDERS: dict[str, Callable[[Case, Params, Episode], Gradient]] = {
    "metatrain": metatrain_contender.metatrain,
    "metatrain-eager": metatrain_contender.metatrain_eager,
    "naive": naive,
    "naive-vmap": naive_vmap,
    "higher": higher_,
    "torchopt": torchopt_,
    "learn2learn": learn2learn_,
}
OURS = ("metatrain", "metatrain-eager")
TORCH_ALONE = ("naive", "naive-vmap")


def available() -> dict[str, str]:
    """Return contender -> "" if it can be imported, else the reason."""
    return {
        name: "" if name in OURS + TORCH_ALONE or importlib.util.find_spec(name) else "not installed"
        for name in CONTENDERS
    }


def loss(prediction: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared error for numbers, the cross-entropy for labels: means over examples."""
    return F.mse_loss(prediction, y) if y.is_floating_point() else F.cross_entropy(prediction, y)


def _each(tasks: Episode) -> Iterator[Task]:
    """Iterate over the tasks."""
    return zip(*tasks.support, *tasks.query, strict=True)


def _grads(net: Net, params: Params) -> Params:
    """Return the gradients by metatrain's names; zeros for parameters without one."""
    found = {f"model.{name}": parameter.grad for name, parameter in net.named_parameters()}
    return {name: torch.zeros_like(params[name]) if found[name] is None else found[name] for name in params}


def _block(inputs: int, width: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, width, 3, stride=2, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(width, track_running_stats=False), nn.ReLU())

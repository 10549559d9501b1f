"""The exact second-order meta-gradient of MAML, by every library that computes it, each used as its users use it.

    (case, params, tasks) -> a function without arguments that returns {name: Σ_tasks ∂L_Q(φ_K(θ))/∂θ}

L_Q and L_S are means over examples; names are those of `params`. The peers take tasks one after another and let
each one's graph go before the next, which is both the fastest and the smallest way through these libraries.
"""

import importlib.util
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from benchmarks import ours
from benchmarks.cases import Case, model_of
from metatrain.types import Params
from tasks.types import Episode

Gradient = Callable[[], Params]
Task = tuple[Tensor, Tensor, Tensor, Tensor]
"""Support x and y, query x and y."""


class Net(nn.Module):
    """A network as a user of these libraries has it, in parts named as metatrain names them."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x))
        return y


class Mean(nn.Module):
    """[n, C, H, W] -> [n, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def plain_net(case: Case, params: Params) -> Net:
    """The case's network in torch's own layers, with `params`, in their precision."""
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
        # Ours: within it, TaskNorm is torch's batch_norm and the rest torch's layers.
        model = model_of(case)
        assert model.head is not None
        net = Net(model.body, model.head)
    like = next(iter(params.values()))
    net.to(like.device, like.dtype)
    # Copied: the optimisers of these libraries own what they are given.
    net.load_state_dict({name.removeprefix("model."): value for name, value in params.items()}, strict=False)
    return net


def naive(case: Case, params: Params, tasks: Episode) -> Gradient:
    """torch alone: functional_call, and autograd through autograd. In float64 it is the reference."""
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
    """torch alone again: torch.func.grad through torch.func.grad, over all tasks at once by torch.func.vmap."""
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
    """higher: a functional copy of the module and a differentiable copy of its optimiser, for each task."""
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
    """TorchOpt: a differentiable optimiser that replaces the module's parameters, put back after each task."""
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
    """learn2learn: its MAML wrapper, cloned for each task."""
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
    "metatrain": ours.metatrain,
    "metatrain-eager": ours.metatrain_eager,
    "naive": naive,
    "naive-vmap": naive_vmap,
    "higher": higher_,
    "torchopt": torchopt_,
    "learn2learn": learn2learn_,
}
OURS = ("metatrain", "metatrain-eager")
TORCH_ALONE = ("naive", "naive-vmap")


def available() -> dict[str, str]:
    """Contender -> "" where it can be imported, else why not."""
    return {
        name: "" if name in OURS + TORCH_ALONE or importlib.util.find_spec(name) else "not installed"
        for name in CONTENDERS
    }


def loss(prediction: Tensor, y: Tensor) -> Tensor:
    """Mean squared error for numbers, cross-entropy for labels: means over examples."""
    return F.mse_loss(prediction, y) if y.is_floating_point() else F.cross_entropy(prediction, y)


def _each(tasks: Episode) -> Iterator[Task]:
    """The tasks one by one."""
    return zip(*tasks.support, *tasks.query, strict=True)


def _grads(net: Net, params: Params) -> Params:
    """What `backward` left, by our names; parameters that nothing reached have zeros."""
    found = {f"model.{name}": parameter.grad for name, parameter in net.named_parameters()}
    return {name: torch.zeros_like(params[name]) if found[name] is None else found[name] for name in params}


def _block(inputs: int, width: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, width, 3, stride=2, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(width, track_running_stats=False), nn.ReLU())

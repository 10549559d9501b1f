"""Wrap a network and its head as a pure function of parameters."""

import math
import threading
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from metatrain.models.dropout import ADDRESSED, fold
from metatrain.models.memory_format import as_channels_last, runs_channels_last
from metatrain.models.normalization import TaskNorm, reference_statistics
from metatrain.models.probe import describe_mixing, probe
from metatrain.models.protocol import ADDED, NONE, Architecture, Normalization, num_outputs
from metatrain.types import Params
from metatrain.validation import require
from tasks.types import Shape, TaskSpec, Tree

BODY, HEAD = "model.body.", "model.head."

BUILDING = threading.RLock()
"""Held while initial values are drawn: torch's global generator is one for all threads."""


@dataclass(frozen=True)
class Model:
    """A network with explicit parameters: `embed` maps [n, *x] to [n, D], `predict` to [n, ways] logits or [n, *y].

    Parameters are named "model.body.…" and "model.head.…", for methods that treat the two differently. `head` is None
    if the body's outputs are the predictions.

    `normalization` says whether the queries of a task influence each other's predictions ("transductive") or not
    ("inductive"; "none": the network has no statistics of batches). `mixing` names the part that takes in the whole
    batch where no other statistics can be given to it; empty if there is none.

    `feature_shape` is the shape of one example's features before they were flattened: (C, H, W) of a convolutional
    body that ends in `nn.Flatten`, else (D,).

    `channels_last`: convolutions on CPUs get images laid out channels last.
    """

    body: nn.Module
    head: nn.Module | None
    spec: TaskSpec
    normalization: Normalization
    mixing: str = ""
    feature_shape: Shape = ()
    channels_last: bool = False

    @property
    def can_be_inductive(self) -> bool:
        """Return True if the network can normalise queries by statistics of the support set, or has no statistics."""
        return not self.mixing

    @property
    def num_features(self) -> int:
        """Return D, the number of features of an example."""
        return math.prod(self.feature_shape)

    @property
    def norm_names(self) -> list[str]:
        """Return the names of the scales and shifts of the body's `TaskNorm` layers."""
        layers = [name for name, layer in self.body.named_modules() if isinstance(layer, TaskNorm)]
        return [f"{BODY}{name}.{kind}" if name else f"{BODY}{kind}" for name in layers for kind in ("weight", "bias")]

    def with_normalization(self, normalization: Literal["transductive", "inductive"]) -> "Model":
        """Return the same network, normalised in this way; unchanged if it has no statistics of batches.

        ValueError: it cannot be inductive.
        """
        require(
            normalization != "inductive" or self.can_be_inductive,
            f"model: predictions of the module depend on the whole batch ({self.mixing}), so that it cannot be "
            "inductive: set normalization to transductive, or use metatrain.models.TaskNorm in the module",
        )
        return self if self.normalization == "none" else replace(self, normalization=normalization)

    def embed(self, params: Params, x: Tree, noise: Tensor, reference: Tree | None = None) -> Tensor:
        """Embed `x`; an inductive model normalises by the statistics of `reference`, the support inputs."""
        return self._apply(self._body_only, params, x, noise, reference)

    def predict(self, params: Params, x: Tree, noise: Tensor, reference: Tree | None = None) -> Tensor:
        """Return logits or regressed values of `x`; `reference` as in `embed`. Fewer ways: the first outputs."""
        return self._apply(self._with_head, params, x, noise, reference)

    def _apply(self, function, params: Params, x: Tree, noise: Tensor, reference: Tree | None) -> Tensor:  # type: ignore[no-untyped-def]
        if reference is None or self.normalization != "inductive":
            return function(params, x, noise)  # type: ignore[no-any-return]
        rows = len(tree_leaves(reference)[0])
        with reference_statistics(rows):
            both = tree_map(lambda *leaves: torch.cat(leaves), reference, x)
            return function(params, both, noise)[rows:]  # type: ignore[no-any-return]

    def _body_only(self, params: Params, x: Tree, noise: Tensor) -> Tensor:
        given = {name.removeprefix(BODY): value for name, value in params.items() if name.startswith(BODY)}
        if self.channels_last:
            given, x = as_channels_last(given, x)
        for layer, name in enumerate(_noise_buffers(self.body)):
            given[name] = fold(noise, layer)
        return functional_call(self.body, given, (x,))  # type: ignore[no-any-return]

    def _with_head(self, params: Params, x: Tree, noise: Tensor) -> Tensor:
        return self.apply_head(params, self._body_only(params, x, noise))

    def apply_head(self, params: Params, features: Tensor) -> Tensor:
        """Map features [n, D] to predictions [n, ways] or [n, *y]."""
        y = features
        if self.head is not None:
            given = {name.removeprefix(HEAD): value for name, value in params.items() if name.startswith(HEAD)}
            y = functional_call(self.head, given, (y,))
        return y.view(-1, *self.spec.y) if self.spec.ways is None else y[:, : self.spec.ways]

    def initial(self, head: bool = True) -> Params:
        """Return a copy of the parameters as built; without the head for methods that compare embeddings."""
        params = {BODY + name: p.detach().clone() for name, p in self.body.named_parameters()}
        if head and self.head is not None:
            params |= {HEAD + name: p.detach().clone() for name, p in self.head.named_parameters()}
        return params

    def for_tasks(self, spec: TaskSpec, params: Params) -> "Model":
        """Return the same network for tasks with other ways; ValueError: its head has too few outputs."""
        require(spec.x == self.spec.x, f"tasks: examples of shape {spec.x}; the model was built for {self.spec.x}")
        compares = self.head is not None and not any(name.startswith(HEAD) for name in params)
        fits = compares or spec.ways is None or (self.spec.ways is not None and spec.ways <= self.spec.ways)
        require(
            fits,
            f"ways: {spec.ways} classes, and the head was trained for {self.spec.ways}: set fewer (tasks.test.ways), "
            "or train with as many (tasks.train.ways), or train a method without a head, such as protonet",
        )
        return replace(self, spec=spec)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Model":
        """Move the modules in place, as `nn.Module.to` does, for their buffers: parameters are arguments."""
        self.body.to(device, dtype)
        if self.head is not None:
            self.head.to(device, dtype)
        return self


def _noise_buffers(body: nn.Module) -> list[str]:
    return [f"{name}.noise" if name else "noise" for name, m in body.named_modules() if isinstance(m, ADDRESSED)]


def build_model(architecture: Architecture, spec: TaskSpec, seed: int) -> Model:
    """Build the network for tasks of `spec`, initialised by `seed`; its head is added, or its own is detached.

    ValueError, naming the remedy: the module is not a pure function of its parameters and input.
    """
    outputs = num_outputs(spec)
    with BUILDING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = architecture.build(spec).train()
        whole = probe(body, spec)
        head: nn.Module | None = None
        if architecture.head == ADDED:
            head = nn.Linear(whole.shape[1], outputs)
    if architecture.head != ADDED:
        require(
            whole.shape[1] == outputs,
            f"model.head: the module has {whole.shape[1]} outputs, the tasks need {outputs}: set tasks.train.ways",
        )
    mixing = describe_mixing(architecture, body, spec)
    normalization = "transductive" if mixing else _normalization(architecture, body)
    channels_last = runs_channels_last(body, spec)
    if architecture.head not in (ADDED, NONE):
        head, whole = _detach_head(body, architecture.head, spec, whole)
    return Model(body, head, spec, normalization, mixing, _feature_shape(body, spec, whole), channels_last)


def _feature_shape(body: nn.Module, spec: TaskSpec, features: Tensor) -> Shape:
    layers = list(body) if type(body) is nn.Sequential else []
    if len(layers) > 1 and isinstance(layers[-1], nn.Flatten):
        with torch.no_grad():
            features = nn.Sequential(*layers[:-1])(torch.zeros(2, *spec.x))
    return tuple(features.shape[1:])


def _detach_head(body: nn.Module, name: str, spec: TaskSpec, whole: Tensor) -> tuple[nn.Module, Tensor]:
    """Take the submodule `name` out of `body`, whose outputs are features from then on; return it and features."""
    known = [child for child, module in body.named_modules() if child and list(module.parameters())]
    require(name in known, f"model.head: the module has no part '{name}': choose among {', '.join(known[-6:])}")
    owner, _, last = name.rpartition(".")
    head: nn.Module = body.get_submodule(name)
    setattr(body.get_submodule(owner), last, nn.Identity())
    features = whole
    with torch.no_grad():
        try:
            features = probe(body, spec)
            same = torch.equal(head(features), whole)
        except (RuntimeError, ValueError):
            same = False
    require(same, f"model.head: '{name}' is not the last step of the module: name the one that gives its outputs")
    return head, features


def _normalization(architecture: Architecture, body: nn.Module) -> Normalization:
    if not any(isinstance(module, TaskNorm) for module in body.modules()):
        return "none"
    chosen: Normalization = getattr(architecture, "normalization", "transductive")
    return chosen

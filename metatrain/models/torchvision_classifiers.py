"""Use torchvision's classifiers as architectures: `model: {name: torchvision, classifier: resnet18}`.

torchvision is imported on first use: the core does without it.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from metatrain.models.dropout import Dropout
from metatrain.models.layers import Attention, GlobalMean, HardSigmoid
from metatrain.models.normalization import TaskNorm
from metatrain.models.protocol import NONE, num_outputs
from metatrain.validation import require
from tasks.plugins import suggest_name
from tasks.types import Shape, TaskSpec


@dataclass(frozen=True)
class Torchvision:
    """An untrained classifier of torchvision.models, made a pure function of its parameters and input.

    Batch normalisation becomes TaskNorm, with the same initial values; dropout becomes ours, with the same rate;
    stochastic depth is removed; layers without a second derivative are replaced. The last linear layer is the head;
    squeezenet, which ends in a convolution, has no separate head.

    Use images that leave more than one pixel before the head (mostly 64×64 or larger): with one pixel, a channel's
    statistics are those of one value per example, and gradients through so few values explode.
    """

    classifier: str = "resnet18"
    normalization: Literal["transductive", "inductive"] = "transductive"

    def __post_init__(self) -> None:
        known = _torchvision_models().list_models(module=_torchvision_models())
        require(
            self.classifier in known,
            f"model.classifier: no '{self.classifier}'{suggest_name(self.classifier, known)}: choose a "
            "classifier of torchvision.models, such as resnet18, densenet121 or vit_b_16",
        )

    @property
    def head(self) -> str:
        return NONE if self.classifier.startswith("squeezenet") else "head"

    def build(self, spec: TaskSpec) -> nn.Module:
        self._check(spec.x)
        height, width = spec.x[1:]
        try:
            made = _replace_layers(
                _torchvision_models().get_model(self.classifier, weights=None, **self._settings(spec))
            )
            with torch.no_grad():
                made(torch.zeros(2, *spec.x))
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0].rstrip(".!")
            raise ValueError(
                f"model.classifier: {self.classifier} cannot read images of {height}×{width} ({reason}): "
                "use another size, such as 224×224, or set another classifier"
            ) from error
        return made if self.head == NONE else _split_head(made)

    def _check(self, x: Shape) -> None:
        require(len(x) == 3, f"model.name: torchvision reads images [C, H, W]; these tasks have x of {x}: set mlp")
        require(
            x[0] == 3,
            f"model.classifier: {self.classifier} reads colour images [3, H, W]; these tasks have x of {x}: "
            "set model.name to resnet12 or conv4",
        )
        # The padding is normalised too, and |x| has no second derivative at zero: MAML's gradients would be nan.
        require(
            not self.classifier.startswith("swin_v2") or x[1] % 256 == x[2] % 256 == 0,
            f"model.classifier: {self.classifier} pads images of {x[1]}×{x[2]}, and has no second derivative there: "
            "use 256×256, or set swin_t",
        )

    def _settings(self, spec: TaskSpec) -> dict[str, Any]:
        settings: dict[str, Any] = {"num_classes": num_outputs(spec)}
        if self.classifier.startswith("vit"):
            settings["image_size"] = spec.x[1]
        if self.classifier.startswith("maxvit"):
            settings["input_size"] = spec.x[1:]
        if self.classifier in ("googlenet", "inception_v3"):
            # The auxiliary outputs of training would come beside the predictions.
            settings |= {"aux_logits": False, "init_weights": True}
        return settings


def _torchvision_models() -> Any:
    try:
        from torchvision import models
    except ImportError as error:
        raise ValueError(
            "model.name: torchvision is not installed: pip install torchvision, or set resnet12"
        ) from error
    return models


def _replace_layers(module: nn.Module) -> nn.Module:
    """Replace, recursively, layers that keep state, draw from torch's generator or lack a second derivative."""
    from torchvision.ops import StochasticDepth

    for name, child in module.named_children():
        setattr(module, name, _replace_layers(child))
    if isinstance(module, _BatchNorm):
        norm = TaskNorm(module.num_features, module.eps)
        norm.weight, norm.bias = module.weight, module.bias
        return norm
    if isinstance(module, nn.Dropout):
        return Dropout(module.p) if module.p > 0 else nn.Identity()
    if isinstance(module, StochasticDepth):
        return nn.Identity()
    if isinstance(module, nn.MultiheadAttention):
        return Attention(module)
    if isinstance(module, nn.Hardsigmoid):
        return HardSigmoid()
    if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
        return GlobalMean(keepdim=True)
    return module


class Classifier(nn.Sequential):
    """A trunk and its head; `head_name` is what torchvision calls the head, in files of weights too."""

    def __init__(self, parts: "OrderedDict[str, nn.Module]", head_name: str) -> None:
        super().__init__(parts)
        self.head_name = head_name


def _split_head(module: nn.Module) -> nn.Module:
    """Return `module` as a sequence of its trunk and its last linear layer."""
    *_, name = (name for name, part in module.named_modules() if isinstance(part, nn.Linear))
    owner, _, last = name.rpartition(".")
    head = module.get_submodule(name)
    setattr(module.get_submodule(owner), last, nn.Identity())
    return Classifier(OrderedDict(trunk=module, head=head), name)

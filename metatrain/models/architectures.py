"""Register embedding networks by name: settings that build an `nn.Module` from [B, *x] to [B, D]."""

import reprlib
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from metatrain.models.layers import GlobalMean
from metatrain.models.normalization import normalization_layer
from metatrain.models.protocol import ADDED, NormalizationSetting
from metatrain.models.resnet12 import ResNet12
from metatrain.models.torchvision_classifiers import Torchvision
from metatrain.validation import require, require_at_most, require_not_negative, require_positive
from tasks.plugins import USER_CODE_ERRORS, describe_error, import_target
from tasks.types import TaskSpec


@dataclass(frozen=True)
class MLP:
    """A fully connected network: `depth` layers of `width` with `activation`. MAML's regression network is 2 × 40."""

    width: int = 40
    depth: int = 2
    activation: Literal["relu", "tanh"] = "relu"

    def __post_init__(self) -> None:
        require_positive("model", width=self.width, depth=self.depth)
        require_at_most("model", 1000, depth=self.depth)

    @property
    def head(self) -> str:
        return ADDED

    def build(self, spec: TaskSpec) -> nn.Module:
        inputs = 1
        for size in spec.x:
            inputs *= size
        layers: list[nn.Module] = [nn.Flatten()]
        for layer in range(self.depth):
            active = nn.Tanh() if self.activation == "tanh" else nn.ReLU()
            layers += [nn.Linear(inputs if layer == 0 else self.width, self.width), active]
        return nn.Sequential(*layers)


@dataclass(frozen=True)
class Identity:
    """No network: features are the inputs, flattened. For methods that bring networks of their own."""

    @property
    def head(self) -> str:
        return ADDED

    def build(self, spec: TaskSpec) -> nn.Module:
        return nn.Sequential(nn.Flatten())


@dataclass(frozen=True)
class Conv4:
    """Four blocks of 3×3 convolution, normalisation, ReLU and downsampling by 2 (Vinyals et al. 2016).

    `downsample`: "pool" is 2×2 max-pooling, the result flattened; "stride" is a strided convolution, the result
    averaged over positions (Finn et al. 2017, for Omniglot). On 28×28 images both embed in `width` dimensions.

    `normalization`: by the batch's statistics or the support set's, of each image by itself ("group"), or none.
    `halvings`: how many blocks downsample, from the first on; None: all. Relation networks use 2, so that maps of
    7×7 positions are left of 28×28 images.
    """

    width: int = 64
    depth: int = 4
    kernel: int = 3
    downsample: Literal["pool", "stride"] = "pool"
    normalization: NormalizationSetting = "transductive"
    halvings: int | None = None

    def __post_init__(self) -> None:
        require_positive("model", width=self.width, depth=self.depth, kernel=self.kernel)
        require_at_most("model", 1000, depth=self.depth)
        require_not_negative("model", halvings=self.halvings)
        require(self.kernel % 2 == 1, f"model.kernel: {self.kernel} is even: set an odd size, such as 3")
        too_many = f"model.halvings: {self.halvings} is more than the {self.depth} blocks: lower it"
        require(self.halvings is None or self.halvings <= self.depth, too_many)

    @property
    def head(self) -> str:
        return ADDED

    def build(self, spec: TaskSpec) -> nn.Module:
        require(len(spec.x) == 3, f"model.name: conv4 reads images [C, H, W]; these tasks have x of {spec.x}: set mlp")
        pool = self.downsample == "pool"
        halvings = self.depth if self.halvings is None else self.halvings
        smallest = min(spec.x[1:]) >> (halvings if pool else max(halvings - 1, 0))
        named = "depth" if self.halvings is None else "halvings"
        require(smallest >= 1, f"model.{named}: {halvings} halvings leave nothing of {spec.x[1]}×{spec.x[2]}: lower it")
        inputs = [spec.x[0], *[self.width] * (self.depth - 1)]
        blocks = [self._block(channels, layer < halvings) for layer, channels in enumerate(inputs)]
        return nn.Sequential(*blocks, nn.Flatten() if pool else GlobalMean())

    def _block(self, inputs: int, halve: bool) -> nn.Module:
        pool = halve and self.downsample == "pool"
        stride = 2 if halve and not pool else 1
        # Without normalisation the convolution needs the bias that normalisation would add.
        convolution = nn.Conv2d(inputs, self.width, self.kernel, stride=stride, padding=self.kernel // 2)
        layers: list[nn.Module] = [convolution]
        norm = normalization_layer(self.normalization, self.width)
        if norm is not None:
            layers.append(norm)
        layers.append(nn.ReLU())
        if pool:
            layers.append(nn.MaxPool2d(2))
        return nn.Sequential(*layers)


@dataclass(frozen=True)
class Custom:
    """A user's own module: `target` is "package.module:Name", called with `arguments`.

    head: "added" puts a linear head on its outputs; "none" uses them as predictions; else the name of its own head.
    """

    target: str
    arguments: dict[str, Any] = field(default_factory=dict)
    head: str = ADDED

    def build(self, spec: TaskSpec) -> nn.Module:
        target = import_target("model.name", self.target)
        try:
            made = target(**self.arguments)
        except USER_CODE_ERRORS as error:
            given = reprlib.repr(self.arguments)
            reason = f"cannot be made with {given} ({describe_error(error)})"
            raise ValueError(f"model.arguments: '{self.target}' {reason}: fix the arguments or the class") from error
        if not isinstance(made, nn.Module):
            raise ValueError(f"model.name: '{self.target}' made a {type(made).__name__}, not a torch.nn.Module")
        return made


ARCHITECTURES: dict[str, type[Any]] = {
    "identity": Identity,
    "mlp": MLP,
    "conv4": Conv4,
    "resnet12": ResNet12,
    "torchvision": Torchvision,
}

"""ResNet-12, the usual backbone of few-shot learning on miniImageNet and similar images."""

from dataclasses import dataclass

from torch import Tensor, nn

from metatrain.models.dropout import DropBlock, Dropout
from metatrain.models.layers import GlobalMean
from metatrain.models.normalization import normalization_layer
from metatrain.models.protocol import ADDED, NormalizationSetting
from metatrain.validation import require, require_positive
from tasks.types import TaskSpec

SLOPE = 0.1


class Residual(nn.Module):
    """Compute drop(pool(LeakyReLU(path(x) + shortcut(x)))): [n, C, H, W] -> [n, width, H/2, W/2], rounded down."""

    def __init__(self, inputs: int, width: int, normalization: NormalizationSetting, drop: nn.Module) -> None:
        super().__init__()

        def convolution(inputs: int, kernel: int) -> list[nn.Module]:
            # Without normalisation the convolution needs the bias that normalisation would add.
            layer = nn.Conv2d(inputs, width, kernel, padding=kernel // 2, bias=normalization == "none")
            nn.init.kaiming_normal_(layer.weight, SLOPE, mode="fan_out", nonlinearity="leaky_relu")
            norm = normalization_layer(normalization, width)
            return [layer] if norm is None else [layer, norm]

        first, second, third = convolution(inputs, 3), convolution(width, 3), convolution(width, 3)
        self.path = nn.Sequential(*first, nn.LeakyReLU(SLOPE), *second, nn.LeakyReLU(SLOPE), *third)
        self.shortcut = nn.Sequential(*convolution(inputs, 1))
        self.after = nn.Sequential(nn.LeakyReLU(SLOPE), nn.MaxPool2d(2), drop)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.path(x) + self.shortcut(x))
        return y


@dataclass(frozen=True)
class ResNet12:
    """Four residual blocks of three 3×3 convolutions, each halving the image, and a mean over positions.

    As in MetaOptNet (Lee et al. 2019, after Oreshkin et al. 2018): LeakyReLU(0.1), Dropout at `drop` after the first
    two blocks and DropBlock after the last two, at a constant rate (MetaOptNet raises it from zero).
    Embeds in `widths[3]` dimensions. The default has 8.0 million parameters; MetaOptNet's (64, 160, 320, 640) 12.4.
    """

    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    drop: float = 0.1
    drop_block: int = 5
    normalization: NormalizationSetting = "transductive"

    def __post_init__(self) -> None:
        require(len(self.widths) == 4, f"model.widths: {len(self.widths)} numbers for four blocks: set four")
        for width in self.widths:
            require_positive("model", widths=width)
        require(0 <= self.drop < 1, f"model.drop: {self.drop:g} is no probability of dropping: set 0 <= drop < 1")
        require_positive("model", drop_block=self.drop_block)

    @property
    def head(self) -> str:
        return ADDED

    def build(self, spec: TaskSpec) -> nn.Module:
        x = spec.x
        require(len(x) == 3, f"model.name: resnet12 reads images [C, H, W]; these tasks have x of {x}: set mlp")
        require(
            min(x[1:]) >> 4 >= 1,
            f"model.name: resnet12 halves four times, which leaves nothing of {x[1]}×{x[2]}: "
            "use images of 16×16 or more, or set conv4",
        )
        inputs = (x[0], *self.widths)
        blocks = [Residual(inputs[b], self.widths[b], self.normalization, self._drop(b)) for b in range(4)]
        return nn.Sequential(*blocks, GlobalMean())

    def _drop(self, block: int) -> nn.Module:
        if self.drop == 0:
            return nn.Identity()
        return Dropout(self.drop) if block < 2 else DropBlock(self.drop, self.drop_block)

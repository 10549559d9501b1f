"""Neural processes with a deterministic and a latent path (Garnelo et al. 2018; in the form of Kim et al. 2019)."""

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from metatrain.algorithms.neural_processes import latent, networks
from metatrain.models import Model, Part
from metatrain.models.transformer import FeedForward
from metatrain.types import Params
from metatrain.validation import require_positive
from tasks.types import TaskSpec


@dataclass(frozen=True)
class NP:
    """Predict N(μ, σ²) = d(r, z, f(x)), r = mean_i e(f(x_i), y_i) and z ~ q(z | mean_i e'(f(x_i), y_i)).

    All queries of a task share z, drawn `samples` times in tests, when the prediction is the mixture. Trained by the
    evidence lower bound. The weights are parameters "encoder.…", "latent_encoder.…" and "decoder.…".
    """

    width: int = 128
    encoder_depth: int = 4
    decoder_depth: int = 4
    latents: int = 128
    samples: int = 16
    min_std: float = 0.01

    reads_masks = True

    def __post_init__(self) -> None:
        require_positive("algorithm", width=self.width, latents=self.latents, samples=self.samples)
        require_positive("algorithm", encoder_depth=self.encoder_depth, decoder_depth=self.decoder_depth)
        require_positive("algorithm", min_std=self.min_std)

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        networks.require_densities("np", model, spec)
        return model.initial(head=False) | self._encoder(model).initial(seed) | latent.initial(self, model, seed)

    def read_path(self, model: Model, params: Params, features: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        return networks.masked_mean(self._encoder(model)(params, networks.pairs_of(features, y)), mask)

    def follow_path(self, model: Model, params: Params, path: Tensor, features: Tensor) -> Tensor:
        return path.expand(len(features), -1)

    trajectory, predict, meta_gradient = latent.read, latent.predict, latent.meta_gradient

    def _encoder(self, model: Model) -> Part:
        sizes = (model.num_features + model.spec.y[0], self.width, self.width, self.encoder_depth)
        return Part("encoder.", partial(FeedForward, *sizes))

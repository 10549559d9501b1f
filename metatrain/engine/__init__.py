"""Lift per-task functions to batches and differentiate through inner loops.

Reading order: `vectorize.py`, `gradients.py`, `checkpointing.py`, `implicit.py`, `curvature.py`, `compilation.py`,
`convolutions.py`, `auto.py`.
"""

from metatrain.engine.auto import resolve_compile, resolve_vectorize
from metatrain.engine.checkpointing import checkpoint_blocks, checkpointed
from metatrain.engine.compilation import NotCompilable
from metatrain.engine.curvature import gauss_newton_product
from metatrain.engine.gradients import displacement, loss_gradient, most_kept, unrolled_gradient
from metatrain.engine.implicit import ProximalProblem, implicit_gradient
from metatrain.engine.vectorize import Engine

__all__ = [
    "Engine",
    "NotCompilable",
    "ProximalProblem",
    "checkpoint_blocks",
    "checkpointed",
    "displacement",
    "gauss_newton_product",
    "implicit_gradient",
    "loss_gradient",
    "most_kept",
    "resolve_compile",
    "resolve_vectorize",
    "unrolled_gradient",
]

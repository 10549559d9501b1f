"""Serve procedurally drawn characters as a task source, endless and without any files.

A class is a character: two to four pen strokes, cubic Bézier curves that mostly start where an earlier stroke passes.
A member is a drawing of it, by a hand that slants, scales, shifts and trembles and a pen that is broader or finer.
Both are addressed: the character by (seed, split, class), the drawing by (seed, split, class, drawing).

Lengths are in units of half a character; a canvas is 28×28 pixels of ink between 0 and 1.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.few_shot import FewShot
from tasks.random import Integers, Reals, normals, stream, uniforms
from tasks.store.store import Images
from tasks.types import EpisodeShape, Progress, Shape, Split

SIDE = 28
DRAWINGS = 2**20

_STROKES = 4
_POINTS = 32
_UNIT = 9.2
"""Pixels in one unit of length."""
_PEN = 0.56
"""Standard deviation of the pen's ink across its line, in pixels."""
_GAIN = 2.2
"""Flow of ink: high enough that lines saturate; less makes softer edges."""
_WIDEN = 1.7
"""How much the shorter side of a character may be stretched beyond the longer, to fill its square."""
_CHUNK = 512
"""Drawings made at a time: enough that calls of numpy cost little, few enough to need little memory."""
_BLOCK = 64
"""Drawings rendered at a time, so that the Gaussians of their points stay in the processor's cache."""

# Standard deviations from drawing to drawing, at jitter 1.
_TREMBLE = 0.09
_STRAY = 0.07
_TURN = math.radians(13)
_SLANT = 0.2
_STRETCH = 0.14
_SHIFT = 0.15
_BROADEN = 0.15

_T = (np.arange(_POINTS) + 0.5) / _POINTS
_BERNSTEIN = np.stack([(1 - _T) ** 3, 3 * _T * (1 - _T) ** 2, 3 * _T**2 * (1 - _T), _T**3])
_SPEED = np.stack([-((1 - _T) ** 2), (1 - _T) * (1 - 3 * _T), _T * (2 - 3 * _T), _T**2]) * 3
_CURVES = np.concatenate([_BERNSTEIN, _SPEED * (math.sqrt(2) * _GAIN / _POINTS)], axis=1).astype(np.float32)
"""From four control points in units of √2 pens to points of the curve, and to the flow of ink there: [4, 2 points]."""
_WHITE = np.float32(math.log(255))
_ACROSS = np.arange(SIDE) + 0.5 - SIDE / 2
"""Centres of a row of pixels, from the middle of the canvas."""
_PER_CLASS = 1 + 7 * _STROKES
_PER_DRAWING = _STROKES * 10 + 8

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Strokes:
    """Procedurally drawn characters as a task source.

    seed: another seed is another alphabet. classes: how many characters each split has. jitter: how much two drawings
    of a character differ; 1 makes nearest neighbours on pixels a poor guide, 0 makes all drawings equal.
    """

    seed: int = 0
    classes: int = 1_000_000
    jitter: float = 1.0

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ValueError(f"classes: {self.classes} leaves nothing to tell apart: set tasks.classes to 2 or more")
        if not 0 <= self.jitter < math.inf:
            raise ValueError(f"jitter: {self.jitter} is no amount of jitter: set tasks.jitter to 0 or more")

    decodes_ink: ClassVar[bool] = True
    """`decode` reads dark ink on light paper."""

    def prepare(self, progress: Progress) -> str:
        """Return a description; there is nothing to prepare."""
        return f"strokes: {self.classes:,} characters each for train, validation and test, drawn as they are needed"

    def decode(self, content: bytes) -> Images:
        """Decode a user's file of dark ink on light paper to such a canvas: [1, 28, 28] uint8, ink 255."""
        from tasks.store.decoding import drawing_decoder

        return drawing_decoder(SIDE)(content)

    def pool(self, split: Split) -> "StrokePool":
        """Return the characters of one split."""
        return StrokePool(self.seed, self.classes, self.jitter, split)

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> FewShot:
        """Return few-shot episodes over the characters of one split."""
        return FewShot(self.pool(split), episode, seed, split)


@dataclass(frozen=True)
class StrokePool:
    """The characters of one split as a pool of classes; no two splits share an address."""

    seed: int
    num_classes: int
    jitter: float
    split: Split

    name = "strokes"
    example_shape: Shape = (1, SIDE, SIDE)
    min_class_size = DRAWINGS

    def sizes(self, classes: Integers) -> Integers:
        """Return DRAWINGS for every character."""
        return np.full(len(classes), DRAWINGS)

    def examples(self, classes: Integers, members: Integers) -> Tensor:
        """Return drawing members[r] of character classes[r], both [R]: float32 [R, 1, 28, 28].

        Greys are rounded to 8 bits, as in a stored image.
        """
        distinct, which = np.unique(classes, return_inverse=True)
        control, present = sample_characters(uniforms(self.seed, stream("strokes", self.split), distinct, _PER_CLASS))
        images = np.empty((len(classes), *self.example_shape), dtype=np.float32)
        for at in range(0, len(classes), _CHUNK):
            part = slice(at, at + _CHUNK)
            address = classes[part] * DRAWINGS + members[part]
            hand = _clipped_normals(uniforms(self.seed, stream("strokes", self.split, "hand"), address, _PER_DRAWING))
            drawn, pen = redraw(control[which[part]], self.jitter * hand)
            images[part, 0] = render(drawn, present[which[part]], pen)
        return torch.from_numpy(images)

    def denormalize(self, x: Tensor) -> Tensor:
        """Return x: ink is in [0, 1] already."""
        return x

    @property
    def description_shape(self) -> Shape:
        """Return (36,): nine numbers of each of four strokes."""
        return (_STROKES * 9,)

    def descriptions(self, classes: Integers) -> Tensor:
        """Return the strokes of each character, as the pen would be told them [R, 36].

        Of each stroke whether it is there, and its control points in [-1, 1] about: x and y of four, 0 where it is not.
        """
        control, present = sample_characters(uniforms(self.seed, stream("strokes", self.split), classes, _PER_CLASS))
        points = control.reshape(len(classes), _STROKES, 8) * present[:, :, None]
        told = np.concatenate([present[:, :, None], points], axis=2)
        return torch.from_numpy(told.reshape(len(classes), -1).astype(np.float32))

    def class_names(self, classes: Integers) -> list[str]:
        """Return "character NUMBER" for each class."""
        return [f"character {number}" for number in classes]


def sample_characters(numbers: Reals) -> tuple[Reals, Reals]:
    """Return control points [R, strokes, 4, 2] in [-1, 1] and presence [R, strokes]. numbers: [R, 29] in [0, 1).

    A stroke leaves its start p0 along u(θ0) and arrives at p3 along u(θ1): p1 = p0 + a·u(θ0), p2 = p3 - a·u(θ1).
    """
    count, each = numbers[:, 0], numbers[:, 1:].reshape(len(numbers), _STROKES, 7)
    present = np.stack([np.ones_like(count), np.ones_like(count), count > 0.3, count > 0.75], axis=1).astype(np.float64)
    control = np.zeros((len(numbers), _STROKES, 4, 2))
    place_x, place_y, joined, heading, kind, bend, length = np.moveaxis(each, -1, 0)
    # Headings cluster around the eight compass points; a stroke is straight, an arc, or almost a ring.
    theta = (np.floor(heading * 8) + 0.7 * (heading * 8 % 1)) * (math.pi / 4)
    sign = np.where(bend < 0.5, -1.0, 1.0)
    strength = bend * 2 % 1
    ring = kind >= 0.8
    arc = np.where(kind < 0.35, 0.4 * strength, 1.0 + 2.0 * strength)
    turn = np.where(ring, 3.6 + 1.6 * strength, arc) * sign
    reach = np.where(ring, 0.3 + 0.4 * length, 0.7 + 1.0 * length)
    handle = np.where(ring, 1.0 + 0.4 * length, 0.4 * reach)
    directions = _unit_vectors(np.stack([theta, theta + turn, theta + turn / 2]))
    leaving, arriving, across = np.stack([handle, handle, reach])[..., None] * directions
    starts = each[:, :, :2] * 1.6 - 0.8
    earlier = (place_x * np.arange(_STROKES)).astype(np.int64)
    passing = _BERNSTEIN.T[(place_y * _POINTS).astype(np.int64), :, None]
    rows, joins = np.arange(len(numbers)), joined[:, :, None] < 0.6
    for s in range(_STROKES):
        start = starts[:, s]
        if s:
            joint = (control[rows, earlier[:, s]] * passing[:, s]).sum(axis=1)
            start = np.where(joins[:, s], joint, start)
        end = np.add(start, across[:, s], out=control[:, s, 3])
        control[:, s, 0] = start
        np.add(start, leaving[:, s], out=control[:, s, 1])
        np.subtract(end, arriving[:, s], out=control[:, s, 2])
    return _fit_square(control, present), present


def redraw(control: Reals, hand: Reals) -> tuple[Reals, Reals]:
    """Vary characters as another hand would. control: [R, strokes, 4, 2], hand: [R, 48] of mean zero.

    Return control points in pixels [R, strokes, 4, 2] and the width of the pen in pixels [R].
    """
    rows = len(control)
    whole, strays = hand[:, :8], hand[:, 8 : 8 + 2 * _STROKES].reshape(rows, _STROKES, 1, 2)
    trembles = hand[:, 8 + 2 * _STROKES :].reshape(rows, _STROKES, 4, 2)
    x, y = np.moveaxis(control + _STRAY * strays + _TREMBLE * trembles, -1, 0)
    turn, slant, stretch_x, stretch_y, shift_x, shift_y, width = whole.T[:7, :, None, None]
    cos, sin = np.cos(_TURN * turn), np.sin(_TURN * turn)
    x = np.exp(_STRETCH * stretch_x) * (x + _SLANT * slant * y)
    y = np.exp(_STRETCH * stretch_y) * y
    placed = np.stack([cos * x - sin * y + _SHIFT * shift_x, sin * x + cos * y + _SHIFT * shift_y], axis=-1)
    return placed * _UNIT + SIDE / 2, _PEN * np.exp(_BROADEN * width[:, 0, 0])


def render(control: Reals, present: Reals, pen: Reals) -> Floats:
    """Render strokes as ink on a canvas: [R, 28, 28] in [0, 1].

    control: [R, strokes, 4, 2] in pixels, present: [R, strokes], ones before zeros, pen: [R] in pixels. The ink at a
    pixel is 1 - exp(-g/σ ∫ exp(-d(t)² / 2σ²) |B'(t)| dt) over all curves, d being its distance to the pen. The Gaussian
    is separable, so the integral, as a sum over points of the curves, is one matrix product per drawing. Lengths are in
    units of √2 σ, and half the logarithm of a point's flow of ink, g/σ |B'|, is added to the exponent of either factor.

    Drawings with as many strokes are rendered together. The bits of one do not depend on the others: only products of
    its own matrices, whose shape its strokes tell, add numbers up.
    """
    counts = present.sum(axis=1).astype(np.int64)
    order = np.argsort(counts, kind="stable")
    scale = math.sqrt(0.5) / pen[order]
    points, flow = _trace(control[order], scale)
    across = torch.from_numpy((_ACROSS * scale[:, None]).astype(np.float32))[:, None, :, None]
    images = np.empty((len(control), SIDE, SIDE), dtype=np.float32)
    scratch = torch.empty(min(_BLOCK, len(control)) * 2 * SIDE * points.shape[-1])
    for block, count in _blocks(counts[order]):
        width, rows = count * _POINTS, block.stop - block.start
        exponents = scratch[: rows * 2 * SIDE * width].view(rows, 2, SIDE, width)
        # torch is faster than numpy where an operand is repeated, and numpy in powers and small products
        torch.sub(across[block], points[block, ..., :width], out=exponents)
        torch.sub(flow[block, ..., :width], exponents.mul_(exponents), out=exponents)
        gaussians = np.exp(exponents.numpy(), out=exponents.numpy())
        ink = gaussians[:, 1] @ gaussians[:, 0].swapaxes(1, 2)
        paper = np.rint(np.exp(np.subtract(_WHITE, ink, out=ink), out=ink), out=ink)
        images[order[block]] = np.subtract(255, paper, out=ink)
    return np.multiply(images, np.float32(1 / 255), out=images)


def _trace(control: Reals, scale: Reals) -> tuple[Tensor, Tensor]:
    """Return points of the curves, times `scale`, [R, 2, 1, P], and half the logarithm of their ink [R, 1, 1, P]."""
    rows, strokes = control.shape[:2]
    scaled = (control - SIDE / 2) * scale[:, None, None, None]
    scaled = scaled.transpose(0, 3, 1, 2).reshape(rows, 2 * strokes, 4).astype(np.float32)
    curves = (scaled @ _CURVES).reshape(rows, 2, strokes, 2, _POINTS)
    points = curves[:, :, :, 0].reshape(rows, 2, 1, strokes * _POINTS)
    x, y = np.square(curves[:, :, :, 1]).swapaxes(0, 1)
    flow = np.log(np.maximum(x + y, np.float32(1e-30))).reshape(rows, 1, 1, strokes * _POINTS) * np.float32(0.25)
    return torch.from_numpy(points), torch.from_numpy(flow)


def _blocks(counts: Integers) -> Iterator[tuple[slice, int]]:
    """Yield blocks of rows with equal counts, and the count. counts: [R], sorted."""
    starts = np.searchsorted(counts, np.arange(_STROKES + 2)).tolist()
    for count, (start, stop) in enumerate(itertools.pairwise(starts)):
        for at in range(start, stop, _BLOCK):
            yield slice(at, min(at + _BLOCK, stop)), count


def _fit_square(control: Reals, present: Reals) -> Reals:
    """Centre each character and scale it to [-1, 1], widening a narrow one by at most _WIDEN. Shapes as above."""
    points = control.swapaxes(2, 3) @ _BERNSTEIN
    there = present[:, :, None] > 0
    low = np.where(there, points.min(axis=3), math.inf).min(axis=1)[:, None, None, :]
    high = np.where(there, points.max(axis=3), -math.inf).max(axis=1)[:, None, None, :]
    extent = (high - low).max(axis=-1, keepdims=True)
    fitted: Reals = (control - (low + high) / 2) * np.minimum(2 / (high - low), _WIDEN * 2 / extent)
    return fitted


def _unit_vectors(angle: Reals) -> Reals:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _clipped_normals(numbers: Reals) -> Reals:
    """Return standard normals, clipped at 2.5 so that every character stays legible. numbers: pairs of uniforms.

    Angles are rounded to 32 bits: no grey depends on more.
    """
    return np.concatenate(normals(numbers[:, 0::2], numbers[:, 1::2].astype(np.float32)), axis=1).clip(-2.5, 2.5)

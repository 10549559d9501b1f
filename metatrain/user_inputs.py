"""Check what a user gives to a learner: examples, labels and targets. Each mistake is one line with the remedy."""

import math
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from metatrain.validation import require
from tasks.types import Shape, Shapes, TaskSpec, Tree, is_shape

_PAIR = "use a pair of examples and labels, adapt((x, y))"

_ONE_HOT = "use one label for each example, such as y.argmax(1) of one-hot rows"


def split_support(support: Any, *rest: Any) -> tuple[Any, Any]:
    """Return x and y of a support set (x, y), generators as lists. ValueError: it is no such pair."""
    require(not rest, f"support: {1 + len(rest)} arguments: {_PAIR}")
    kind = type(support).__name__
    require(isinstance(support, (tuple, list)), f"support: a {kind}: {_PAIR}")
    require(len(support) == 2, f"support: a {kind} of {len(support)}: {_PAIR}")
    x, y = (list(part) if isinstance(part, Iterator) else part for part in support)
    return x, y


def as_inputs(x: Any, spec: TaskSpec, source: Any = None) -> Tensor:
    """Return x as a float tensor [n, *spec.x], n ≥ 1; add a missing channel of one.

    Where tasks have missing values (`spec.missing`), nan is one, and rows may have fewer features than `spec.x`.
    Images of bytes (uint8) are divided by 255. The settings `mean` and `std` of the run's task source are applied:
    (x − mean) / std. A source that decodes images has them in [0, 1], so that others are refused.
    """
    array = _as_tensor("x", x, f"examples of shape {spec.x}")
    inputs = array.to(torch.get_default_dtype()) / (255 if array.dtype == torch.uint8 and len(spec.x) == 3 else 1)
    require(inputs.dim() == 0 or len(inputs) > 0, "x: holds no examples: use one or more")
    if inputs.dim() > 0 and inputs.shape[1:] == spec.x[1:] and spec.x[:1] == (1,):
        inputs = inputs[:, None]
    if spec.missing and inputs.dim() == 2 and inputs.shape[1] < spec.x[0]:
        inputs = F.pad(inputs, (0, spec.x[0] - inputs.shape[1]), value=math.nan)
    require(inputs.dim() > 0 and tuple(inputs.shape[1:]) == spec.x, _describe_shape(tuple(array.shape), spec.x))
    _require_finite("x", inputs.nan_to_num(nan=0.0) if spec.missing else inputs, "examples")
    if hasattr(source, "decode"):
        _require_unit(float(inputs.min()), float(inputs.max()))
    mean, std = getattr(source, "mean", ()), getattr(source, "std", ())
    if not (mean or std):
        return inputs
    shift, scale = (torch.tensor(v or (d,), dtype=inputs.dtype)[:, None, None] for v, d in ((mean, 0.0), (std, 1.0)))
    return (inputs - shift) / scale


def as_support(x: Any, spec: TaskSpec, source: Any = None) -> Tree:
    """Return the support examples: as `as_inputs`, or tensors of the shapes in `spec.support`, a dict if that is."""
    return as_inputs(x, spec, source) if spec.support is None else _as_tree("x", x, spec.support)


def _as_tree(what: str, given: Any, shapes: Shapes) -> Tree:
    if is_shape(shapes):
        found = _as_tensor(what, given, f"examples of shape {shapes}").to(torch.get_default_dtype())
        fits = found.dim() > 0 and len(found) > 0 and tuple(found.shape[1:]) == shapes
        require(fits, f"{what}: of shape {tuple(found.shape)}: use [n, {', '.join(map(str, shapes))}], n of 1 or more")
        _require_finite(what, found, "examples")
        return found
    named = isinstance(given, Mapping) and given.keys() == shapes.keys()
    require(named, f"{what}: a {type(given).__name__}: use a dict with the keys {', '.join(map(str, shapes))}")
    parts = {name: _as_tree(f"{what}[{name!r}]", given[name], shape) for name, shape in shapes.items()}
    counts = {len(leaf) for leaf in tree_leaves(parts)}
    require(len(counts) == 1, f"{what}: parts of {sorted(counts)} examples: use as many of each")
    return parts


def count_of(x: Tree) -> int:
    """Return the number of examples in a tensor, or in the tensors of a tree."""
    return len(tree_leaves(x)[0])


def as_labels(y: Any, count: int) -> list[Any]:
    """Return `count` labels as plain values. ValueError: they are not one hashable label for each example."""
    remedy = "use a sequence with one label for each example"
    unordered = isinstance(y, (str, bytes, Mapping, AbstractSet))
    require(isinstance(y, Iterable) and not unordered, f"labels: a {type(y).__name__}: {remedy}")
    shape = tuple(getattr(y, "shape", (count,)))
    remedy = "use y[:, 0]" if shape[1:] == (1,) else _ONE_HOT
    require(len(shape) == 1, f"labels: of shape {shape} for {count} examples: {remedy}")
    labels = [_as_label(number, label) for number, label in enumerate(y)]
    require(len(labels) == count, f"support: {count} examples and {len(labels)} labels: use one label for each")
    distinct = len(set(labels))
    require(distinct > 1, f"labels: all {count} are equal, which leaves nothing to tell apart: use two or more classes")
    return labels


def as_targets(y: Any, count: int, spec: TaskSpec) -> Tensor:
    """Return regressed values as a float tensor [count, *spec.y]; dimensions of one may be missing or added."""
    wanted = (count, *spec.y)
    if isinstance(y, (str, bytes, Mapping, AbstractSet)):
        raise ValueError(f"targets: a {type(y).__name__}: use numbers of shape {wanted}")
    given = _as_tensor("targets", y, f"numbers of shape {wanted}").to(torch.get_default_dtype())
    require(
        given.dim() > 0 and len(given) == count,
        f"support: {count} examples and targets of shape {tuple(given.shape)}: use targets of shape {wanted}",
    )
    fits = [size for size in given.shape[1:] if size != 1] == [size for size in spec.y if size != 1]
    require(fits, f"targets: of shape {tuple(given.shape)}, and this learner was trained on {wanted}: reshape them")
    _require_finite("targets", given, "targets")
    return given.reshape(wanted)


def _as_tensor(name: str, given: Any, wanted: str) -> Tensor:
    """Return numbers as a tensor of their own type. ValueError: they are no real numbers, or of unequal shapes."""
    try:
        # A copy: torch takes neither negative strides nor, without a warning, memory that is read-only.
        array = given.detach().cpu().to_dense() if isinstance(given, Tensor) else torch.from_numpy(_as_array(given))
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name}: no array of numbers ({reason}): use {wanted}") from error
    require(not array.is_complex(), f"{name}: complex numbers: use {wanted}, real numbers alone")
    return array


def _as_array(given: Any) -> Any:
    if isinstance(given, (Mapping, AbstractSet)):
        raise TypeError(f"a {type(given).__name__}")
    given = list(given) if isinstance(given, Iterator) else given
    if isinstance(given, (list, tuple)):
        given = [part.detach().cpu() if isinstance(part, Tensor) else part for part in given]
    if np.ma.is_masked(given):
        raise TypeError("some of its values are masked")
    array = np.array(given, order="C")
    if array.dtype == np.longdouble or not array.dtype.isnative:
        array = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"its values are {'text' if array.dtype.kind in 'SU' else f'of type {array.dtype}'}")
    return array


def _as_label(number: int, label: Any) -> Any:
    if isinstance(label, (Tensor, np.ndarray)) and label.ndim > 0:
        raise ValueError(f"labels: the one at {number} is an array of shape {tuple(label.shape)}: {_ONE_HOT}")
    require(label is not np.ma.masked, f"labels: the one at {number} is masked: fix or remove that example")
    plain = label.item() if isinstance(label, (Tensor, np.ndarray, np.generic)) else label
    try:
        hash(plain)
    except TypeError as error:
        kind = type(plain).__name__
        remedy = _ONE_HOT if isinstance(plain, list) else "use numbers or strings"
        raise ValueError(f"labels: the one at {number} is a {kind}, which cannot be compared: {remedy}") from error
    require(not _equals_nothing(plain), f"labels: the one at {number} is missing ({plain}): fix or remove that example")
    return plain


def _equals_nothing(label: Any) -> bool:
    """Return whether a label is nan or its like: each such would be a class of its own."""
    try:
        return bool(label != label)
    except TypeError:  # pandas' NA
        return True


def _require_finite(name: str, values: Tensor, what: str) -> None:
    finite = bool(torch.isfinite(values).all())
    require(finite, f"{name}: holds values that are not finite: fix or remove those {what}")


def _require_unit(low: float, high: float) -> None:
    remedy = "use uint8, or divide them by 255" if high <= 255 else "scale them to [0, 1]"
    remedy = "undo what they were normalised by" if low < 0 else remedy
    fits = low >= -0.5 and high <= 1.5  # filters overshoot a little
    require(fits, f"x: images from {low:.4g} to {high:.4g}; this learner reads bytes or numbers in [0, 1]: {remedy}")


def _describe_shape(found: Shape, wanted: Shape) -> str:
    trained = f"this learner was trained on {wanted}"
    if found == wanted or (wanted[0] == 1 and found == wanted[1:]):
        return f"x: one example of shape {found}, without the dimension of examples; {trained}: use x[None]"
    if len(wanted) == 3 and found[1:] == (*wanted[1:], wanted[0]):
        return f"x: examples of shape {found[1:]}, channels last; {trained}: move the channels first"
    return f"x: examples of shape {found[1:]}; {trained}: reshape or resize them"

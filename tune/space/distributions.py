"""Define what values one parameter may have: real numbers, integers, or one of several options.

Each distribution maps u in [0, 1) to its values by its quantile function, so that one address of the counter-based
generator gives one value, and steps in u are steps on the distribution's own scale:

    uniform  x = a + u (b - a)         loguniform  x = a (b / a)^u
    int      x = a + ⌊u (b - a + 1)⌋   logint      x = round(e^y), y uniform on [ln(a - ½), ln(b + ½)]
    choice   x = options[⌊u n⌋]
"""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import yaml

from metatrain.validation import require

Value = Any
"""Any YAML value: a number, a word, true, null, a list, or a section such as {name: conv4}."""

_STEP = 0.2
"""Standard deviation of a mutation's step, as a share of the range."""
_LARGEST = 2**53
"""Bound of the integers that u, a float, can tell apart."""


class Distribution(Protocol):
    """The values of one parameter, and how they are drawn."""

    def value_at(self, u: float) -> Value:
        """Return the value at the quantile u in [0, 1)."""

    def quantile(self, value: Value) -> float:
        """Return the middle of the quantiles in [0, 1] that give this value."""

    def contains(self, value: Value) -> bool:
        """Return whether it is one of the values."""

    def mutate(self, value: Value, u: float, v: float) -> Value:
        """Return another value, near by if there is a scale; u, v: two uniform numbers."""

    def perturb(self, value: Value, factor: float) -> Value:
        """Return value · factor, kept within bounds (Jaderberg et al. 2017); of options the next or the previous."""


@dataclass(frozen=True)
class Real:
    """The real numbers of [low, high], uniform or uniform in their logarithm."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        bounds = (self.low, self.high)
        require(all(map(_is_number, bounds)), f"{self.low!r} to {self.high!r} are not two numbers: give low and high")
        _check_range(self.low, self.high, self.log)

    def value_at(self, u: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        # A weighted mean does not overflow even if high - low does.
        x = (1 - u) * low + u * high
        return min(max(math.exp(x) if self.log else x, float(self.low)), float(self.high))

    def contains(self, value: Value) -> bool:
        return _is_number(value) and self.low <= value <= self.high

    def mutate(self, value: float, u: float, v: float) -> float:
        return self.value_at(_step_quantile(self.quantile(value), u, v))

    def perturb(self, value: float, factor: float) -> float:
        return min(max(value * factor, float(self.low)), float(self.high))

    def __str__(self) -> str:
        return f"{'loguniform' if self.log else 'uniform'}{_format_arguments(self.low, self.high)}"

    def quantile(self, value: float) -> float:
        low, high, x = self.low, self.high, value
        if self.log:
            low, high, x = math.log(low), math.log(high), math.log(x)
        return (x / 2 - low / 2) / (high / 2 - low / 2)


@dataclass(frozen=True)
class Integer:
    """The integers low, low + 1, …, high."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        whole = _is_integer(self.low) and _is_integer(self.high)
        require(whole, f"{self.low!r} to {self.high!r} are not two integers: give low and high, or use uniform")
        _check_range(self.low, self.high, self.log)
        small = max(abs(self.low), abs(self.high)) < _LARGEST
        require(small, f"{self.low} to {self.high} goes beyond 2^53: lower the bounds")

    def value_at(self, u: float) -> int:
        if self.log:
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            return min(max(round(math.exp(low + u * (high - low))), self.low), self.high)
        return min(self.low + int(u * (self.high - self.low + 1)), self.high)

    def contains(self, value: Value) -> bool:
        return _is_integer(value) and self.low <= value <= self.high

    def mutate(self, value: int, u: float, v: float) -> int:
        found = self.value_at(_step_quantile(self.quantile(value), u, v))
        if found != value:
            return found
        up = (u < 0.5 or value == self.low) and value < self.high
        return value + (1 if up else -1)

    def perturb(self, value: int, factor: float) -> int:
        """At least one up or down, so that a small one is not stuck."""
        product = value * factor
        moved = math.ceil(product) if product > value else math.floor(product) if product < value else value
        return min(max(moved, self.low), self.high)

    def __str__(self) -> str:
        return f"{'logint' if self.log else 'int'}{_format_arguments(self.low, self.high)}"

    def quantile(self, value: int) -> float:
        if self.log:
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            return (math.log(value) - low) / (high - low)
        return (value - self.low + 0.5) / (self.high - self.low + 1)


@dataclass(frozen=True)
class Categorical:
    """One of several options, which may be whole sections: `{name: conv4}`."""

    options: tuple[Value, ...]

    def __post_init__(self) -> None:
        require(len(self.options) > 0, "a choice of nothing: give options, such as choice(a, b)")
        only = f"one option, {self.options[0]!r}, leaves no choice: set it in the configuration, or give another"
        require(len(self.options) > 1, only)
        for number, option in enumerate(self.options):
            require(_is_plain(option), f"{option!r} is no plain value: give a number, a word, a list or a section")
            twice = any(is_same(option, other) for other in self.options[:number])
            require(not twice, f"{option!r} stands twice: give each option once")

    def value_at(self, u: float) -> Value:
        return copy.deepcopy(self.options[min(int(u * len(self.options)), len(self.options) - 1)])

    def contains(self, value: Value) -> bool:
        return any(is_same(value, option) for option in self.options)

    def index(self, value: Value) -> int:
        """Return the index of an option. ValueError: it is none of the options."""
        for number, option in enumerate(self.options):
            if is_same(value, option):
                return number
        raise ValueError(f"{value!r} is none of the options {list(self.options)}: give one of them")

    def quantile(self, value: Value) -> float:
        return (self.index(value) + 0.5) / len(self.options)

    def mutate(self, value: Value, u: float, v: float) -> Value:
        """Return any other option with equal probability: options have no order."""
        here = self.index(value)
        others = [option for number, option in enumerate(self.options) if number != here]
        return copy.deepcopy(others[min(int(u * len(others)), len(others) - 1)])

    def perturb(self, value: Value, factor: float) -> Value:
        there = self.index(value) + (1 if factor > 1 else -1)
        return copy.deepcopy(self.options[min(max(there, 0), len(self.options) - 1)])

    def __str__(self) -> str:
        return f"choice{_format_arguments(*self.options)}"


DISTRIBUTIONS: dict[str, Callable[..., Distribution]] = {
    "uniform": lambda low, high: Real(low, high),
    "loguniform": lambda low, high: Real(low, high, log=True),
    "int": lambda low, high: Integer(low, high),
    "logint": lambda low, high: Integer(low, high, log=True),
    "choice": lambda *options: Categorical(options),
}
"""The functions that a space is written with, by name."""


def is_same(left: Value, right: Value) -> bool:
    """Return whether two values are equal and of one type: 1, 1.0 and true are three options."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(is_same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(is_same, left, right))
    return type(left) is type(right) and bool(left == right)


def _format_arguments(*values: Value) -> str:
    """Format the arguments of a function, (1, {name: conv4}): a YAML list with other brackets."""
    text = yaml.safe_dump(list(values), default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False)
    return f"({text.strip()[1:-1]})"


def _is_plain(value: Value) -> bool:
    """Return whether the value survives JSON, in which the journal keeps it."""
    try:
        return is_same(json.loads(json.dumps(value, allow_nan=False)), value)
    except (TypeError, ValueError):
        return False


def _is_integer(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Value) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _check_range(low: float, high: float, log: bool) -> None:
    require(low < high, f"{low!r} to {high!r} is empty: give the lower bound first, and a higher one")
    require(not log or low > 0, f"{low!r} has no logarithm: begin above zero, or use uniform or int")


def _step_quantile(quantile: float, u: float, v: float) -> float:
    """Compute quantile + _STEP · n, n standard normal from u, v (Box and Muller 1958), reflected at 0 and at 1."""
    normal = math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v)
    folded = math.fmod(abs(quantile + _STEP * normal), 2)
    return 2 - folded if folded > 1 else folded

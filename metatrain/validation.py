"""Check values of settings; each failure is one line that names the field and the remedy."""

import math

MAX_COUNT = 2**31 - 1
"""The largest count a setting may have: no run could store or finish more."""


def require(holds: bool, message: str) -> None:
    """Raise ValueError(message) unless `holds`. For user input; `assert` is for our own invariants."""
    if not holds:
        raise ValueError(message)


def require_positive(section: str, **values: float | int | None) -> None:
    """Check that every value is finite and above zero, and an int at most MAX_COUNT; None (not set) passes."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{_path(section, name)}: {format_number(value)} is not a positive number: set it above 0")
        require_at_most(section, MAX_COUNT, **{name: value if isinstance(value, int) else None})


def require_not_negative(section: str, **values: float | int | None) -> None:
    """Check that every value is finite and at least zero; None (not set) passes."""
    for name, value in values.items():
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(
                f"{_path(section, name)}: {format_number(value)} is below zero or not a number: set 0 or more"
            )


def require_at_most(section: str, most: int, **values: int | None) -> None:
    """Check that no value is above `most`; None (not set) passes."""
    for name, value in values.items():
        if value is not None and value > most:
            raise ValueError(f"{_path(section, name)}: {format_number(value)} is too much: lower it to {most} or less")


def format_number(value: float | int) -> str:
    """Format a number for a message; very long integers are described instead."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if abs(value) < 10**20 else "a number of more than 20 digits"


def _path(section: str, name: str) -> str:
    """Join section and name; a nested section passes "" and its reader adds the prefix."""
    return f"{section}.{name}" if section else name


def require_divisor(width: int, heads: int) -> None:
    """Check that attention of `width` can be split into `heads`. ValueError: it cannot."""
    require(width % heads == 0, f"algorithm.heads: {width} is no multiple of {heads}: set a divisor of algorithm.width")

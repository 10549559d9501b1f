"""Checks on settings: each failure is one line that names the field and the remedy."""

import math


def require(holds: bool, message: str) -> None:
    """Raise ValueError(message) unless `holds`. For what a user gave; `assert` is for our own invariants."""
    if not holds:
        raise ValueError(message)


def positive(section: str, **values: float | int | None) -> None:
    """Every value is a finite number above zero; None, where a setting is optional, passes."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{_path(section, name)}: {value:g} is not a positive number: set it above 0")


def not_negative(section: str, **values: float | int | None) -> None:
    """Every value is a finite number, zero or above; None passes."""
    for name, value in values.items():
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{_path(section, name)}: {value:g} is below zero or not a number: set 0 or more")


def _path(section: str, name: str) -> str:
    """A section that does not know where it stands is named by who reads it."""
    return f"{section}.{name}" if section else name

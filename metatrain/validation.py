"""Checks on settings: each failure is one line that names the field and the remedy."""

import math

MAX_COUNT = 2**31 - 1
"""No setting counts further: what is counted could not be kept, nor waited for."""


def require(holds: bool, message: str) -> None:
    """Raise ValueError(message) unless `holds`. For what a user gave; `assert` is for our own invariants."""
    if not holds:
        raise ValueError(message)


def require_positive(section: str, **values: float | int | None) -> None:
    """Check that every value is finite and above zero, and an int at most MAX_COUNT; None (not set) passes."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{_path(section, name)}: {format_number(value)} is not a positive number: set it above 0")
        require_at_most(section, MAX_COUNT, **{name: value if isinstance(value, int) else None})


def require_not_negative(section: str, **values: float | int | None) -> None:
    """Every value is a finite number, zero or above; None passes."""
    for name, value in values.items():
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(
                f"{_path(section, name)}: {format_number(value)} is below zero or not a number: set 0 or more"
            )


def require_at_most(section: str, most: int, **values: int | None) -> None:
    """No value is above `most`; None passes."""
    for name, value in values.items():
        if value is not None and value > most:
            raise ValueError(f"{_path(section, name)}: {format_number(value)} is too much: lower it to {most} or less")


def format_number(value: float | int) -> str:
    """A number as a person writes it, however long it is."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if abs(value) < 10**20 else "a number of more than 20 digits"


def _path(section: str, name: str) -> str:
    """A section that does not know where it stands is named by who reads it."""
    return f"{section}.{name}" if section else name

"""Parse files of JSON lines that a crash may have cut short, or that another process still writes."""

from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from tasks.io.json_documents import parse_json

LONGEST = 16 * 2**20
"""Bytes of the longest line."""


def parse_json_lines(
    lines: Iterable[bytes], where: str, remedy: str, is_valid: Callable[[dict[str, Any]], bool] = lambda _: True
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each line with its object, except a torn last one: without its newline, or no valid JSON object.

    lines: with their newlines, such as an open binary file. Raise ValueError, with `where` and `remedy`, for a line
    that is no valid object and has others after it.
    """
    torn: int | None = None
    for number, line in enumerate(lines, 1):
        if len(line) > LONGEST:
            raise ValueError(f"{where}, line {number}: longer than {LONGEST / 2**20:g} MiB: {remedy}")
        if not line.endswith(b"\n"):
            return
        if torn is not None:
            raise ValueError(f"{where}, line {torn}: not a JSON object: {remedy}")
        try:
            value = parse_json(line, where, remedy)
        except ValueError:
            value = None
        if isinstance(value, dict) and is_valid(value):
            yield line, value
        else:
            torn = number


def bounded_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file; of one longer than `LONGEST`, a part that `parse_json_lines` refuses."""
    return iter(lambda: file.readline(LONGEST + 1), b"")

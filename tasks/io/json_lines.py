"""Parse files of JSON lines that a crash may have cut short, or that another process still writes."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def parse_json_lines(
    lines: Iterable[bytes], where: str, remedy: str, is_valid: Callable[[dict[str, Any]], bool] = lambda _: True
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each line with its object, except a torn last one: without its newline, or no valid JSON object.

    lines: with their newlines, such as an open binary file. Raise ValueError, with `where` and `remedy`, for a line
    that is no valid object and has others after it.
    """
    torn: int | None = None
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            return
        if torn is not None:
            raise ValueError(f"{where}, line {torn}: not a JSON object: {remedy}")
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict) and is_valid(value):
            yield line, value
        else:
            torn = number

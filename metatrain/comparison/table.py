"""Format a comparison for a terminal: one table of the runs, a line for each pair, the groups."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metatrain.report import comparison_text as text


def format_comparison(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a comparison (see `summary`)."""
    yield text.introduction(found)
    yield from align(text.columns(found), text.rows(found))
    if by_source := text.source_table(found):
        yield text.SOURCES_CAPTION
        yield from align(by_source[0], by_source[1:])
    if found["pairs"]:
        yield text.PAIRS_CAPTION
        yield from align(text.PAIR_COLUMNS, text.pair_rows(found))
    yield from text.notes(found)


def align(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the heading and the rows, each column as wide as its widest cell; the first to the left, others right."""
    plain = [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*plain, strict=True)]
    for row in plain:
        first, *others = (
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([first, *others]).rstrip()

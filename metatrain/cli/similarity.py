"""Implement `metatrain data similarity`."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from metatrain.report.plots import save_png
from metatrain.report.similarity_figure import draw_similarity
from metatrain.runs import write_json
from metatrain.similarity.measure import Request, measure_similarity
from metatrain.tracking.console import progress_bar
from metatrain.validation import require

NAME = "similarity"


def similarity_command(request: Request, out: Path, as_json: bool) -> None:
    """Print how far sources of tasks are apart, and write all of it as JSON, and as a PNG, to the folder `out`."""
    began = time.monotonic()
    require(out.is_dir() or out.parent.is_dir(), f"--out: there is no folder '{out.parent}': make it, or use another")
    require(not out.exists() or out.is_dir(), f"--out: '{out}' is no folder: name one")
    with progress_bar("embedding tasks") as progress:
        found = measure_similarity(request, progress, partial(print, file=sys.stderr, flush=True))
    found |= {"seconds": round(time.monotonic() - began, 3)}
    for line in format_similarity(found):
        print(line)
    if as_json:
        print(json.dumps({key: value for key, value in found.items() if key not in ("map", "task_distances")}))
    # Printed first: what follows can fail, of a full disk for example.
    out.mkdir(exist_ok=True)
    write_json(out / f"{NAME}.json", found)
    save_png(draw_similarity(found), out / f"{NAME}.png")
    for suffix in ("json", "png"):
        print(out / f"{NAME}.{suffix}", file=sys.stderr if as_json else sys.stdout)


def format_similarity(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each source and each pair of them, the nearest first; and one for what accuracy is lost."""
    names = {one["name"]: "" for one in found["sources"]}
    width = max([*map(len, names), *(len(_both(one)) for one in found["pairs"])])
    for one in found["sources"]:
        within, trivial = _format(one["within"]), _format(one["from_trivial"])
        yield f"{one['name']:<{width}}  within {within}, from the trivial embedding {trivial}"
    for one in sorted(found["pairs"], key=lambda pair: float(pair["distance"]["value"])):
        yield f"{_both(one):<{width}}  apart  {_format(one['distance'])}, beyond within {_format(one['excess'])}"
    if found["transfer"] is not None:
        points = len(found["transfer"]["points"])
        rho = _format(found["transfer"]["spearman"])
        yield f"rank correlation of distance and lost accuracy  {rho}  ({points} results on other sources)"


def _both(pair: Mapping[str, Any]) -> str:
    return f"{pair['first']} and {pair['second']}"


def _format(interval: Mapping[str, float | None]) -> str:
    """Format a value with its 95 % interval: 0.123 (0.101 to 0.145)."""
    value, low, high = (interval[key] for key in ("value", "low", "high"))
    if value is None:
        return "n/a"
    return f"{value:.3f} (n/a)" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"

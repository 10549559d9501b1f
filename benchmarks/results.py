"""Store benchmark results: a JSON file per part, and one page with the tables and plots of all parts.

    results.write("episodes", "Episodes a second", ["source", "1/s"], [["strokes", 1234.5]], ["note"], {})

A part is {"part", "title", "columns", "rows", "notes", "date", "machine", "versions", "extra"}. `extra` holds data
that are not in the table; under "plots" it may hold plots: {"file", "title", "x", "y", "log_x", "log_y", "series"},
series being name -> [[x, y], ...] or [[x, y, low, high], ...].
"""

import json
import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.io.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ORDER = (
    *(
        "race",
        "race-checks",
        "breakdown",
        "memory",
        "large-checkpointing",
        "large-prediction",
        "long",
        "precision",
        "episodes",
        "workers",
        "workers-time",
    ),
    *("driver", "driver-recording", "driver-model", "scale", "scale-check", "scale-costs", "all_reduce"),
    *("growth-steps", "growth-long-run", "growth-runs", "growth-trials", "growth-search", "growth-images"),
)
"""Order of parts on the page; other parts follow."""
PACKAGES = ("torch", "ray", "numpy", "higher", "torchopt", "learn2learn")
INK, GRID = "#2b2f36", "#e6e8ec"
COLOURS = ("#123a7a", "#5d8fd6", "#d9822b", "#4f9d69", "#a0527a", "#8a94a6")
MARKERS = ("o", "s", "^", "D", "v", "P")


def folder() -> Path:
    """Return the folder of results: next to this file, or BENCHMARK_RESULTS for measurements that are not kept."""
    return Path(os.environ.get("BENCHMARK_RESULTS", Path(__file__).parent / "results"))


def write(
    part: str, title: str, columns: list[str], rows: list[list[Any]], notes: list[str], extra: dict[str, Any]
) -> None:
    """Write a part with machine, date and versions, and render the page. ValueError: a row has a wrong length."""
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"{part}: a row of {len(row)} under {len(columns)} columns: {row}")
    found = {"part": part, "title": title, "columns": columns, "rows": rows, "notes": notes, "extra": extra}
    found |= {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "machine": machine(), "versions": versions()}
    _replace(folder() / f"{part}.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    render()


def read(part: str) -> dict[str, Any]:
    """Read a part. FileNotFoundError: it has not been written."""
    found: dict[str, Any] = json.loads((folder() / f"{part}.json").read_text())
    return found


def parts() -> list[str]:
    """Return the names of the parts that exist, in the order of the page."""
    there = {path.stem for path in folder().glob("*.json")}
    return [part for part in ORDER if part in there] + sorted(there - set(ORDER))


def machine() -> dict[str, Any]:
    """Describe this machine: CPU model, its vector instructions, logical cores, memory in GiB, GPU or "none"."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    vectors = torch.backends.cpu.get_cpu_capability()
    return {
        "cpu": _cpu_model(),
        "vectors": vectors,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "gpu": gpu,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and the relevant packages; "absent" for packages that are not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def render() -> None:
    """Write README.md and the plots from every part."""
    sections = [
        "# Benchmarks",
        "Written by `python -m benchmarks`. The docstring of each module describes the measurement.",
    ]
    for part in parts():
        found = read(part)
        sections += [f"## {found['title']}", _table(found["columns"], found["rows"])]
        if found["notes"]:
            sections.append("\n".join(f"- {note}" for note in found["notes"]))
        for plot in found["extra"].get("plots", []):
            _draw(plot, folder() / plot["file"])
            sections.append(f"![{plot['title']}]({plot['file']})")
        sections.append(_provenance(found))
    _replace(folder() / "README.md", "\n\n".join(sections) + "\n")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _provenance(found: dict[str, Any]) -> str:
    on, used = found["machine"], found["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in used.items())
    vectors = f" with {on['vectors']}" if "vectors" in on else ""  # which parts written before do not name
    where = f"{on['cpu']}{vectors}, {on['cores']} logical cores, {on['memory_gib']} GiB, GPU: {on['gpu']}"
    return f"_{found['date']}; {where}; {packages}._"


def _table(columns: list[str], rows: list[list[Any]]) -> str:
    numeric = [any(isinstance(row[c], (int, float)) for row in rows) for c in range(len(columns))]
    lines = [columns, ["---:" if right else "---" for right in numeric]]
    lines += [[_cell(value) for value in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    """Format a cell: numbers with three significant digits, a bar escaped because it would end the cell."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _draw(plot: dict[str, Any], out: Path) -> None:
    """Draw lines with a marker per point, and a bar from the lowest to the highest value if given."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), dpi=144, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(1, 1, 1)
    _style(axes, plot)
    for number, (name, points) in enumerate(plot["series"].items()):
        x, y = [point[0] for point in points], [point[1] for point in points]
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.8, label=name)
        ranged = [point for point in points if len(point) == 4]
        axes.vlines([p[0] for p in ranged], [p[2] for p in ranged], [p[3] for p in ranged], color=colour, linewidth=1)
    figure.legend(frameon=False, fontsize=9, labelcolor=INK, loc="outside right upper")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, format="png", metadata={"Description": plot["title"]})


def _style(axes: "Axes", plot: dict[str, Any]) -> None:
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    axes.set_title(plot["title"], loc="left", fontsize=10, color=INK)
    axes.set_xlabel(plot["x"], color=INK)
    axes.set_ylabel(plot["y"], color=INK)
    for axis, log in ((axes.xaxis, plot.get("log_x")), (axes.yaxis, plot.get("log_y"))):
        if log:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            axis.set_minor_formatter(NullFormatter())
    ticks = sorted({point[0] for points in plot["series"].values() for point in points})
    if plot.get("log_x") and len(ticks) <= 8:
        axes.set_xticks(ticks)
        axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=INK, length=0, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)


def _replace(path: Path, text: str) -> None:
    """Write a file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text)

"""Draw charts with matplotlib, once, and write them as PNG files for MLflow or as inline SVG for HTML pages.

Figures are made as objects, never through pyplot, so that nothing is shared with the caller's own plots; matplotlib is
imported when the first one is drawn.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup

from metatrain.report.text import cut, format_interval
from tasks.io.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

COLOURS = {
    "paper": "#ffffff",
    "ink": "#1d2129",
    "soft": "#515a68",
    "line": "#d8dce3",
    "c0": "#6b7686",
    "c1": "#1f5fbf",
    "c2": "#b34700",
    "c3": "#1a7f37",
    "c4": "#7a3fb0",
    "c5": "#b8236b",
    "c6": "#0b7285",
    "c7": "#6b6400",
}
"""The light colours of style.css by their names there: a page's SVG refers to the names, and so follows its scheme."""
INK, GREY, BLUE, ORANGE = (COLOURS[name] for name in ("ink", "c0", "c1", "c2"))
DASHES = ("-", (0, (7, 3)), (0, (2, 3)), (0, (8, 3, 2, 3)), (0, (14, 4)), (0, (5, 2, 1, 2, 1, 2)))
MARKERS = "Dos^"
MARKED = 40
"""A curve with no more points than this has a marker on each."""
LABEL_LENGTH = 44
"""Characters of a legend's entry; longer ones are cut."""
ENTRY, CHARACTER = 0.6, 0.078
"""Inches that a legend's entry takes, and each of its characters beside."""


class Chart(NamedTuple):
    """A figure with its title, and in words what it shows."""

    title: str
    description: str
    figure: "Figure"


class Panel(NamedTuple):
    """What one set of axes shows: how to draw it, the unit of its values in words, its size in inches.

    description: what it shows in words, where its curves do not say it.
    """

    title: str
    draw: Callable[["Axes"], None]
    unit: str = ""
    size: tuple[float, float] = (5.2, 3.6)
    description: str = ""


def draw_panels(panels: Sequence[Panel]) -> Chart:
    """Draw the panels side by side; none of them: a figure that says so."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    widths, heights = zip(*(panel.size for panel in panels or [Panel("", lambda axes: None)]), strict=True)
    figure = Figure(figsize=(sum(widths), max(heights)), dpi=144, layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    descriptions = []
    for number, panel in enumerate(panels, start=1):
        axes = _plain_axes(figure, number, len(panels))
        panel.draw(axes)
        if len(panels) > 1:
            axes.set_title(shorten(panel.title), loc="left", fontsize=10, color=INK)
        descriptions.append(panel.description or _describe(panel.title, axes, panel.unit))
    _add_legend(figure)
    if not panels:
        figure.text(0.5, 0.5, "nothing recorded yet", ha="center", va="center", color=GREY)
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return Chart("; ".join(panel.title for panel in panels), " ".join(descriptions), figure)


def draw_each(panels: Sequence[Panel]) -> list[Chart]:
    """Draw each panel as a chart of its own."""
    return [draw_panels([panel]) for panel in panels]


def draw_curve(
    axes: "Axes", x: Sequence[float], y: Sequence[float], label: str, look: int, margin: Sequence[float] = ()
) -> "Line2D":
    """Draw a line through the points, with `margin`, half the width of its 95 % interval, as a band where it is known.

    look: 0 is grey and solid; others differ by colour, dash and marker.
    """
    dash = 0 if look == 0 else (look - 1) % len(DASHES)
    style: dict[str, Any] = {"marker": MARKERS[look % 4], "markersize": 4.5} if len(x) <= MARKED else {}
    (line,) = axes.plot(x, y, color=colour(look), linestyle=DASHES[dash], linewidth=1.8, label=shorten(label), **style)
    if margin:
        low, high = ([at + sign * half for at, half in zip(y, margin, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=colour(look), alpha=0.15, linewidth=0, label="95 % interval")
    return line


def draw_points(
    axes: "Axes", x: Sequence[float], y: Sequence[float], label: str, look: int, line: str = "none"
) -> None:
    """Draw a marker at each point, whole at the edge too, with a `line` of that style through them."""
    style: dict[str, Any] = {"marker": MARKERS[look % 4], "markersize": 5 if look else 4, "color": colour(look)}
    axes.plot(x, y, label=shorten(label), linestyle=line, clip_on=False, zorder=3, **style)


def colour(look: int) -> str:
    """Return the colour of a look: grey for 0, for others one of seven."""
    return COLOURS[f"c{0 if look == 0 else 1 + (look - 1) % 7}"]


def set_log(axis: "Axis", values: Sequence[float]) -> None:
    """Make an axis that shows `values` logarithmic, marked by plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.axes.set(**{f"{'x' if axis is axis.axes.xaxis else 'y'}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1.0,) if max(values) > 100 * min(values) else (1.0, 2.0, 5.0), numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def set_whole(axis: "Axis") -> None:
    """Mark an axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def shorten(label: str, length: int = LABEL_LENGTH) -> str:
    """Cut a label to what fits beside others. matplotlib hides labels that begin with an underscore: one is put after
    a space.
    """
    short = cut(label, length)
    return f" {short}" if short.startswith("_") else short


def save_png(chart: Chart, path: Path) -> None:
    """Write the chart with its title as a PNG file, which is complete once it has its name.

    Where each of several panels has a title of its own, that is all.
    """
    if chart.figure.axes and not any(axes.get_title("left") for axes in chart.figure.axes):
        title = chart.figure.axes[0].set_title(chart.title, loc="left", fontsize=10, color=INK)
        title.set_parse_math(False)
    with atomic_write(path) as temporary, _boxes_for_missing_glyphs():
        chart.figure.savefig(temporary, format="png", facecolor="white", metadata={"Description": chart.description})


@contextmanager
def _boxes_for_missing_glyphs() -> Iterator[None]:
    """Draw letters that the font lacks (in names of classes and runs) as boxes, without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def to_svg(chart: Chart, prefix: str) -> Markup:
    """Return the chart as an <svg> element to put into a page, the same for the same chart and prefix.

    prefix: another one for each chart of a page, since the element's identifiers are made from it. Colours are the
    page's own; the title is not part of it.
    """
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}), _boxes_for_missing_glyphs():
        chart.figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = out.getvalue()
    inside = re.sub(r"<style.*?</style>|</svg>", "", svg[svg.index(">", svg.index("<svg")) + 1 :], flags=re.DOTALL)
    width, height = (72 * inches for inches in chart.figure.get_size_inches())
    size = f'width="{width:g}pt" viewBox="0 0 {width:g} {height:g}"'
    opening = f'<svg {size} role="img" aria-label="{escape(chart.description)}">'
    # Text has its "<" and ">" escaped: what stands between them is a tag.
    return Markup(opening + re.sub(r"<[^>]*>", lambda tag: _simplify_tag(tag[0]), inside) + "</svg>")


def _simplify_tag(tag: str) -> str:
    """Leave fonts to the page, name its colours, and drop the identifiers of groups, which all charts share."""
    tag = re.sub(r'(?<=<g) id="[^"]*"', "", tag)
    tag = re.sub(r'font-family: [^;"]*; ?', "", tag)
    for name, value in COLOURS.items():
        tag = tag.replace(f": {value}", f": var(--{name})")
    return re.sub(r"\s+", " ", tag)


def _describe(title: str, axes: "Axes", unit: str) -> str:
    """Say where each curve with a label begins and ends."""
    parts = []
    for line in axes.lines:
        x_values, y_values = (np.asarray(values, dtype=float).tolist() for values in line.get_data())
        points = [(x, y) for x, y in zip(x_values, y_values, strict=True) if math.isfinite(y)]
        if points and not str(line.get_label()).startswith("_"):
            (first, before), (last, after) = points[0], points[-1]
            values = " to ".join(format_interval(value, math.nan, unit) for value in (before, after))
            kind = f"{len(points)} points, the first and the last" if line.get_linestyle() == "None" else "from"
            parts.append(f"{line.get_label()}: {kind} {values}, {axes.get_xlabel()} {first:g} to {last:g}")
    name = axes.get_ylabel() if title == axes.get_xlabel() else title
    return f"{name} by {axes.get_xlabel()}. {'; '.join(parts)}."


def _plain_axes(figure: "Figure", number: int, of: int) -> "Axes":
    """Add the axes number 1 … `of` of a row, with a faint grid and nothing above or to the right."""
    axes = figure.add_subplot(1, of, number, facecolor="none")
    axes.grid(color=COLOURS["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=COLOURS["soft"], length=0, labelsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(COLOURS["soft"])
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(COLOURS["line"])
    return axes


def _add_legend(figure: "Figure") -> None:
    """Name the curves of all axes below them, where they hide nothing; equal names once."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if entries:
        width = ENTRY + CHARACTER * max(map(len, entries))
        columns = max(1, min(3, int(figure.get_figwidth() / width)))
        style = {"frameon": False, "fontsize": 9, "labelcolor": INK, "ncols": columns}
        figure.legend(list(entries.values()), list(entries), loc="outside lower center", **style)

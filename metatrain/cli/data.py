"""Run `metatrain data`: prepare tasks, and draw one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metatrain.cli.notes import show_notes
from metatrain.config.load import read_config
from metatrain.report.episode_figure import draw_episode
from metatrain.report.plots import save_png
from metatrain.tracking.console import progress_bar
from metatrain.validation import require
from metatrain.yaml_config import apply_overrides
from tasks.types import SPLITS, Episode, EpisodeShape, is_shape


def prepare_command(name: str, overrides: list[str]) -> None:
    """Decode what is slow to read, with a progress bar, and print where the store lies."""
    source = _source(name, overrides)
    with progress_bar(f"preparing {name}") as progress:
        line = source.prepare(progress)
    print(line)
    data = getattr(source, "data", None)
    show_notes(data() if data is not None else None)


def show_command(
    name: str, overrides: list[str], split: str, index: int, shape: tuple[int, int, int], out: Path
) -> None:
    """Draw task `index` of a split as a PNG. shape: ways, shots and queries."""
    require(split in SPLITS, f"--split: no '{split}': choose {', '.join(SPLITS)}")
    require(0 <= index < 2**63, f"--index: {index} is no task's: use 0 or more, below 2^63")
    require(out.suffix.lower() == ".png", f"--out: '{out}' is no PNG: use a name that ends in .png")
    require(out.parent.is_dir(), f"--out: there is no folder '{out.parent}': make it, or write to another")
    distribution = _source(name, overrides).distribution(split, EpisodeShape(*shape), 0)
    spec = distribution.spec
    pictured = spec.support is None and is_shape(spec.x) and len(spec.x) == 3 and spec.x[0] in (1, 3)
    require(pictured, f"NAME: the examples of {name} are no images: `data show` draws images [1 or 3, H, W] alone")
    batch = distribution.episodes([index])
    episode = Episode(*(type(part)(*(tensor[0] for tensor in part)) for part in batch))
    names = getattr(distribution, "class_names", None)
    save_png(draw_episode(episode, f"{name}, {split} task {index}", names(index) if names else None), out)
    print(out)


def _source(name: str, overrides: Sequence[str]) -> Any:
    raw = {"tasks": {"name": name}, "model": {"name": "mlp"}, "algorithm": {"name": "protonet"}}
    return read_config(apply_overrides(raw, [f"tasks.{o.removeprefix('tasks.')}" for o in overrides])).tasks.source

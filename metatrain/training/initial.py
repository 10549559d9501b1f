"""Keep the parameters that a run begins with where they come from a file or another run (initial/ in its folder).

A resume and an evaluation take them from there: what they came from is read once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from metatrain.runs import checkpoints
from metatrain.runs.run import Run
from metatrain.training.snapshots import require_snapshot
from metatrain.types import Params

FOLDER = "initial"


class Initial(NamedTuple):
    """Parameters to begin with in place of random ones, and a line for people about each source of them."""

    params: Params
    notes: Sequence[str]


def save_initial(initial: Initial | None, home: Run) -> None:
    """Keep `initial` in the folder of a new run; None: its parameters are random."""
    if initial is None:
        return
    extra = {"notes": list(initial.notes), "params_sha256": checkpoints.params_sha256(initial.params)}
    checkpoints.save(home.path / FOLDER, 0, {"params": initial.params}, extra)


def load_initial(home: Run) -> Initial | None:
    """Return what the run began with; None where nothing is kept. ValueError: it is damaged."""
    folder = home.path / FOLDER
    if not folder.is_dir():
        return None
    found: Any = checkpoints.load(folder, 0).get("params")
    plain = isinstance(found, dict) and all(isinstance(value, Tensor) for value in found.values())
    require_snapshot(plain, 0, f"{FOLDER}/ holds no parameters")
    notes = checkpoints.manifest(folder, 0)["extra"].get("notes", [])
    return Initial(found, [str(note) for note in notes] if isinstance(notes, list) else [])

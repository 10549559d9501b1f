"""Implement `metatrain data embed`."""

import json
import shlex
import sys
from pathlib import Path

from cluster.executors import open_executor
from metatrain.cli.notes import show_notes
from metatrain.config.dry_run import dry_run
from metatrain.config.load import as_plain, load_config
from metatrain.config.run_data import data_of
from metatrain.config.shipped import find_config
from metatrain.embedding import SUFFIX, write_embeddings
from metatrain.setup import prepare
from metatrain.tracking.console import progress_bar
from metatrain.training.devices import driver_device
from metatrain.trust import require_chosen_places
from metatrain.validation import require
from metatrain.yaml_config import flatten


def embed_command(path: str, overrides: list[str], out: Path, per_class: int | None, trust: bool = False) -> None:
    """Write the features that a configuration's network gives each example of its tasks, and print how to use them."""
    require(out.suffix.lower() == SUFFIX, f"--out: '{out}' is no Parquet file: use a name that ends in {SUFFIX}")
    require(out.parent.is_dir(), f"--out: there is no folder '{out.parent}': make it, or write to another")
    require(not out.exists(), f"--out: '{out}' is there already: remove it, or write to another file")
    require(per_class is None or per_class > 0, f"--per-class: {per_class} is no number of examples: set 1 or more")
    config = load_config(path, overrides, trust)
    require_chosen_places(find_config(path), flatten(as_plain(config)), overrides, trust)
    prepare(config)
    show_notes(data_of(config))
    worker = dry_run(config, driver_device(config))
    for note in worker.given.notes if worker.given is not None else ["the network is not trained: set model.weights"]:
        print(note, file=sys.stderr)
    with open_executor(worker) as executor, progress_bar("embedding") as progress:
        written = write_embeddings(worker, executor, out, progress, per_class)
    print(f"{out}: {written}")
    tasks = f"tasks={{name: features, root: {json.dumps(str(out))}, split: split}}"
    print("use them:", shlex.join(["metatrain", "train", "CONFIG", tasks, "model={name: mlp}"]))

"""Run `metatrain compare`."""

import json
import sys
import time
from functools import partial
from pathlib import Path

from cluster.executors import one_cluster
from metatrain.cli.interruptible import interruptible
from metatrain.comparison.candidates import open_candidates
from metatrain.comparison.compare import compare
from metatrain.comparison.scoring import Setting
from metatrain.comparison.table import format_comparison
from metatrain.setup import prepare
from tasks.types import Split


def compare_command(
    run_dirs: list[str],
    overrides: list[str],
    also: list[str],
    split: Split,
    out: Path | None,
    as_json: bool,
    trust: bool = False,
) -> None:
    """Score the runs at `run_dirs` on the same tasks, print a table and the differences, and write a page."""
    from metatrain.report import comparison_page  # jinja2

    began = time.monotonic()
    candidates = open_candidates(run_dirs, trust)
    say = partial(print, file=sys.stderr, flush=True)
    with interruptible("compare again") as watched, one_cluster() as open_executor:
        setting = Setting(open_executor, prepare, watched.recorder, watched.stop)
        found = compare(setting, candidates, overrides, also, say, trust, split)
    found |= {"seconds": round(time.monotonic() - began, 3)}
    for line in format_comparison(found):
        print(line, flush=True)
    if as_json:
        print(json.dumps(found), flush=True)
    # Printed first: what follows can fail, of a full disk for example.
    page = comparison_page.write(found, out)
    print(page, file=sys.stderr if as_json else sys.stdout)

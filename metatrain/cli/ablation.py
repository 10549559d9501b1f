"""Run `metatrain ablate`: train the base and its changes as a search, then compare them."""

import json
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import typer

from cluster.executors import one_cluster
from metatrain.cli.interruptible import interruptible
from metatrain.comparison.scoring import Setting
from metatrain.comparison.table import align
from metatrain.config.dry_run import dry_run
from metatrain.config.load import as_plain, load_config
from metatrain.errors import RunFailed
from metatrain.runs import Run, replace_text
from metatrain.setup import check_mlflow, prepare
from metatrain.signals import graceful_shutdown
from metatrain.trust import require_chosen_places
from metatrain.validation import require
from metatrain.yaml_config import flatten, parse_yaml
from tasks.types import Split

if TYPE_CHECKING:
    from tune.config.search_config import SearchConfig


def ablate_command(
    file: str | None,
    axes: list[str],
    settings: list[str],
    seeds: str | None,
    grid: bool,
    resume: str | None,
    take_over: bool,
    split: Split,
    out: Path | None,
    as_json: bool,
    trust: bool = False,
) -> None:
    """Train what is left of an ablation, score its runs on the same tasks, print the table and write the page."""
    require(not take_over or resume is not None, "--take-over: works only with --resume: remove it")
    if resume is None:
        home, config = None, _plan(file, axes, settings, seeds, grid, trust)
    else:
        given = [file, *axes, seeds, *(["--grid"] if grid else [])]
        known = [one for one in given if one]
        require(not known, f"{''.join(known[:1])}: cannot change in an ablation that is resumed: remove it")
        home, config = _reopen(resume, settings, trust)
    home = _train(config, home, take_over)
    found = _compare(home, config, split, trust)
    _show(found, home, out, as_json)


def _plan(
    file: str | None, axes: list[str], settings: list[str], seeds: str | None, grid: bool, trust: bool
) -> "SearchConfig":
    from tune.ablation.plan import plan_ablation, read_axes

    require(file is not None, "CONFIG: missing: name a YAML file or one of `metatrain config list`, or --resume FOLDER")
    assert file is not None, "required above"
    base = load_config(file, settings, trust)
    require_chosen_places(Path(file), flatten(as_plain(base)), settings, trust)
    named = any(one.startswith(("runs.name=", "runs=")) for one in settings)
    base = base if named else replace(base, runs=replace(base.runs, name=f"{base.runs.name}-ablation"[:100]))
    return plan_ablation(base, read_axes(axes, base), _read_seeds(seeds), grid)


def _read_seeds(written: str | None) -> list[int]:
    """Read "0,1"; empty where none are given."""
    found = [] if written is None else parse_yaml(f"[{written}]", "--seeds")
    whole = all(type(seed) is int and 0 <= seed < 2**63 for seed in found) and (written is None or found)
    require(bool(whole), f"--seeds: {written} are no seeds: give whole numbers, such as 0,1")
    return list(found)


def _reopen(place: str, settings: list[str], trust: bool) -> tuple[Run, "SearchConfig"]:
    from tune.ablation.plan import read_variants
    from tune.config.search_config import update_search_config
    from tune.search_dir import open_search

    home, before = open_search(place, trust)
    config = update_search_config(before, settings)
    try:
        read_variants(config)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    require_chosen_places(home.config, flatten(as_plain(config.base)), settings, trust)
    return home, config


def _train(config: "SearchConfig", home: Run | None, take_over: bool) -> Run:
    """Train the runs that are left, and return the folder of the ablation. RunFailed; Exit on a signal."""
    from tune.ablation.runs import is_trained

    if home is not None and is_trained(home, config):
        return home
    prepare(config.base)
    check_mlflow(config.base)
    dry_run(config.base, torch.device("cpu"))  # trials may run on other nodes, which have the GPUs
    from metatrain.runs.locations import open_run
    from tune.runner import search  # with Ray, which takes seconds

    with graceful_shutdown() as shutdown:
        outcome = search(config, home, take_over, shutdown.is_set, partial(print, file=sys.stderr, flush=True))
    if outcome.failed:
        raise RunFailed(f"{outcome.ended}\n{_hint(outcome.place)}")
    if not outcome.ended:
        print(f"interrupted: {_hint(outcome.place)}", file=sys.stderr)
        raise typer.Exit(128 + shutdown.signal)
    return open_run(outcome.place) if home is None else home


def _hint(place: str) -> str:
    return f"the ablation is kept in {place}: go on with `metatrain ablate --resume {shlex.quote(place)}`"


def _compare(home: Run, config: "SearchConfig", split: Split, trust: bool) -> dict[str, Any]:
    from tune.ablation.runs import compare_variants

    with interruptible(_hint(home.where)) as watched, one_cluster() as open_executor:
        setting = Setting(open_executor, prepare, watched.recorder, watched.stop)
        return compare_variants(setting, home, config, trust, split)


def _show(found: dict[str, Any], home: Run, out: Path | None, as_json: bool) -> None:
    from tune.report import ablation_page, ablation_text

    print(ablation_text.introduction(found))
    for line in (*align(ablation_text.columns(found), ablation_text.rows(found)), *ablation_text.notes(found)):
        print(line, flush=True)
    if as_json:
        print(json.dumps(found), flush=True)
    inside = home.storage is None
    page = out or (home.path / ablation_page.NAME if inside else Path(ablation_page.NAME))
    replace_text(page, ablation_page.render(found))
    print(page, file=sys.stderr if as_json else sys.stdout)

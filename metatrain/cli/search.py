"""Run `metatrain search` and print its best configuration."""

import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import typer

from metatrain.config.dry_run import dry_run
from metatrain.config.load import as_plain, as_yaml
from metatrain.errors import RunFailed
from metatrain.runs import Run, replace_text
from metatrain.setup import check_mlflow, prepare
from metatrain.signals import graceful_shutdown
from metatrain.trust import require_chosen_places
from metatrain.validation import require
from metatrain.yaml_config import flatten
from tasks.io.remote_fs import is_uri

if TYPE_CHECKING:
    from tune.config.search_config import SearchConfig
    from tune.runner import SearchResult


def search_command(
    file: str | None, overrides: list[str], resume: str | None, take_over: bool, as_json: bool, trust: bool = False
) -> None:
    """Conduct a new or resumed search and print its best configuration."""
    require(not take_over or resume is not None, "--take-over: works only with --resume: remove it")
    config, home = _load_search(file, overrides, resume, trust)
    prepare(config.base)
    check_mlflow(config.base)
    dry_run(config.base, torch.device("cpu"))  # trials may run on other nodes, which have the GPUs
    from tune.runner import resume_hint, search  # with Ray, which takes seconds

    with graceful_shutdown() as shutdown:
        say = partial(print, file=sys.stderr, flush=True)
        outcome = search(config, home, take_over, shutdown.is_set, say)
    _report(outcome, config, as_json)
    if outcome.failed:
        raise RunFailed(f"{outcome.ended}\n{resume_hint(outcome.place)}")
    if not outcome.ended:
        print(f"interrupted: {resume_hint(outcome.place)}", file=sys.stderr)
        raise typer.Exit(128 + shutdown.signal)


def _load_search(
    file: str | None, overrides: list[str], resume: str | None, trust: bool
) -> tuple["SearchConfig", Run | None]:
    from tune.config.search_config import load_search_config, update_search_config
    from tune.search_dir import open_search

    if resume is not None:
        home, before = open_search(resume, trust)
        overrides = [file, *overrides] if file else []
        config, path = update_search_config(before, overrides), home.config
    elif file is not None:
        home, path = None, Path(file)
        config = load_search_config(path, overrides, trust)
    else:
        raise ValueError("SEARCH: missing: name a YAML file, as configs/search-*.yaml, or --resume DIR")
    require_chosen_places(path, flatten(as_plain(config.base)), overrides, trust)
    return config, home


def _best(outcome: "SearchResult", config: "SearchConfig") -> str:
    """Return the file of the best configuration; copy it to this folder from a search in S3."""
    assert outcome.best is not None, "there is one"
    if not is_uri(outcome.place):
        return f"{outcome.place}/best.yaml"
    copy = Path(f"{outcome.search_id}-best.yaml")
    replace_text(copy, as_yaml(config.trial_config(outcome.best.configuration)))
    return str(copy)


def _report(outcome: "SearchResult", config: "SearchConfig", as_json: bool) -> None:
    best = outcome.best
    if best is not None:
        step, value = best.results[-1]
        print(f"best {config.search.metric} {value:.6g} by trial {best.number} after {step} steps:")
        for name, setting in best.configuration.items():
            print(f"  {name}: {json.dumps(setting)}")
        print(f"train it alone: metatrain train {shlex.quote(_best(outcome, config))}")
    because = f" ({outcome.ended})" if outcome.ended and not outcome.failed else ""
    print(f"{outcome.place}: {outcome.trials} trials, {outcome.steps} steps, {outcome.seconds:.0f} s{because}")
    if as_json:
        print(json.dumps(outcome.as_dict()))

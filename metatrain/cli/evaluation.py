"""Implement `metatrain evaluate`."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from cluster.executors import open_executor
from metatrain import runs
from metatrain.config.dry_run import require_same
from metatrain.config.load import as_plain, load_config, read_config
from metatrain.evaluation.evaluate import format_results
from metatrain.inference import best_params
from metatrain.runs.checkpoints import params_sha256
from metatrain.runs.locations import open_run
from metatrain.settings import Config
from metatrain.setup import set_up, tracked
from metatrain.tracking.jsonl import CompositeRecorder
from metatrain.trainer import Session, results_as_dict, save_results, score_test_tasks
from metatrain.trust import HOW, require_chosen_places, unchosen_places
from metatrain.yaml_config import apply_overrides, flatten


def evaluate_command(run_dir: str, overrides: list[str], as_json: bool, trust: bool = False) -> None:
    """Test the best parameters of the run at `run_dir` and print the results."""
    began = time.monotonic()
    home = open_run(run_dir)
    trained = load_config(home.config, trust=trust)
    settings = read_config(apply_overrides(as_plain(trained), overrides))
    settings = choose_tracking(home, settings, overrides, trust)
    require_chosen_places(home.config, flatten(as_plain(settings)), overrides, trust)
    worker = set_up(settings)
    params, newest, _ = best_params(home)
    require_same(params, worker)
    with open_executor(worker) as executor, runs.lock_run(home, guest=True):
        recorder = CompositeRecorder(tracked(replace(trained, tracking=settings.tracking), home))
        recorder.start(newest, trained.outer.steps)
        session = Session(worker, executor, recorder, home)
        results = score_test_tasks(session, params)
        name = "-".join(["test", *map(_file_part, overrides)])
        save_results(session, params, results, home.evaluations / f"{name}.json")
        recorder.close("finished" if newest == trained.outer.steps else "interrupted")
        home.commit()
    for line in format_results(results):
        print(line)
    if as_json:
        seconds = time.monotonic() - began
        plain = {
            "run_id": home.run_id,
            "run_dir": home.where,
            "steps": newest,
            "seconds": round(seconds, 3),
            "tasks_per_second": round(sum(result.tasks for result in results) / seconds, 3),
            "params_sha256": params_sha256(params),
        }
        print(json.dumps(plain | results_as_dict(results)))


def choose_tracking(home: runs.Run, settings: Config, overrides: Sequence[str], trust: bool) -> Config:
    """Return `settings` without MLflow, with a line that says so, if a run of somebody else alone names the address."""
    uri = settings.tracking.uri
    if trust or uri is None or runs.is_own(home.path):
        return settings
    if "tracking.uri" not in unchosen_places({"tracking.uri": uri}, overrides):
        return settings
    remedy = f"set tracking.uri=…, or {HOW}"
    print(f"not recorded in MLflow, as {home.where} is not a run of yours and names {uri}: {remedy}", file=sys.stderr)
    return replace(settings, tracking=replace(settings.tracking, uri=None))


def _file_part(override: str) -> str:
    """Replace what does not fit into a file name."""
    return "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in override)

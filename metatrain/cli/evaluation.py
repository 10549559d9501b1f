"""Implement `metatrain evaluate`."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from cluster.executors import open_executor
from metatrain import runs
from metatrain.cli.interruptible import interruptible
from metatrain.cli.notes import describe_test_classes, show_notes
from metatrain.config.best_params import best_params
from metatrain.config.dry_run import require_same
from metatrain.config.evaluation_overrides import require_effect, split_tasks_file
from metatrain.config.load import as_plain, load_config
from metatrain.config.other_algorithm import add_statistics, select_params
from metatrain.config.run_data import (
    choose_test_classes,
    match_images,
    read_evaluation_config,
    require_same_examples,
)
from metatrain.config.shipped import find_config
from metatrain.errors import EvaluationStopped
from metatrain.evaluation.evaluate import Evaluation, format_results
from metatrain.runs.checkpoints import params_sha256
from metatrain.runs.data_record import Overlap, find_overlap, read_data
from metatrain.runs.locations import open_run
from metatrain.session import Session
from metatrain.settings import Config
from metatrain.setup import prepare, set_up, tracked
from metatrain.testing import evaluation_name, results_as_dict, score_test_tasks, write_results
from metatrain.tracking.jsonl import CompositeRecorder
from metatrain.trust import HOW, require_chosen_places, unchosen_places
from metatrain.types import Params
from metatrain.yaml_config import flatten


def evaluate_command(run_dir: str, overrides: list[str], as_json: bool, trust: bool = False) -> None:
    """Test the best parameters of the run at `run_dir`, print the results and keep them with the run."""
    began = time.monotonic()
    home = open_run(run_dir)
    trained = load_config(home.config, trust=trust)
    require_effect(overrides)
    settings = read_evaluation_config(trained, overrides, trust)
    settings = choose_tracking(home, settings, overrides, trust)
    _require_chosen_places(home, settings, overrides, trust)
    params, newest, noted = best_params(home)
    kept = read_data(home)
    settings, data = choose_test_classes(trained, kept, settings, overrides, prepare)
    overlap = find_overlap(kept, data) if data else None
    show_notes(data)
    settings, matched = match_images(settings, trained, noted["spec"])
    if matched is not None:
        print(matched, file=sys.stderr)
    require_same_examples(settings, noted["spec"])
    worker = set_up(settings, home)
    params, incomplete = select_params(params, worker, trained, overrides)
    require_same(params, worker)
    with open_executor(worker) as executor, runs.lock_run(home, guest=True):
        params = add_statistics(params, worker, executor) if incomplete else params
        session = Session(worker, executor, CompositeRecorder(), home)
        results = _score(session, params, overlap)
        for line in (*format_results(results), *describe_test_classes(kept, data, overlap)):
            print(line, flush=True)
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
            print(json.dumps(plain | results_as_dict(results)), flush=True)
        # Printed first: what follows can fail, of a full disk for example.
        files = write_results(session, params, results, evaluation_name(overrides), overrides)
        recorder = CompositeRecorder(tracked(replace(trained, tracking=settings.tracking), home))
        recorder.start(newest, trained.outer.steps)
        try:
            for file, folder in files:
                recorder.artifact(file, folder)
        finally:
            recorder.close("finished" if newest == trained.outer.steps else "interrupted")
        home.commit()


def _require_chosen_places(home: runs.Run, settings: Config, overrides: Sequence[str], trust: bool) -> None:
    """Check that neither the run nor a configuration whose tasks are taken names a stranger's place. ValueError."""
    file, others = split_tasks_file(overrides)
    plain = flatten(as_plain(settings))
    of_tasks = {key: value for key, value in plain.items() if key.startswith("tasks.")} if file is not None else {}
    if file is not None:
        require_chosen_places(find_config(file), of_tasks, others, trust)
    own = {key: value for key, value in plain.items() if key not in of_tasks}
    require_chosen_places(home.config, own, others, trust)


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


def _score(session: Session, params: Params, overlap: Overlap | None) -> list[Evaluation]:
    """Score the learners, showing the progress.

    Between shards, a signal prints the results so far and exits with 128 plus its number.
    """
    results: list[Evaluation] = []
    with interruptible("evaluate again") as watched:
        try:
            watched_session = session._replace(recorder=watched.recorder, stop=watched.stop)
            for result in score_test_tasks(watched_session, params, overlap):
                results.append(result)
        except EvaluationStopped:
            watched.recorder.release()
            print("\n".join(format_results(results)), end="\n" if results else "", flush=True)
            raise
    return results

"""Compare runs: score all of them on the same tasks, on others, and on tasks of the classes they were trained on."""

from collections.abc import Callable, Sequence
from typing import Any

from metatrain.comparison.candidates import Candidate
from metatrain.comparison.common_tasks import (
    TaskSet,
    about,
    first_tasks,
    other_tasks,
    require_trusted,
    settings_for,
    training_tasks,
)
from metatrain.comparison.scoring import BOTH, Kind, Scored, Setting, params_for, score_candidate
from metatrain.comparison.summary import Column, choose_kind, summarize
from metatrain.config.dry_run import dry_run
from metatrain.config.evaluation_overrides import IN_COMPARISON, require_effect
from metatrain.config.load import as_plain
from metatrain.runs.data_record import find_overlap
from metatrain.settings import Config
from metatrain.training.devices import driver_device
from metatrain.validation import require
from metatrain.yaml_config import changed_keys
from tasks.types import Split


def compare(
    setting: Setting,
    candidates: Sequence[Candidate],
    overrides: Sequence[str] = (),
    also: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
    trust: bool = False,
    split: Split = "test",
) -> dict[str, Any]:
    """Return the comparison of `candidates`, as plain values (see `summary`).

    overrides: settings of the tasks and of how all runs are scored. also: further tasks, each as settings or as the
    file of a configuration. say: receives a line on what may make the comparison wrong, before it is made. split:
    whose classes the tasks are drawn from: "validation" to choose among runs, "test" to report.
    ValueError: a run cannot be scored on the tasks. EvaluationStopped: `setting.stop` said so.
    """
    require_effect(overrides, "a comparison", IN_COMPARISON, "evaluation.*, tasks.*, executor.* and engine.*")
    for candidate in candidates:
        with about(candidate):
            require_trusted(candidate, overrides, trust)
    first = candidates[0]
    common = first_tasks(first, overrides, setting.prepare, split)
    others = [other_tasks(first, common, overrides, one, setting.prepare, trust) for one in also]
    names = [tasks.name for tasks in others]
    require(len(set(names)) == len(names), "--also: names the same tasks twice: name each once")
    for line in describe_common_tasks(candidates, [common, *others]):
        say(line)
    # All before the first is scored, which may take long.
    planned, *further = (plan(setting, candidates, tasks, overrides) for tasks in (common, *others))
    for refused in planned:
        require(not isinstance(refused, str), str(refused))
    for tasks, found in zip(others, further, strict=True):
        require(any(isinstance(one, Config) for one in found), f"--also {tasks.name}: {found[0]}")
    main = score_all(setting, candidates, common, planned, BOTH, timed=True)
    kind = choose_kind([one for one in main if isinstance(one, Scored)])
    columns = [
        Column(tasks, score_all(setting, candidates, tasks, found, (kind,)))
        for tasks, found in zip(others, further, strict=True)
    ]
    training = [_on_training_classes(setting, candidate, common, overrides, kind) for candidate in candidates]
    summary = summarize(candidates, Column(common, main), columns, training)
    return summary | {"overrides": list(overrides), "asked": list(also)}


def own_tasks(candidate: Candidate) -> dict[str, Any]:
    """Return the settings that decide which tasks a run tests on by itself; where they are stored does not."""
    settings = dict(as_plain(candidate.trained)["tasks"])
    for elsewhere in ("train", "root", "cache"):
        settings.pop(elsewhere, None)
    return {"tasks": settings}


def plan(
    setting: Setting, candidates: Sequence[Candidate], tasks: TaskSet, overrides: Sequence[str]
) -> list[Config | str]:
    """Return the settings by which each run is scored on `tasks`, or why it cannot be."""
    found: list[Config | str] = []
    for candidate in candidates:
        try:
            with about(candidate):
                config = settings_for(candidate, tasks, overrides, setting.prepare)
                params_for(candidate, dry_run(config, driver_device(config)))
                found.append(config)
        except ValueError as error:
            found.append(str(error))
    return found


def score_all(
    setting: Setting,
    candidates: Sequence[Candidate],
    tasks: TaskSet,
    planned: Sequence[Config | str],
    wanted: Sequence[Kind],
    timed: bool = False,
) -> list[Scored | str]:
    """Score every run that can be on `tasks`, as `plan` has them; `wanted` and `timed` are as in `score_candidate`."""
    found: list[Scored | str] = []
    for candidate, config in zip(candidates, planned, strict=True):
        if isinstance(config, str):
            found.append(config)
            continue
        with about(candidate):
            found.append(score_candidate(setting, candidate, config, tasks.name, wanted, timed))
    return found


def describe_common_tasks(candidates: Sequence[Candidate], sets: Sequence[TaskSet]) -> list[str]:
    """Return a line for each run whose own tasks are not the first's, or that was trained on classes of a test."""
    lines, (first, *rest) = [], candidates
    for candidate in rest:
        keys = changed_keys(own_tasks(first), own_tasks(candidate))
        if keys:
            on = f"{candidate.label} is scored on the tasks of {first.label}, {sets[0].describe()}"
            other = "tasks.name" in keys  # of which every setting differs
            lines.append(f"{on}; its own differ in {'tasks.name' if other else ', '.join(keys)}")
    for tasks in sets:
        for candidate in candidates:
            found = None if tasks.data is None else find_overlap(candidate.kept, tasks.data)
            if found is not None and found.trained_on:
                of = f"{found.trained_on} of the {found.test} {tasks.split} classes of {tasks.name}"
                lines.append(f"WARNING: {candidate.label} was trained on {of}: its score there is no test")
    return lines


def _on_training_classes(
    setting: Setting, candidate: Candidate, common: TaskSet, overrides: Sequence[str], kind: Kind
) -> Scored | str:
    """Score a run on tasks of the classes that it was trained on; return why it cannot be."""
    try:
        tasks = training_tasks(candidate, common, overrides, setting.prepare)
        with about(candidate):
            return score_candidate(setting, candidate, tasks.config, tasks.name, (kind,))
    except ValueError as error:
        return str(error)

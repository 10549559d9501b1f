"""Read how far the runs of an ablation have come, and score those that were trained to their end."""

from typing import Any

from metatrain.comparison.candidates import open_candidates
from metatrain.comparison.common_tasks import first_tasks
from metatrain.comparison.compare import plan, score_all
from metatrain.comparison.scoring import Scored, Setting
from metatrain.runs import Run, write_json
from metatrain.validation import require
from tasks.types import Split
from tune.ablation.plan import axes_of, read_variants
from tune.ablation.results import Key, by_axis, summarize_ablation
from tune.config.search_config import SearchConfig
from tune.history.trials import History
from tune.report.collect import collect
from tune.search_dir import trial_location

RESULTS = "ablation.json"


def is_trained(home: Run, config: SearchConfig) -> bool:
    """Return whether every run of an ablation has ended."""
    history = _history(home)
    return len(history.trials) == config.search.trials and not history.running


def _history(home: Run) -> History:
    return collect(home).history


def compare_variants(
    setting: Setting, home: Run, config: SearchConfig, trust: bool = False, split: Split = "test"
) -> dict[str, Any]:
    """Score the runs of an ablation on tasks of the base, and keep the comparison with it, as ablation.json.

    split: whose classes the tasks are drawn from.

    EvaluationStopped: `setting.stop` said so. ValueError: nothing can be compared.
    """
    history, variants = _history(home), read_variants(config)
    keys: list[Key] = [(variant.label, variant.seed) for variant in variants]
    ended = {keys[trial.number]: trial for trial in history.trials}
    failures = {key: f"{trial.status}: {trial.reason}" for key, trial in ended.items() if trial.status != "completed"}
    trained = [key for key in keys if key in ended and key not in failures]
    told = "; ".join(dict.fromkeys(failures.values()))
    require(bool(trained), f"{home.where}: no run was trained to its end ({told}): fix what failed and begin anew")
    places = [trial_location(home, ended[key].number) for key in trained]
    names = [f"{label}, seed {seed}" for label, seed in trained]
    candidates = open_candidates(places, trust, names)
    common = first_tasks(candidates[0], (), setting.prepare, split)
    planned = plan(setting, candidates, common, ())
    scored: dict[Key, Scored] = {}
    for key, one in zip(trained, score_all(setting, candidates, common, planned, ()), strict=True):
        if isinstance(one, Scored):
            scored[key] = one
        else:
            failures[key] = one
    found = summarize_ablation(variants, scored, failures, common)
    found |= {"axes": by_axis(found, axes_of(config)), "name": config.base.runs.name, "place": home.where}
    found |= {"trained": [ended[key].number for key in trained]}
    write_json(home.path / RESULTS, found)
    home.commit()
    return found

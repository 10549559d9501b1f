"""What the tests of a search's report share: real folders, searched over cheap functions instead of training."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metatrain import runs
from metatrain.config.load import as_plain
from metatrain.yaml_config import dump_yaml
from tests.configurations import tiny
from tests.report_pages import EVIL, edit
from tune.history.trials import Trial
from tune.schedulers.asha import ASHA
from tune.schedulers.pbt import PBT
from tune.searchers.bohb import BOHB
from tune.searchers.random_search import RandomSearch
from tune.space.search_space import apply_configuration, read_space
from tune.study import Study, StudySpec

SPACE: dict[str, Any] = {
    "algorithm.inner_lr": "loguniform(1e-3, 1)",
    "outer.lr": "loguniform(1e-4, 1e-1)",
    "algorithm.inner_steps": "int(1, 10)",
    "model": "choice({name: conv4}, {name: resnet12})",
    "model.width": {"from": "logint(16, 128)", "when": {"model": {"name": "conv4"}}},
}
"""Of which inner_lr matters most, and outer.lr not at all."""


def accuracy(configuration: Mapping[str, Any], budget: int) -> float:
    """Best at an inner rate of 0.03, with a wide conv4 and many inner steps; better with a larger budget."""
    far = abs(math.log10(configuration["algorithm.inner_lr"]) - math.log10(0.03))
    width = 0.02 * math.log2(configuration.get("model.width", 24))
    return 0.75 - 0.3 * far + width + 0.008 * configuration["algorithm.inner_steps"] - 1 / (budget + 3)


def parameters(trial: Trial) -> dict[str, float]:
    """What a trial costs: as much as its model is wide."""
    return {"parameters": 12.0 * trial.configuration.get("model.width", 90) ** 2 + 1000}


def empty_search(folder: Path, space: Mapping[str, Any] = SPACE, **search: Any) -> runs.Run:
    """The folder of a search that has not begun."""
    folder.mkdir(parents=True)
    settings = {"method": {"name": "bohb"}, "metric": "validation/accuracy", "trials": 40, **search}
    document = as_plain(tiny("runs.name=rates")) | {"search": settings, "space": dict(space)}
    (folder / "config.yaml").write_text(dump_yaml(document))
    runs.write_json(folder / "environment.json", runs.describe_environment())
    runs.write_json(folder / "run.json", {"format": 1, "run_id": folder.name, "created": "2026-11-21T12:00:00Z"})
    return runs.open_run(folder)


def run_study(home: runs.Run, spec: StudySpec, value: Callable[[Trial, int], float | str], costs: bool = False) -> None:
    """Search in `home` until the plan ends; a trial whose value is a word fails with it. A rung lasts as many seconds
    as it has steps.
    """
    with Study(spec, home.path / "journal.jsonl") as search:
        trials = list(search.running)
        while trials or (trial := search.next_trial()) is not None:
            if not trials:
                trials = [trial]
            trial = trials.pop(0)
            for budget in spec.scheduler.budgets(trial.number):
                if budget <= trial.start:
                    continue
                seen = value(trial, budget)
                if isinstance(seen, str):
                    search.fail(trial.number, seen)
                    break
                if search.report(trial.number, budget, seen, *([parameters(trial)] if costs else [])) == "stop":
                    break
            trials = list(search.running)
        best = search.history.best()
    write_clock(home)
    if best is not None:
        plain = as_plain(tiny("runs.name=rates-best"))
        (home.path / "best.yaml").write_text(dump_yaml(apply_configuration(plain, best.configuration)))


def write_clock(home: runs.Run, each: float = 2.5) -> None:
    """A clock in which every event of the journal lasts as long."""
    events = len((home.path / "journal.jsonl").read_text().splitlines()) - 1
    lines = [json.dumps({"event": i, "seconds": each * i, "time": 1.8e9 + each * i}) for i in range(1, events + 1)]
    (home.path / "clock.jsonl").write_text("".join(f"{line}\n" for line in lines))


def spec(space: Mapping[str, Any] = SPACE, trials: int | None = 40, **changes: Any) -> StudySpec:
    """BOHB over three rungs."""
    usual = {"searcher": BOHB(), "scheduler": ASHA(100, 900), "metric": "validation/accuracy", "mode": "max"}
    return StudySpec(read_space(space), **{**usual, "trials": trials, **changes})


def finished_search(folder: Path, trials: int = 40, **changes: Any) -> runs.Run:
    """A whole search, of which every eleventh trial fails and one becomes nan."""
    home = empty_search(folder, trials=trials)

    def value(trial: Trial, budget: int) -> float | str:
        if trial.number % 11 == 7:
            return "CUDA out of memory: 3 GiB were asked for"
        return math.nan if trial.number == 5 and budget > 100 else accuracy(trial.configuration, budget)

    run_study(home, spec(trials=trials, **changes), value)
    return home


def multi_objective_search(folder: Path, trials: int = 40) -> runs.Run:
    """A search for accuracy and few parameters."""
    home = empty_search(folder, trials=trials, objectives=["parameters"])
    run_study(
        home,
        spec(trials=trials, objectives=("parameters",)),
        lambda trial, budget: accuracy(trial.configuration, budget),
        costs=True,
    )
    return home


def population_search(folder: Path) -> runs.Run:
    """Six members, side by side, that copy one another every 100 steps."""
    space = {"outer.lr": "loguniform(1e-4, 1e-1)", "algorithm.inner_lr": "uniform(0.01, 0.5)"}
    home = empty_search(folder, space, method={"name": "pbt"})
    schedule = PBT(tuple(space), interval=100, max_budget=800, members=6)
    the_spec = spec(space, None, searcher=RandomSearch(), scheduler=schedule)
    with Study(the_spec, home.path / "journal.jsonl") as search:
        for _ in range(6):
            search.next_trial()
        while search.running:
            # Who is behind comes first, and of those the best, so that the others see whom to copy.
            trial = min(search.running, key=lambda one: (one.budget, _far(one)))
            search.report(trial.number, trial.budget + 100, 0.9 - 0.2 * _far(trial) - 20 / (trial.budget + 100))
    write_clock(home)
    return home


def _far(trial: Trial) -> float:
    return abs(math.log10(trial.configuration["outer.lr"]) + 2)


def hostile_search(folder: Path) -> runs.Run:
    """A search that would like to run a script wherever it may write a word."""
    space = {"x</script><b>": f"choice({json.dumps(EVIL)}, other)", "outer.lr": "loguniform(1e-4, 1e-1)"}
    home = empty_search(folder, space, method={"name": EVIL}, objectives=[EVIL])
    the_spec = spec(space, 20, searcher=RandomSearch(), failures=20, objectives=(EVIL,))
    with Study(the_spec, home.path / "journal.jsonl") as search:
        while (trial := search.next_trial()) is not None:
            if trial.number % 5 == 2:
                search.fail(trial.number, EVIL)
                continue
            for budget in the_spec.scheduler.budgets(trial.number):
                search.report(trial.number, budget, trial.configuration["outer.lr"], {EVIL: float(trial.number)})
    write_clock(home)
    (home.path / "best.yaml").write_text(f"name: {EVIL}\n")
    runs.write_json(home.path / "experience.json", {"sources": [{"name": EVIL, "weight": 0.5, "observations": []}]})
    runs.write_json(home.path / "run.json", {"format": 1, "run_id": EVIL, "created": EVIL})
    edit(home.environment, lambda found: found.update(command=[EVIL], platform=EVIL))
    home.config.write_text(home.config.read_text().replace("name: rates", f"name: {json.dumps(EVIL)}"))
    return runs.open_run(folder)

"""Extend a run: change the number of its outer steps when it is resumed, and keep that in the run.

config.yaml is rewritten with the new number, so that a later resume goes on to it; an event in metrics.jsonl says when
that was. Everything else stays as the run began.
"""

from metatrain.config.load import load_config
from metatrain.runs import Run
from metatrain.runs.run import replace_text
from metatrain.runs.signature import is_own, sign_config
from metatrain.settings import Config, OuterSettings
from metatrain.training.outer_loop import learning_rate
from metatrain.yaml_config import dump_yaml, load_yaml

EXTENDED = "extended"
"""The kind of the event."""


def extend_run(home: Run, config: Config, done: int) -> str | None:
    """Write `config.outer.steps` to the run's config.yaml; return the text of the event, None if nothing changed.

    done: steps that were taken. Results of the test at the former end are kept under a name that says so.
    """
    plain = load_yaml(home.config, "a configuration")
    before, steps = load_config(home.config, trust=True).outer.steps, config.outer.steps
    if before == steps:
        return None
    own = is_own(home.path)
    former = home.evaluations / "test.json"
    if former.exists():  # it is the result of the shorter schedule
        former.rename(home.evaluations / f"test-outer.steps_{before}.json")
    plain.setdefault("outer", {})["steps"] = steps
    replace_text(home.config, dump_yaml(plain))
    if own:
        sign_config(home.path)
    return f"outer.steps from {before} to {steps}, {_explain(config.outer, before, done)}"


def _explain(settings: OuterSettings, before: int, done: int) -> str:
    if settings.schedule in ("constant", "halving"):
        return f"whose {settings.schedule} schedule does not depend on it: the result is that of a run of this length"
    former = OuterSettings(**{**vars(settings), "steps": before})
    now, then = learning_rate(settings, done), learning_rate(former, min(done, before))
    return (
        f"after step {done}: from there the rate follows the {settings.schedule} schedule over {settings.steps} steps, "
        f"{now:.3g} at first instead of {then:.3g}, so the result is that of the extended schedule, not of a new run "
        "of this length"
    )

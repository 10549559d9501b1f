"""Map the names that `tasks.name` may have to task sources: those that ship, and a user's own by import path."""

import dataclasses
from typing import Any

from tasks.plugins import import_target, suggest_name
from tasks.sources.bandit import Bandit
from tasks.sources.bandit_arms import BanditActions
from tasks.sources.causal_tables import CausalTables
from tasks.sources.class_sources import CLASS_SOURCES
from tasks.sources.gaussian_process import GaussianProcess
from tasks.sources.gymnasium import Gymnasium
from tasks.sources.image_completion import ImageCompletion
from tasks.sources.mixture import Mixture
from tasks.sources.navigation_2d import Navigation2D
from tasks.sources.sinusoid import Sinusoid
from tasks.sources.table import Table
from tasks.sources.tabular_mdp import TabularMDPs

_OTHERS: dict[str, type[Any]] = {
    "bandit": Bandit,
    "bandit_arms": BanditActions,
    "causal_tables": CausalTables,
    "gaussian_process": GaussianProcess,
    "image_completion": ImageCompletion,
    "mixture": Mixture,
    "navigation_2d": Navigation2D,
    "gymnasium": Gymnasium,
    "sinusoid": Sinusoid,
    "table": Table,
    "tabular_mdp": TabularMDPs,
}
TASK_SOURCES: dict[str, type[Any]] = dict(sorted((CLASS_SOURCES | _OTHERS).items()))


def resolve_task_source(name: str) -> type[Any]:
    """Return the TaskSource class called `name`: a key of TASK_SOURCES, or "package.module:ClassName".

    ValueError: there is none, or it lacks a method of TaskSource.
    """
    if ":" in name:
        return _import_task_source(name)
    if name not in TASK_SOURCES:
        known = ", ".join(sorted(TASK_SOURCES))
        reason = f"no tasks are called '{name}'{suggest_name(name, TASK_SOURCES)}"
        raise ValueError(f"{reason}: use one of {known}, or your own as package.module:Class")
    return TASK_SOURCES[name]


def _import_task_source(name: str) -> type[Any]:
    found = import_target("tasks.name", name)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"tasks.name: '{name}' is not a dataclass: mark it @dataclass(frozen=True)")
    missing = [method for method in ("prepare", "distribution") if not callable(getattr(found, method, None))]
    if missing:
        raise ValueError(
            f"tasks.name: '{name}' lacks {' and '.join(missing)}: add the methods of tasks.types.TaskSource"
        )
    return found

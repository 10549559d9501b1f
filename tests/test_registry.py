"""Names to sources, and what a name that leads nowhere is told."""

import dataclasses
import pickle
from pathlib import Path

import pytest

from tasks.registry import TASK_SOURCES, resolve_task_source
from tasks.types import EpisodeShape

OWN = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Mine:
    root: str = "here"
    def prepare(self, progress): return "ready"
    def distribution(self, split, episode, seed): return None

@dataclass(frozen=True)
class Half:
    def prepare(self, progress): return "ready"

class Plain:
    def prepare(self, progress): return "ready"
    def distribution(self, split, episode, seed): return None

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_tasks.py").write_text(OWN)
    (tmp_path / "needs_more.py").write_text("import a_module_that_nobody_has\n")
    (tmp_path / "not_python.py").write_text("def broken(:\n")
    (tmp_path / "raises.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize("name", TASK_SOURCES)
def test_what_we_ship_is_a_frozen_picklable_dataclass_with_defaults(name: str) -> None:
    source = resolve_task_source(name)()
    assert dataclasses.is_dataclass(source)
    with pytest.raises(dataclasses.FrozenInstanceError):
        source.anything = 1
    assert pickle.loads(pickle.dumps(source)) == source


def test_a_users_own_by_import_path(own: None) -> None:
    source = resolve_task_source("own_tasks:Mine")(root="there")
    assert source.root == "there"
    assert source.distribution("train", EpisodeShape(), 0) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "omniglott",
            "no tasks are called 'omniglott' (did you mean omniglot?): use one of aircraft, awa2, bandit, ",
        ),
        ("zzz", "no tasks are called 'zzz': use one of aircraft, awa2, bandit, "),
        ("", "no tasks are called ''"),
        ("no_such_module_here:Thing", "cannot import 'no_such_module_here'"),
        ("needs_more:Thing", "No module named 'a_module_that_nobody_has'"),
        ("not_python:Thing", "cannot import 'not_python'"),
        ("raises:Thing", "ZeroDivisionError: division by zero"),
        (":Thing", "cannot import ''"),
        ("own_tasks:Mines", "'own_tasks' has no class 'Mines' (did you mean Mine?): name a class"),
        ("own_tasks:number", "'own_tasks' has no class 'number'"),
        ("own_tasks:Plain", "'own_tasks:Plain' is not a dataclass: mark it @dataclass(frozen=True)"),
        ("own_tasks:Half", "'own_tasks:Half' lacks distribution: add the methods of tasks.types.TaskSource"),
    ],
)
def test_a_name_that_leads_nowhere_is_told_why(own: None, name: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        resolve_task_source(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)

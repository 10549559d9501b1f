"""`~` in every setting that is a path, every argument and every environment variable: no folder is called so."""

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
import yaml

import metatrain
from metatrain.cli import app, profiles
from metatrain.cli.arguments import expand_paths
from metatrain.config.load import load_config, read_config, resolve_paths
from metatrain.config.sections import is_path
from metatrain.runs.locations import create_run, open_run
from metatrain.settings import SECTIONS, Config
from metatrain.tracking.mlflow_connection import resolve_uri
from metatrain.yaml_config import apply_overrides, flatten
from tasks.io.home import expand_home
from tasks.registry import TASK_SOURCES
from tasks.store.cache import cache_root
from tests.configurations import TINY, tiny
from tune.config.search_config import load_search_config

PATHS = {"runs.root", "tracking.uri"} | {
    f"{source}.{key}"
    for source in (
        "awa2",
        "cifar_fs",
        "cub",
        "fc100",
        "features",
        "image_folder",
        "medmnist",
        "meta_dataset",
        "mini_imagenet",
        "omniglot",
        "tiered_imagenet",
    )
    for key in ("root", "cache")
}
PATHS |= {"features.splits", "image_folder.splits", "image_completion.root", "table.root"}
RAW = ("aircraft", "dtd", "fungi", "mscoco", "quick_draw", "traffic_sign", "vgg_flower")
PATHS |= {f"{source}.{key}" for source in RAW for key in ("root", "cache", "splits")}
PATHS |= {"image_folder.hierarchy", "cub.splits", "awa2.splits", "meta_dataset.splits"}
TEXTS = {"evaluation.corruption", "runs.name", "tracking.experiment", "executor.address", "outer.groups"}
TEXTS |= {"medmnist.dataset", "image_completion.images", "image_completion.settings", "table.dataset", "table.target"}
TEXTS |= {"gymnasium.environment_id", "gymnasium.task", "gymnasium.settings"}
TEXTS |= {f"features.{key}" for key in ("label", "columns", "split", "group")}
"""Settings that are free text and no paths."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "me").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "me"


def texts(cls: Any, prefix: str) -> dict[str, bool]:
    """Every setting that takes a free text, and whether it is read as a path."""
    hints = get_type_hints(cls, include_extras=True)
    return {
        f"{prefix}.{one.name}": is_path(hints[one.name])
        for one in dataclasses.fields(cls)
        if is_path(hints[one.name]) or "<class 'str'>" in str(hints[one.name]) or str(hints[one.name]).startswith("str")
    }


def test_every_setting_is_known_as_a_path_or_as_none() -> None:
    hints = get_type_hints(Config)
    others = ("seed", "initialize", "tasks", "model", "algorithm")
    classes = {name: hints[name] for name in SECTIONS if name not in others}
    found = {key: path for name, cls in (classes | TASK_SOURCES).items() for key, path in texts(cls, name).items()}
    assert {key for key, path in found.items() if path} == PATHS
    assert {key for key, path in found.items() if not path} <= TEXTS, "mark a new path as tasks.io.home.PathText"


@pytest.mark.parametrize("key", sorted(PATHS))
def test_a_setting_expands_it(key: str, home: Path) -> None:
    section, _, name = key.partition(".")
    given, wanted = ("sqlite:///~/x/y", f"sqlite:///{home}/x/y") if key == "tracking.uri" else ("~/x/y", f"{home}/x/y")
    beside = {"target": "kind"} if section == "table" else {}
    source = {"tasks": {"name": section, **beside}} if section in TASK_SOURCES else {}
    setting = f"tasks.{name}" if source else key
    config = read_config(apply_overrides({**TINY, **source}, [f"{setting}={given}"]))
    assert getattr(config.tasks.source if source else getattr(config, section), name) == wanted
    with pytest.raises(ValueError, match=rf"{setting}: '~no-such-user/x'.*use a full path"):
        read_config(apply_overrides({**TINY, **source}, [f"{setting}=~no-such-user/x"]))


def test_the_root_of_ones_own_source_is_a_path_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from dataclasses import dataclass\nfrom tasks.sources.strokes import Strokes\n\n@dataclass(frozen=True)\n"
    code += 'class Mine(Strokes):\n    root: str = ""\n    note: str = ""\n'
    Path("homemade.py").write_text(code)
    monkeypatch.syspath_prepend(".")
    source: Any = tiny("tasks={name: 'homemade:Mine', root: ~/x, note: ~/y}").tasks.source
    assert (source.root, source.note) == (f"{home}/x", "~/y")


def test_relative_paths_are_kept_relative_to_the_folder_of_start() -> None:
    here = Path.cwd()
    config = tiny("tasks={name: image_folder, root: a, cache: b, splits: c/d}", "tracking.uri=sqlite:///e.db")
    found: Any = resolve_paths(config)
    source = found.tasks.source
    assert [source.root, source.cache, source.splits] == [str(here / "a"), str(here / "b"), str(here / "c/d")]
    assert found.tracking.uri == f"sqlite:///{here}/e.db"
    for named in ("auto", "tiny-imagenet-140"):
        kept: Any = resolve_paths(tiny(f"tasks={{name: image_folder, root: a, splits: {named}}}"))
        assert kept.tasks.source.splits == named


NO_PATHS = {
    "overrides", "take_over", "as_json", "address", "profile", "follow", "env", "name", "job_id", "split", "index",
    "ways", "shots", "queries", "command", "trust", "normalization", "keep", "record", "most",
    "axes", "set", "settings", "seeds", "grid", "per_class", "tasks", "dry_run",
}  # fmt: skip
"""Parameters of commands that are no paths; `command` is for the job, which expands its own."""


def commands(group: Any, prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, one in group.commands.items():
        found |= commands(one, f"{prefix}{name} ") if hasattr(one, "commands") else {f"{prefix}{name}": one}
    return found


def test_every_argument_and_option_that_is_a_path_expands_it(home: Path) -> None:
    paths = set()
    for name, command in commands(typer.main.get_command(app)).items():
        for parameter in command.params:
            if parameter.name not in NO_PATHS | {"help"}:
                assert parameter.callback is not None, f"{name} {parameter.name}: give it callback=expand_paths"
                paths.add(f"{name} {parameter.name}")
    assert {"train config", "train resume", "report out", "submit working_dir", "jobs profiles"} <= paths
    assert expand_paths(["~/a", "b"]) == [f"{home}/a", "b"]
    assert expand_paths(Path("~/a")) == home / "a" and expand_paths(None) is None


def test_functions_of_python_expand_it_and_take_text_or_path(home: Path) -> None:
    (home / "train.yaml").write_text(yaml.safe_dump(TINY))
    search = {
        "base": "~/train.yaml",
        "search": {"trials": 2, "method": "random"},
        "space": {"outer.lr": "uniform(0.1, 1)"},
    }
    (home / "search.yaml").write_text(yaml.safe_dump(search))
    run = create_run("~/runs", "r", "a: 1\n", {})
    assert run.path.parent == home / "runs"
    for kind in (str, Path):
        assert load_config(kind("~/train.yaml")) == tiny()
        assert load_search_config(kind("~/search.yaml")).base == tiny()
        assert open_run(kind(f"~/runs/{run.run_id}")).run_id == run.run_id
        with pytest.raises(ValueError, match=f"no run at {home}/none"):
            metatrain.load(kind("~/none"))
    assert resolve_uri("sqlite:///~/m.db") == f"sqlite:///{home}/m.db"
    assert list(Path.cwd().iterdir()) == []


def test_environment_variables_expand_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METATRAIN_CACHE", "~/c")
    assert cache_root(None) == home / "c" and cache_root("~/d") == home / "d"
    monkeypatch.delenv("METATRAIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/e")
    assert cache_root(None) == home / "e" / "metatrain"
    (home / "p.yaml").write_text("profiles: {lab: {address: 'http://lab:8265'}}")
    monkeypatch.setenv("METATRAIN_PROFILES", "~/p.yaml")
    assert profiles.read_profile("lab", None).address == "http://lab:8265"


@pytest.mark.parametrize("kept", ["", "x/~", "./~", "s3://lab/~", "sqlite:///x/~", "http://host/~me", "/a~"])
def test_all_else_stays(kept: str) -> None:
    assert expand_home(kept) == kept


def test_the_resolved_configuration_reads_back(home: Path) -> None:
    config = resolve_paths(tiny("runs.root=~/runs"))
    assert flatten(dataclasses.asdict(config.runs), "runs.")["runs.root"] == f"{home}/runs"

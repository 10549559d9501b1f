"""Configurations at the edge: what is read is what is written, and whatever is wrong is one line with the remedy."""

import functools
import re
from dataclasses import replace

import jsonschema
import pytest
import yaml

from metatrain.config.json_schema import json_schema
from metatrain.config.load import as_plain, as_yaml, load_config, read_config, resolve_paths
from metatrain.models import Conv4, Custom
from metatrain.yaml_config import apply_overrides, flatten
from tests.configurations import SHIPPED, TINY, tiny

OWN = """
from __future__ import annotations
from dataclasses import dataclass, replace
import torch
from metatrain.algorithms import MAML
from tasks.sources.strokes import Strokes

@dataclass(frozen=True)
class Tasks:
    jitter: float = 1.0
    name_of_it: str | None = None
    def prepare(self, progress):
        return "own"
    def distribution(self, split, episode, seed):
        return Strokes(jitter=self.jitter).distribution(split, episode, seed)

@dataclass(frozen=True)
class Learner(MAML):
    temperature: float = 1.0

class Net(torch.nn.Sequential):
    def __init__(self, width: int = 4) -> None:
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(784, width))

def not_a_dataclass():
    pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch) -> str:
    (tmp_path / "own_parts.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "own_parts"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("outer.lr=1e-05", "outer.clip_norm=0.1", "seed=7"),
        ("tracking.uri=null", "evaluation.inner_steps=null", "tasks.test.ways=3"),
        ("outer.groups.inner_lr.lr=0.1", "outer.groups.inner_lr.optimizer=sgd", "tracking.every=7"),
        ("runs.name=large.1-a_b", "tracking.experiment='größe: b # c'", "executor.address=ray://h:1"),
    ],
)
def test_what_is_written_reads_back(path, overrides, tmp_path):
    if "episodes:" in path.read_text():  # environments have no ways
        overrides = [one.replace("tasks.test.ways", "tasks.test.episodes") for one in overrides]
    config = load_config(path, overrides)
    assert read_config(as_plain(config)) == config
    (tmp_path / "again.yaml").write_text(as_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config


def test_every_shipped_file_is_there():
    assert len(SHIPPED) >= 3


def test_the_defaults_are_those_of_the_settings():
    least = {"tasks": {"name": "strokes"}, "model": {"name": "conv4"}, "algorithm": {"name": "protonet"}}
    config = read_config(least)
    assert config.model == Conv4()
    assert (config.tasks.train.ways, config.tasks.train.shots, config.tasks.train.queries) == (5, 1, 15)
    assert (config.executor.name, config.outer.optimizer, config.tracking.uri) == (
        "in_process",
        "adam",
        "sqlite:///mlflow.db",
    )


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("outer.lr=1e-3", 0.001),
        ("outer.lr=2E+1", 20.0),
        ("outer.lr=.5", 0.5),
        ("outer.lr=1", 1),
        ("outer.clip_norm=null", None),
        ("outer.clip_norm=", None),
        ("tracking.experiment=1e-3x", "1e-3x"),
        ("tracking.experiment='1e-3'", "1e-3"),
        ("tracking.uri=http://h/a=b", "http://h/a=b"),
        ("a.b.c=[1, {d: 1e-3}]", [1, {"d": 0.001}]),
    ],
)
def test_an_override_is_yaml_at_its_place(override, value):
    raw = {"outer": {"lr": 3.0, "steps": 4}}
    *sections, last = override.split("=")[0].split(".")
    found = apply_overrides(raw, [override])
    assert found["outer"]["steps"] == 4
    for section in sections:
        found = found[section]
    assert found[last] == value
    assert type(found[last]) is type(value)
    assert raw == {"outer": {"lr": 3.0, "steps": 4}}, "the original is left alone"


def test_the_last_override_wins_and_a_section_is_replaced_whole():
    assert tiny("outer.lr=1", "outer.lr=2").outer.lr == 2
    assert tiny("algorithm={name: protonet}").names.algorithm == "protonet"
    assert tiny("outer={steps: 9}", "outer.lr=2").outer == replace(tiny().outer, steps=9, lr=2, tasks_per_step=16)


def test_flat_names_are_overrides():
    config = tiny("outer.clip_value=2.5", "seed=3")
    names = flatten(as_plain(config))
    assert names["outer.clip_value"] == 2.5
    assert names["tasks.train.ways"] == 3
    assert names["seed"] == 3
    assert not any(isinstance(value, dict) for value in names.values())
    assert (
        read_config(apply_overrides({}, [f"{key}={yaml.safe_dump(value)}" for key, value in names.items()])) == config
    )


def test_resolved_paths_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny("tasks={name: omniglot, root: here}", "tracking.uri=sqlite:///a.db")
    found = resolve_paths(config)
    assert found.tasks.source.root == str(tmp_path / "here")
    assert found.tracking.uri == f"sqlite:///{tmp_path}/a.db"
    monkeypatch.chdir("/")
    assert resolve_paths(found) == found


@pytest.mark.parametrize("uri", [None, "http://host:5000", "sqlite:////var/a.db"])
def test_resolved_keeps_what_is_absolute(uri):
    config = replace(tiny(), tracking=replace(tiny().tracking, uri=uri))
    assert resolve_paths(config).tracking.uri == uri


def test_parts_of_ones_own_by_import_path(own):
    config = tiny(
        "tasks={name: 'own_parts:Tasks', jitter: 0.5, train: {ways: 4}}",
        "model={name: 'own_parts:Net', arguments: {width: 6}}",
        "algorithm={name: 'own_parts:Learner', inner_lr: 0.2, temperature: 2.0}",
    )
    assert config.tasks.source.jitter == 0.5
    assert config.tasks.train.ways == 4
    assert config.model == Custom("own_parts:Net", {"width": 6})
    assert (config.algorithm.inner_lr, config.algorithm.temperature) == (0.2, 2.0)
    assert read_config(as_plain(config)) == config
    schema().validate(as_plain(config))


@functools.cache
def schema() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    return jsonschema.Draft202012Validator(json_schema())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_schema_accepts_what_is_shipped_and_what_is_shown(path):
    schema().validate(yaml.safe_load(as_yaml(load_config(path))))
    schema().validate(apply_overrides(TINY, ()))


@pytest.mark.parametrize(
    "override",
    [
        "outr.lr=1",
        "outer.lrr=1",
        "tasks.train.way=1",
        "tasks.jiter=1",
        "model.widht=1",
        "algorithm.inner_lrr=1",
        "algorithm.name=mamll",
        "outer.steps=many",
        "outer.schedule=cosin",
        "seed=-1",
        "outer.lr=0",
        "outer.steps=0",
        "outer.clip_norm=0",
        "outer.weight_decay=-1",
        "outer.groups.inner_lr.lr=0",
        "evaluation.tasks=1",
        "executor.gpus_per_worker=-1",
        "model.width=0",
        "algorithm.inner_lr=0",
        "tasks.train.ways=1",
        "tasks.test.queries=0",
        "tasks.classes=1",
    ],
)
def test_the_schema_refuses(override):
    assert not schema().is_valid(apply_overrides(TINY, [override]))


BAD = [
    # override, the field that the line begins with, words of the remedy
    ("outr.lr=1", "outr", "did you mean outer?"),
    ("outer.lrr=1", "outer.lrr", "did you mean lr?"),
    ("tasks.train.way=3", "tasks.train.way", "did you mean ways?"),
    ("tasks.jiter=1", "tasks.jiter", "did you mean jitter?"),
    ("model.widht=1", "model.widht", "did you mean width?"),
    ("algorithm.inner_step=1", "algorithm.inner_step", "did you mean inner_steps?"),
    ("tasks.name=omniglott", "tasks.name", "did you mean omniglot?"),
    ("model.name=conv", "model.name", "did you mean conv4?"),
    ("algorithm.name=mamll", "algorithm.name", "did you mean maml?"),
    ("algorithm.name=zzz", "algorithm.name", "or give package.module:Name"),
    ("algorithm.name=3", "algorithm.name", "string"),
    ("algorithm={inner_lr: 0.1}", "algorithm.name", "missing: choose among maml"),
    ("model=conv4", "model", "write its settings below it"),
    ("outer=", "outer", "write its settings below it"),
    ("tasks.train=3", "tasks.train", "write its settings below it"),
    ("outer.lr.x=3", "outer.lr.x", "'lr' is a value, not a section"),
    ("outer.lr", "'outer.lr'", "write key=value"),
    ("=3", "'=3'", "write key=value"),
    ("outer.lr=[1", "outer.lr", "not YAML"),
    ("outer.lr=fast", "outer.lr", "valid number, not 'fast'"),
    ("outer.lr=true", "outer.lr", "valid number, not True"),
    ("outer.lr=null", "outer.lr", "valid number, not None"),
    ("outer.lr=.nan", "outer.lr", "set it above 0"),
    ("outer.lr=.inf", "outer.lr", "set it above 0"),
    ("outer.lr=-1", "outer.lr", "set it above 0"),
    ("outer.lr=0", "outer.lr", "set it above 0"),
    ("outer.steps=1.5", "outer.steps", "valid integer, not 1.5"),
    ("outer.steps=0", "outer.steps", "set it above 0"),
    ("outer.clip_norm=0", "outer.clip_norm", "set it above 0"),
    ("outer={optimizer: sgd, momentum: -0.1}", "outer.momentum", "set 0 or more"),
    ("outer.momentum=0.9", "outer.momentum", "set optimizer to sgd"),
    ("outer.final_lr=0.1", "outer.final_lr", "set outer.schedule to linear or cosine"),
    ("outer.halve_every=10", "outer.halve_every", "set outer.schedule to halving"),
    ("outer.groups.inner_lr.lr=0", "outer.groups.inner_lr.lr", "set it above 0"),
    ("outer.groups.inner_lr.rate=1", "outer.groups.inner_lr.rate", "it may be"),
    ("outer.groups.inner_lr=1", "outer.groups.inner_lr", "write its settings below it"),
    ("outer.groups=[1]", "outer.groups", "valid dictionary"),
    ("tracking.every=0", "tracking.every", "set it above 0"),
    ("outer.schedule=cosin", "outer.schedule", "'constant', 'linear', 'cosine' or 'halving', not 'cosin'"),
    ("engine.vectorize=map", "engine.vectorize", "'auto', 'vmap' or 'loop'"),
    ("engine.threads=0", "engine.threads", "set it above 0"),
    ("executor.name=spark", "executor.name", "'in_process', 'ray' or 'ray_train'"),
    ("executor.workers=0", "executor.workers", "set it above 0"),
    ("executor.workers={min: 3, max: 2}", "executor.workers.max", "set it to 3 or more"),
    ("executor.workers={least: 2}", "executor.workers.least", "it may be max, min"),
    ("executor.gradients=bfloat16", "executor.gradients", "is no longer supported: remove it"),
    ("executor.deadline=0", "executor.deadline", "set it above 0"),
    ("runs.root=gs://bucket/runs", "runs.root", "s3://BUCKET/FOLDER: set one"),
    ("runs.root=s3://", "runs.root", "s3://BUCKET/FOLDER: set one"),
    ("executor.gpus_per_worker=-1", "executor.gpus_per_worker", "set 0 or more"),
    ("evaluation.tasks=1", "evaluation.tasks", "set 2 or more"),
    ("evaluation.inner_steps=0", "evaluation.inner_steps", "set it above 0"),
    ("evaluation.seed=-1", "evaluation.seed", "set 0 or more"),
    ("checkpoint.keep=0", "checkpoint.keep", "set it above 0"),
    ("runs.name=a/b", "runs.name", "use letters"),
    ("tracking.uri=3", "tracking.uri", "valid string, not 3"),
    ("seed=-1", "seed", "set 0 or more"),
    ("seed=9223372036854775808", "seed", "below 2^63"),
    ("seed=1.5", "seed", "valid integer"),
    ("model.kernel=4", "model.kernel", "set an odd size"),
    ("model.width=0", "model.width", "set it above 0"),
    ("model.normalization=batch", "model.normalization", "'transductive', 'inductive', 'group' or 'none'"),
    ("algorithm.inner_lr=-1", "algorithm.inner_lr", "set it above 0"),
    ("algorithm.inner_steps=.nan", "algorithm.inner_steps", "valid integer"),
    ("tasks.train.ways=1", "tasks.train.ways", "set ways to 2 or more"),
    ("tasks.test.shots=0", "tasks.test.shots", "set shots to 1 or more"),
    ("tasks.classes=1", "tasks.classes", "to 2 or more"),
    ("tasks.jitter=-1", "tasks.jitter", "to 0 or more"),
    ("tasks={name: omniglot, splitting: letters}", "tasks.splitting", "'characters' or 'alphabets'"),
    ("tasks.name=nowhere:Tasks", "tasks.name", "PYTHONPATH"),
    ("tasks.name=own_parts:Task", "tasks.name", "own_parts"),
    ("tasks.name=own_parts:Net", "tasks.name", "@dataclass(frozen=True)"),
    ("tasks.name=own_parts:Learner", "tasks.name", "TaskSource"),
    ("tasks.name=own_broken:Tasks", "tasks.name", "ZeroDivisionError"),
    ("algorithm={name: 'nowhere:Learner'}", "algorithm.name", "PYTHONPATH"),
    ("algorithm={name: 'own_parts:not_a_dataclass'}", "algorithm.name", "@dataclass(frozen=True)"),
    ("algorithm={name: 'own_parts:Learner', temprature: 1}", "algorithm.temprature", "did you mean temperature?"),
    ("algorithm={name: 'own_broken:Learner'}", "algorithm.name", "ZeroDivisionError"),
    ("model={name: 'own_parts:Net', width: 3}", "model.width", "arguments"),
    ("model={name: 'own_parts:Net', target: 'other:Net'}", "model.target", "arguments"),
]


@pytest.mark.parametrize(("override", "field", "remedy"), BAD, ids=[row[0] for row in BAD])
def test_a_wrong_setting_is_one_line_with_field_and_remedy(own, override, field, remedy):
    with pytest.raises(ValueError, match=f"^{re.escape(field)}[:,]") as refused:
        read_config(apply_overrides(TINY, [override]))
    assert remedy in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("section", ["tasks", "model", "algorithm"])
def test_what_must_be_chosen_is_asked_for(section):
    with pytest.raises(ValueError, match=f"^{section}: missing: name one.*`metatrain list`"):
        read_config({key: value for key, value in TINY.items() if key != section})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "holds no settings: begin with tasks, model and algorithm"),
        (b"# nothing\n", "holds no settings"),
        (b"- a\n- b\n", "holds no settings"),
        (b"maml\n", "holds no settings"),
        (b"a: [1\nb: 2\n", "line 2: not YAML"),
        (b"a:\n\tb: 1\n", "line 2: not YAML"),
        (b"a: !!python/name:os.system\n", "line 1: not YAML"),
        (b"a: \x07\n", "not YAML"),
        (b"\xff\xfe\x00a", "not"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}.*{re.escape(message)}") as refused:
        load_config(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path / name))}: .*use the path of a configuration"):
        load_config(tmp_path / name)


def test_workers_may_be_a_range():
    config = tiny("executor.workers={min: 2, max: 4}")
    assert (config.executor.min_workers, config.executor.max_workers) == (2, 4)
    assert read_config(as_plain(config)) == config
    schema().validate(as_plain(config))
    assert flatten(as_plain(config))["executor.workers.max"] == 4
    assert tiny("executor.workers=3").executor.min_workers == 1


def test_a_name_that_looks_like_a_number_is_kept_as_a_name(tmp_path):
    (tmp_path / "kept.yaml").write_text(as_yaml(tiny("runs.name='1e-3'", "tracking.experiment='12e4'")))
    again = load_config(tmp_path / "kept.yaml")
    assert (again.runs.name, again.tracking.experiment) == ("1e-3", "12e4")

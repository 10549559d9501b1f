"""Requests with one mistake each, by group, and beside each group the same without the mistake."""

from typing import NamedTuple

import yaml

from tests.bad_parts import (
    Given,
    climbing,
    flipped,
    mine,
    nothing,
    photographs,
    spoilt_photographs,
    stored,
    truncated,
    undecodable,
    written,
    zips,
)
from tests.configurations import TINY

SHORT = {
    **TINY,
    "model": {"name": "mlp", "width": 4},
    "outer": {"steps": 2, "tasks_per_step": 2, "lr": 1e-2},
    "evaluation": {"every": 2, "tasks": 2, "validation_tasks": 2, "baselines": False},
    "checkpoint": {"every": 1, "keep": 3},
}


class Row(NamedTuple):
    """A request and what standard error says of it; `given` makes what it needs in its folder."""

    arguments: tuple[str, ...]
    says: tuple[str, ...] = ()
    given: Given = nothing
    seconds: float = 120
    """It must be over by then."""


def train(*settings: str, says: tuple[str, ...] = (), given: Given = nothing, seconds: float = 120) -> Row:
    return Row(("train", "short.yaml", *settings), says, given, seconds)


def wrong(setting: str, *remedy: str) -> Row:
    """A setting that is refused under its own name."""
    return train(setting, says=(setting.partition("=")[0], *remedy))


def own(setting: str, *says: str, also: tuple[str, ...] = (), seconds: float = 120) -> Row:
    return train(setting, *also, says=says, given=mine, seconds=seconds)


def yaml_of(**changed: object) -> str:
    return yaml.safe_dump(SHORT | changed)


OMNIGLOT = "tasks={name: omniglot, root: raw, train: {ways: 3}, test: {ways: 3}}"
STORED = "tasks={name: omniglot, root: raw, cache: cache, train: {ways: 3}, test: {ways: 3}}"
PHOTOS = "tasks={name: image_folder, root: photos, size: 12, train: {ways: 3, queries: 2}, test: {ways: 3, queries: 2}}"
HEADLESS = "model={name: 'mine:Net', arguments: {width: 3}, head: none}"
LINES = "tasks={name: 'mine:Lines'}"
METHOD = "algorithm={name: 'mine:Method', wrong: %s}"
SOURCE = "tasks={name: 'mine:Source', wrong: %s}"
HUGE = "1" + "0" * 400

WRONG: dict[str, list[Row]] = {
    "file": [
        Row(("train",), ("CONFIG", "name a YAML file")),
        Row(("train", "nowhere.yaml"), ("nowhere.yaml", "use the path")),
        Row(("train", "."), (".: ", "use the path")),
        train(says=("short.yaml", "begin with tasks, model and algorithm"), given=written("")),
        train(says=("short.yaml", "begin with"), given=written("- tasks\n- model\n")),
        train(says=("short.yaml, line 2", "fix that line"), given=written("a: [1\nb: 2\n")),
        train(says=("short.yaml, line 1", "'seed' stands twice"), given=written("{seed: 1, seed: 2}")),
        train(says=("short.yaml", "use a YAML file"), given=written(b"seed: \xff\xfe")),
        train(says=("short.yaml", "fix that line"), given=written(b"seed: \x00\x01")),
        train(says=("short.yaml", "nest"), given=written("[" * 5000)),
    ],
    "key": [
        train("outr.lr=1", says=("outr:", "did you mean outer?")),
        wrong("outer.lrr=1", "did you mean lr?"),
        wrong("tasks.train.way=3", "did you mean ways?"),
        wrong("model.widht=3", "did you mean width?"),
        train("outer.lr", says=("outer.lr", "write key=value")),
        train("outer.lr.x=1", says=("outer.lr", "see `metatrain config show`")),
        train("{}=1", says=("{}", "it may be")),
        train("a.=1", says=("a", "it may be")),
        train(says=("line 1", "quote it"), given=written(yaml_of(**{"1": 2}).replace("'1'", "1"))),
        train(says=("null", "quote it"), given=written(yaml_of() + "null: 1\n")),
        train(says=("the key '3'", "quote it"), given=written(yaml_of().replace("  train:\n", "  train:\n    3: 1\n"))),
    ],
    "value": [
        wrong("outer.lr=fast", "valid number, not 'fast'"),
        wrong("outer.lr=true", "valid number"),
        wrong("outer.lr=2026-01-01", "valid number"),
        wrong("outer.lr=[1, 2]", "valid number"),
        wrong("outer=3", "write its settings below it"),
        wrong("outer.steps=1.5", "valid integer"),
        wrong("outer.lr=.nan", "above 0"),
        wrong("outer.lr=.inf", "above 0"),
        wrong("outer.lr=-1", "above 0"),
        wrong("outer.lr=0", "above 0"),
        wrong("outer.steps=0", "above 0"),
        wrong("outer.steps=-3", "above 0"),
        wrong(f"outer.steps={HUGE}", "a number of"),
        wrong(f"outer.lr={HUGE}", "a number of"),
        wrong("outer.tasks_per_step=0", "above 0"),
        wrong("outer.tasks_per_step=1000000000000000", "lower it"),
        wrong("evaluation.tasks=1", "set 2 or more"),
        wrong("evaluation.tasks=1000000000000000", "lower it"),
        wrong("engine.threads=1000000000", "lower it"),
        wrong("executor.workers=0", "above 0"),
        train("executor.workers=1000000000", "executor.name=ray", says=("executor.workers", "lower")),
        wrong("algorithm.inner_lr=.nan", "above 0"),
        wrong("algorithm.inner_steps=-1", "above 0"),
        wrong("model.width=0", "above 0"),
        wrong("model.depth=1000000000", "lower"),
        wrong("tasks.jitter=.nan", "0 or more"),
        wrong("seed=-1", "0 or more"),
        wrong("runs.name=../up", "use letters"),
        wrong("runs.name=" + "long" * 60, "use"),
        wrong("runs.name=größe", "use letters"),
        wrong("tracking.experiment=", "valid string"),
        wrong("tracking.experiment=''", "set a name"),
        wrong("executor.gpus_per_worker=1.5", "whole"),
    ],
    "name": [
        train("algorithm={name: mamal}", says=("algorithm.name", "did you mean maml?")),
        train("algorithm={name: ''}", says=("algorithm.name", "choose among")),
        train("model={name: conv}", says=("model.name", "did you mean conv4?")),
        train("tasks={name: omniglott}", says=("tasks.name", "did you mean omniglot?")),
        wrong(
            "algorithm={name: protonet, width: 3}", "algorithm.width: no such setting: there are none here, remove it"
        ),
        wrong("outer.optimizer=rmsprop", "'adam', 'adamw' or 'sgd'"),
        wrong("outer.schedule=cosin", "'cosine'"),
        wrong("executor.name=spark", "'in_process', 'ray' or 'ray_train'"),
        train("outer.groups.inner.lr=1", says=("outer.groups.inner", "they begin with")),
        train("evaluation.inner_steps=2", "algorithm={name: protonet}", says=("inner_steps", "remove it")),
    ],
    "shape": [
        wrong("tasks.train.ways=1", "set ways to 2 or more"),
        wrong("tasks.train.ways=null", "set tasks.train.ways"),
        wrong("tasks.test.ways=4", "fewer"),
        train("tasks.classes=4", "tasks.train.ways=5", says=("tasks.train.ways", "lower")),
        train("tasks.train.shots=2000000", says=("tasks.train.shots", "lower")),
        train("algorithm={name: protonet}", LINES, says=("algorithm.name", "set maml"), given=mine),
        train("model={name: conv4}", LINES, says=("model.name", "set mlp"), given=mine),
        train("model={name: conv4, depth: 9}", says=("model.depth", "lower it")),
        train("model={name: conv4, halvings: 5}", says=("model.halvings", "lower it")),
        own(HEADLESS, "anil", "head", also=("algorithm={name: anil}",)),
        own(HEADLESS, "boil", "head", also=("algorithm={name: boil}",)),
    ],
    "memory": [
        wrong("model.width=10000000", "memory", "lower"),
        train("tasks.train.shots=500000", "executor.shard_size=2", says=("tasks.train", "memory", "lower")),
        train("tasks.test.queries=900000", "executor.shard_size=2", says=("tasks.test", "memory", "lower")),
    ],
    "images": [
        train(OMNIGLOT, says=("tasks.root", "images_background.zip")),
        train(OMNIGLOT.replace("ways: 3}}", "ways: 90}}"), says=("tasks.test.ways", "lower"), given=zips()),
        train(OMNIGLOT.replace("train: {", "train: {shots: 15, "), says=("tasks.train.shots", "lower"), given=zips()),
        train("tasks={name: omniglot}", says=("tasks.root", "images_background.zip")),
        train(OMNIGLOT, says=("images_background.zip", "complete copy"), given=zips(truncated)),
        train(OMNIGLOT, says=("0001_99.png", "complete copy"), given=zips(undecodable)),
        train(STORED, says=("checksum", "delete it and run `metatrain data prepare"), given=stored(flipped)),
        train(STORED, says=("format version 99", "delete it and run"), given=stored(version=99)),
        train(OMNIGLOT, says=("../../etc", "leads outside"), given=zips(climbing)),
        train('tasks={name: omniglot, root: "a\\0b"}', says=("tasks.root",)),
        train("tasks={name: image_folder}", says=("root", "set tasks.root")),
    ],
    "photographs": [
        train(PHOTOS, says=("photos", "set tasks.root")),
        train(PHOTOS, says=(".png",), given=spoilt_photographs),
        train(PHOTOS.replace("queries: 2}}", "queries: 20}}"), says=("tasks.test.shots", "lower"), given=photographs),
        train(PHOTOS.replace("size: 12", "size: 1000000"), says=("size",), given=photographs),
    ],
    "own": [
        own("model={name: 'no_such:Net'}", "model.name", "PYTHONPATH"),
        own("model={name: 'broken:Net'}", "model.name", "no_such_package"),
        own("model={name: 'mute:Net'}", "model.name", "RuntimeError", "fix the module"),
        own("model={name: 'mine:Nett'}", "model.name", "did you mean Net?"),
        own("model={name: 'mine:'}", "model.name", "class"),
        own("model={name: ':Net'}", "model.name"),
        own("model={name: 'mine.:Net'}", "model.name"),
        own("model={name: 'mine:Net', arguments: {widht: 3}}", "model.arguments", "widht"),
        own("model={name: 'mine:Net', arguments: {width: -3}}", "model"),
        own("model={name: 'mine:Net', arguments: {3: 3}}", "model", "quote it"),
        own("model={name: 'mine:Refusing'}", "model", "no weights here"),
        own("model={name: 'mine:Flat'}", "model.name", "it must return [B, D]"),
        own("model={name: 'mine:Raising'}", "model.name", "KeyError", "mine.py"),
        own("model={name: 'mine:RaisingLater'}", "model.name", "only two", "mine.py"),
        own("model={name: 'mine:Net', arguments: {width: 3}, head: last}", "model.head", "choose among"),
        own("algorithm={name: 'mine:Needy'}", "algorithm", "alpha"),
        own("algorithm={name: 'mine:Net'}", "algorithm.name", "@dataclass(frozen=True)"),
        own("algorithm={name: 'mine:Lines'}", "algorithm.name", "metatrain.types.Algorithm"),
        *[
            own(METHOD % fault, "algorithm.name", remedy)
            for fault, remedy in {
                "lacks": "model.body",
                "shape": "model.body",
                "metrics": "loss",
                "type": "MetaGradient",
                "raises": "KeyError",
                "value": "beyond me",
            }.items()
        ],
        *[
            own(SOURCE % fault, "tasks.name", remedy)
            for fault, remedy in {
                "shape": "[tasks, examples, 1, 28, 28]",
                "batch": "[tasks, examples]",
                "dtype": "float32",
                "labels": "int64",
                "range": "0 to",
                "nan": "finite",
                "type": "Episode",
                "raises": "IndexError",
            }.items()
        ],
    ],
    "run folder": [
        train("runs.root=short.yaml", says=("short.yaml", "set runs.root")),
        train("runs.root=short.yaml/deeper", says=("short.yaml", "set runs.root")),
        train("runs.root=/proc/runs", says=("/proc/runs", "set runs.root")),
        train("runs.root=", says=("runs.root", "valid string")),
        train("runs.root=''", says=("runs.root", "name a folder")),
        train('runs.root="a\\0b"', says=("runs.root",)),
        Row(("train", "--resume", "nowhere"), ("nowhere", "use the folder")),
        Row(("train", "--resume", "short.yaml"), ("short.yaml", "use the folder")),
        Row(("train", "--resume", "."), ("run.json", "use the folder")),
    ],
    "place": [
        train("executor.gpus_per_worker=1", says=("executor.gpus_per_worker", "set it to 0")),
        train("executor.gpus_per_worker=1", "executor.name=ray", says=("executor.gpus_per_worker", "lower it")),
        train("executor={name: ray, address: '127.0.0.1:1'}", says=("executor.address", "ray start"), seconds=15),
        train("executor={name: ray, address: '127.0.0.1'}", says=("executor.address", "host:port"), seconds=15),
        train("executor={name: ray, address: 'a b:c'}", says=("executor.address", "host:port"), seconds=15),
        train("executor={name: ray, address: ''}", says=("executor.address", "host:port"), seconds=15),
        train("executor={name: ray, address: auto}", says=("executor.address", "ray start"), seconds=15),
    ],
    "commands": [
        Row(("evaluate", "nowhere"), ("nowhere", "use the folder")),
        Row(("evaluate", "."), ("run.json", "use the folder")),
        Row(("report", "nowhere"), ("nowhere", "use the folder")),
        Row(("report", ".", "nowhere"), ("run.json", "use the folder")),
        Row(("config", "show", "nowhere.yaml"), ("nowhere.yaml", "use the path")),
        Row(("config", "show", "short.yaml", "outer.lr=x"), ("outer.lr", "valid number")),
        Row(("data", "prepare", "omniglott"), ("tasks.name", "did you mean omniglot?")),
        Row(("data", "prepare", "omniglot", "root=nowhere"), ("nowhere", "tasks.root")),
        Row(("data", "prepare", "strokes", "clases=3"), ("tasks.clases", "did you mean classes?")),
        Row(("data", "prepare", "strokes", "nonsense"), ("nonsense", "write")),
        Row(("data", "show", "strokes", "--split", "tests"), ("--split", "choose")),
        Row(("data", "show", "strokes", "--ways", "1"), ("ways", "2 or more")),
        Row(("data", "show", "strokes", "--shots", "0"), ("shots", "1 or more")),
        Row(("data", "show", "strokes", "--index", "-1"), ("--index", "0 or more")),
        Row(("data", "show", "strokes", "--index", "1" + "0" * 30), ("--index", "below")),
        Row(("data", "show", "strokes", "--out", "a/b.png"), ("--out", "a")),
        Row(("data", "show", "strokes", "--out", "b.txt"), ("--out", ".png")),
        Row(("data", "show", "strokes", "--out", "."), ("--out",)),
        Row(("data", "show", "mine:Lines"), ("mine:Lines", "images"), mine),
        Row(("data", "show", "strokes", "--ways", "2000000"), ("ways", "lower")),
    ],
    "usage": [
        Row(("trian",), ("trian",)),
        Row(("train", "--resum", "x"), ("--resum",)),
        Row(("train", "--resume"), ("--resume",)),
        Row(("evaluate",), ("RUN",)),
        Row(("report",), ("RUN",)),
        Row(("data", "prepare"), ("name",)),
        Row(("data", "show", "strokes", "--ways", "many"), ("--ways",)),
        Row(("config", "show"), ("config",)),
    ],
}

RIGHT: dict[str, list[Row]] = {
    "file": [train()],
    "key": [train("outer.lr=1")],
    "value": [train("outer.tasks_per_step=3", "seed=9223372036854775807", "executor.workers=1000", "runs.name=a-b")],
    "name": [train("algorithm={name: protonet}", "outer={optimizer: sgd, steps: 1}", "outer.groups={model.body: {}}")],
    "shape": [train("tasks.classes=5", "tasks.train.ways=5"), train(LINES, given=mine), own(HEADLESS)],
    "memory": [train("model.width=100", "tasks.train.shots=50", "tasks.test.queries=90")],
    "images": [train(OMNIGLOT, given=zips()), train(STORED, given=stored())],
    "photographs": [train(PHOTOS, given=photographs)],
    "own": [own("model={name: 'mine:Net'}", also=(METHOD % "''", SOURCE % "''"))],
    "run folder": [train("runs.root=a/b/c")],
    "place": [train("executor={name: ray, workers: 2}")],
    "commands": [
        Row(("data", "show", "strokes", "--out", "b.png")),
        Row(("data", "prepare", "strokes", "classes=9")),
        Row(("config", "show", "short.yaml", "outer.lr=1")),
    ],
    "usage": [Row(("--help",)), Row(("train", "--help"))],
}

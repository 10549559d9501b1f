"""Examples of the README and the documents: Python runs, commands parse with their settings, YAML is read."""

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import typer

import metatrain
from metatrain.cli import app
from metatrain.cli.profiles import read_profile
from metatrain.config.load import load_config
from tests.configurations import CONFIGS, TINY
from tune.config.search_config import load_search_config

ROOT = CONFIGS.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples/tones/README.md",
]


class Block(NamedTuple):
    """A fenced block: where it stands, its language and its text."""

    where: str
    language: str
    text: str


def blocks(language: str) -> Iterator[Block]:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for found in re.finditer(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text[: found.start()].count("\n") + 1
            if found[1] == language:
                yield Block(f"{document.relative_to(ROOT)}:{line}", found[1], found[2])


def named(found: Iterator[Any]) -> list[Any]:
    return [pytest.param(one, id=one[0]) for one in found]


@pytest.mark.parametrize("block", named(blocks("python")))
def test_python_examples_import_what_exists_and_call_it_rightly(block: Block) -> None:
    tree = ast.parse(block.text)
    names: dict[str, Any] = {"metatrain": metatrain}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        called = names.get(function.id) if isinstance(function, ast.Name) else None
        if (
            isinstance(function, ast.Attribute)
            and isinstance(function.value, ast.Name)
            and function.value.id == "metatrain"
        ):
            called = getattr(metatrain, function.attr)
        if inspect.isfunction(called):
            given = {word.arg: None for word in node.keywords if word.arg}
            inspect.signature(called).bind(*node.args, **given)


def test_the_example_of_a_network_builds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [one for one in blocks("python") if "class Net" in one.text]
    made: dict[str, Any] = {}
    exec(block.text, made)
    assert made["Net"](width=4).eval()(torch.rand(3, 1, 28, 28)).shape == (3, 4)


def search_folder(folder: Path) -> None:
    """The folder in which docs/search.md's example of a file works."""
    (block,) = [one for one in blocks("yaml") if one.where.startswith("docs/search.md")]
    (folder / "search.yaml").write_text(block.text)
    (folder / "sinusoid-maml.yaml").write_text((CONFIGS / "sinusoid-maml.yaml").read_text())


def test_the_example_of_a_search_is_read_by_the_example_in_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    (block,) = [one for one in blocks("python") if one.where.startswith("docs/search.md")]
    (call,) = re.findall(r"load_search_config\([^)]*\)", block.text)
    assert eval(call, {"load_search_config": load_search_config}).search.minutes == 10


def test_examples_of_profiles_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "x")
    found = [one for one in blocks("yaml") if "profiles:" in one.text]
    assert found
    for block in found:
        path = tmp_path / "profiles.yaml"
        path.write_text(block.text)
        path.chmod(0o600)
        name = re.findall(r"^  (\w+):$", block.text, re.MULTILINE)[0]
        assert read_profile(name, path).overrides(), block.where


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command line of ours in a block of shell, or after `submit --`."""
    for block in blocks("sh"):
        for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
            text = re.sub(r"^(?:\S+=\S+ )*(?:\S*/)?metatrain ", "metatrain ", line.strip())
            if text.startswith("metatrain "):
                words = shlex.split(text.split("  #")[0].split(" # ")[0].split(" && ")[0].split(" | ")[0])
                yield f"{block.where} {' '.join(words[1:4])}", words[1:]


LINES = [(f"{number} {name}", words) for number, (name, words) in enumerate(commands())]


def parse(words: list[str]) -> tuple[str, dict[str, Any]]:
    group: Any = typer.main.get_command(app)
    while True:
        name, *words = words
        group = group.commands[name]
        if not hasattr(group, "commands"):
            return name, dict(group.make_context(name, words).params)


@pytest.mark.parametrize("line", named(iter(LINES)))
def test_commands_parse_and_their_settings_exist(line: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name, given = parse(line[1])
    if name == "submit":
        name, given = parse([word for word in given["command"] if word != "--"])
    config = given.get("config") or given.get("file")
    if config is None or "mine:" in " ".join(line[1]) or not (ROOT / str(config)).exists():
        return
    settings = [one for one in given.get("overrides") or () if "…" not in one]
    (load_search_config if name == "search" else load_config)(config, settings)


def test_there_are_examples_of_every_kind() -> None:
    assert len(LINES) > 25 and len(list(blocks("python"))) >= 6


@pytest.mark.slow
def test_python_examples_with_a_run_do_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few: Any = {"evaluation": {"tasks": 2, "validation_tasks": 2, "baselines": False}}
    run = metatrain.train({**TINY, "tasks": {**TINY["tasks"], "train": {"ways": 5}, "test": {"ways": 5}}}, **few)
    np.save("characters.npy", np.random.default_rng(0).random((20, 28, 28), dtype=np.float32))
    images = torch.rand(5, 1, 28, 28)
    known = {"images": images, "labels": list("abcde"), "more_images": torch.rand(9, 1, 28, 28)}
    brief = (
        'outer={"steps": 2, "tasks_per_step": 2}, evaluation={"tasks": 2, "validation_tasks": 2, "baselines": False}'
    )
    smaller = {'outer={"steps": 200}': brief, '"steps": 400': '"steps": 3', "runs/20261121-…": run.run_dir}
    for block in blocks("python"):
        others = ("mushrooms", "estimator()")  # of runs on other tasks
        if (
            "metatrain." not in block.text
            or any(one in block.text for one in others)
            or block.where.startswith("examples")
        ):
            continue
        text = block.text
        for old, new in smaller.items():
            text = text.replace(old, new)
        exec(text, {"metatrain": metatrain, **known})

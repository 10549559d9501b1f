"""Two thousand damaged configurations: each is accepted or refused in a short line, whatever was done to it."""

import copy
import datetime
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import yaml

from metatrain.config.dry_run import dry_run
from metatrain.config.load import load_config
from metatrain.settings import Config
from tests import drawings, pictures
from tests.configurations import SHIPPED, TINY

QUICK, SLOW, PARTS = 20, 62, 32
VALUES: list[Any] = [
    *(0, -1, 1, 2, 3.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"), 2**31, 2**63, 10**30),
    *(10**400, True, False, None, "", " ", "a", "maml", "10", "1e-3", "nan", "größe ✓ 日本", "x" * 5000, "a\nb\0c"),
    *(":", "a:b", "os:system", "metatrain.cli:main", "../..", "/", [], [[]], [1, 2], ["a"] * 50, {}, {"name": "mlp"}),
    *({"a": {"b": {"c": 1}}}, {1: 2}, datetime.date(2026, 11, 21), datetime.datetime(2026, 11, 21, 1, 2), b"\x00\xff"),
]
KEYS = ["lr", "name", "ways", "nmae", "", " ", "a.b", "größe", "x" * 300, 3, None, True, "root", "every"]
REMEDY = re.compile(
    "set |lower|leave|give |write |fix|remove|return|"
    "mark it|decorate|choose|use |may be|begin with|name |should be|did you mean|"
    "put |make |fix |add |remove |replace it|create |run from"
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What is shipped, and the smallest; those that need drawings are given a few."""
    root = drawings.write_zips(tmp_path_factory.mktemp("drawings"))
    photographs = pictures.write(tmp_path_factory.mktemp("photographs"), pictures.split_files())
    found = [copy.deepcopy(TINY), *(yaml.safe_load(path.read_text()) for path in SHIPPED)]
    for plain in found:
        plain["model"] |= {} if plain["model"]["name"] != "conv4" else {"width": 4}
        if plain["tasks"]["name"] == "omniglot":
            plain["tasks"] |= {"root": str(root), "train": {"ways": 3}, "test": {"ways": 3, "queries": 5}}
        if plain["tasks"]["name"] == "mixture":
            plain["tasks"]["sources"]["omniglot"]["root"] = str(root)
            plain["tasks"]["sources"]["photographs"] |= {"root": str(photographs), "settings": {"size": 12}}
        if plain["tasks"]["name"] == "image_completion":
            plain["tasks"]["root"] = str(root)
        if plain["tasks"]["name"] == "image_folder":
            shape = {"ways": 3, "shots": 1, "queries": 2}
            plain["tasks"] |= {"root": str(photographs), "size": 12, "splits": "auto", "train": shape, "test": shape}
            plain["model"] = {"name": "mlp", "width": 4}
    return found


def places(tree: Any) -> Iterator[tuple[dict[Any, Any], Any]]:
    """Every (section, key) of a tree."""
    for key, value in tree.items():
        yield tree, key
        if isinstance(value, dict):
            yield from places(value)


def mutated(plain: dict[str, Any], chance: random.Random) -> str:
    """YAML of `plain` after one to three changes to its keys and values, or to its letters."""
    plain = copy.deepcopy(plain)
    for _ in range(chance.choice((1, 1, 1, 2))):
        section, key = chance.choice(list(places(plain)) or [(plain, "tasks")])
        change_tree(plain, section, key, chance)
    text = yaml.dump(plain, allow_unicode=True, sort_keys=False)
    return change_text(text, chance) if chance.random() < 0.25 else text


def change_tree(plain: dict[str, Any], section: dict[Any, Any], key: Any, chance: random.Random) -> None:
    match chance.choice(("delete", "rename", "typo", "swap", "move", "value", "value", "nudge", "nudge", "add")):
        case "delete":
            section.pop(key, None)
        case "rename":
            section[chance.choice(KEYS)] = section.pop(key, None)
        case "typo":
            letters = list(str(key))
            letters[chance.randrange(len(letters)) if letters else 0 :][:1] = [chance.choice("aeiou_")]
            section["".join(letters)[::-1] if chance.random() < 0.2 else f"{key}s"] = section.pop(key, None)
        case "swap":
            other, there = chance.choice(list(places(plain)))
            section[key], other[there] = copy.deepcopy(other[there]), copy.deepcopy(section.get(key))
        case "move":
            plain[key] = copy.deepcopy(section.get(key))
        case "value":
            section[key] = copy.deepcopy(chance.choice(VALUES))
        case "nudge" if isinstance(section[key], int | float):
            section[key] *= chance.choice((-1, 0.5, 2, 3, 100))
        case "add":
            section[chance.choice(KEYS)] = copy.deepcopy(chance.choice(VALUES))


def change_text(text: str, chance: random.Random) -> str:
    """A line twice, an indentation lost, a letter flipped or lost, YAML's own letters put in, the end cut off."""
    lines = text.splitlines(keepends=True)
    at = chance.randrange(len(lines)) if lines else 0
    match chance.choice(("twice", "indent", "flip", "lose", "insert", "cut")):
        case "twice":
            lines[at : at + 1] *= 2
        case "indent":
            lines[at : at + 1] = [chance.choice(("", " ", "\t", "    ")) + line.lstrip() for line in lines[at : at + 1]]
        case "flip":
            place = chance.randrange(len(text) or 1)
            flipped = ord(text[place : place + 1] or "a") ^ (1 << chance.randrange(7))
            return text[:place] + chr(flipped) + text[place + 1 :]
        case "lose":
            place = chance.randrange(len(text) or 1)
            return text[:place] + text[place + 1 :]
        case "insert":
            place = chance.randrange(len(text) or 1)
            bit = chance.choice(("&a ", "*a ", "<<: *a\n", "!!python/name:os.system ", "? ", "|\n", "%", "{", "]"))
            return text[:place] + bit + text[place:]
        case "cut":
            return text[: chance.randrange(len(text) or 1)]
    return "".join(lines)


def is_small(config: Config) -> bool:
    """Whether settling it takes no time."""
    shapes = (config.tasks.train, config.tasks.test)
    numbers = vars(config.model).values()
    return all(sum(s.most_examples) < 10**9 for s in shapes) and all(
        not isinstance(number, int) or number <= 64 for number in numbers
    )


def downloads(config: Config) -> bool:
    sources = getattr(config.tasks.source, "sources", {"": config.tasks.source})
    names = [getattr(one, "name", config.names.tasks) for one in sources.values()]
    found = zip(names, sources.values(), strict=True)
    return any(name in ("omniglot", "image_completion") and one.root is None for name, one in found)


@pytest.mark.parametrize(
    ("part", "mutations"), [(0, QUICK), *(pytest.param(part, SLOW, marks=pytest.mark.slow) for part in range(1, PARTS))]
)
def test_a_damaged_configuration_is_accepted_or_refused_in_a_line(originals, part, mutations, tmp_path, monkeypatch):
    chance = random.Random(part)
    (tmp_path / "cache").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("METATRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / "mutated.yaml"
    outcomes = {"accepted": 0, "refused": 0}
    for number in range(mutations):
        text = mutated(chance.choice(originals), chance)
        path.write_text(text, errors="surrogateescape")
        try:
            config = load_config(path)
            if is_small(config) and not downloads(config):
                dry_run(config, torch.device("cpu"))
            outcomes["accepted"] += 1
        except (ValueError, OSError) as error:
            outcomes["refused"] += 1
            check(str(error), f"part {part}, mutation {number}:\n{text}")
    assert list((tmp_path / "here").iterdir()) == []
    assert all(outcomes.values()), outcomes
    print(outcomes)


def check(message: str, mutation: str) -> None:
    assert len(message.splitlines()) <= 3, f"{message}\n{mutation}"
    assert len(message) < 500, f"{message}\n{mutation}"
    assert REMEDY.search(message), f"{message}\n{mutation}"

"""What is wrong in files: parts of a user's own, most wrong in one way each, and archives that are damaged."""

import zipfile
from collections.abc import Callable
from pathlib import Path

from tasks.sources.omniglot import Omniglot
from tasks.store import store
from tests import drawings, pictures

MINE = '''
import os
from dataclasses import dataclass

import torch
from torch import nn

from metatrain.algorithms.optimization.maml import MAML
from metatrain.types import MetaGradient
from tasks.sources.strokes import Strokes
from tasks.types import Episode, Examples, TaskSpec


class Net(nn.Sequential):
    def __init__(self, width=6):
        super().__init__(nn.Flatten(), nn.Linear(784, width), nn.ReLU())


class Flat(Net):
    def forward(self, x):
        return super().forward(x).sum(1)


class Raising(Net):
    def forward(self, x):
        return {}["no such layer"]


class RaisingLater(Net):
    def forward(self, x):
        if len(x) != 2:
            raise KeyError("only two\\nat a time")
        return super().forward(x)


class Refusing(Net):
    def __init__(self):
        raise RuntimeError("no weights here")


class OnlyAtHome(Net):
    def __init__(self):
        if "RAY_WORKER" in os.environ or "ray::" in open("/proc/self/cmdline").read():
            raise RuntimeError("no licence on this machine")
        super().__init__()


@dataclass(frozen=True)
class Method(MAML):
    wrong: str = ""
    at: int = 0

    def meta_gradient(self, model, params, tasks, context, engine):
        found = super().meta_gradient(model, params, tasks, context, engine)
        grads = dict(found.grads)
        first = next(iter(grads))
        if int(context.step) < self.at or not self.wrong:
            return found
        if self.wrong == "lacks":
            del grads[first]
        if self.wrong == "shape":
            grads[first] = grads[first].sum()
        if self.wrong == "metrics":
            return found._replace(metrics={})
        if self.wrong == "type":
            return grads
        if self.wrong == "raises":
            return grads["no such group"]
        if self.wrong == "value":
            raise ValueError("these tasks are beyond me")
        if self.wrong == "nan":
            grads[first] = grads[first] * float("nan")
        return found._replace(grads=grads)


@dataclass(frozen=True)
class Needy(MAML):
    alpha: float = 0.0

    def __init__(self, alpha):
        pass


@dataclass(frozen=True)
class Lines:
    """y = a x: regression."""

    wrong: str = ""

    def prepare(self, progress):
        return "lines"

    def distribution(self, split, episode, seed):
        return Drawn(self.wrong, episode)


@dataclass(frozen=True)
class Drawn:
    wrong: str
    episode: object
    spec = TaskSpec("regression", None, (1,), (1,))

    def episodes(self, indices):
        def part(n):
            x = torch.linspace(-1, 1, n).view(1, n, 1).repeat(len(indices), 1, 1)
            return Examples(x, x * torch.tensor(indices, dtype=torch.float32).view(-1, 1, 1))
        return Episode(part(self.episode.shots), part(self.episode.queries))


@dataclass(frozen=True)
class Source(Strokes):
    wrong: str = ""

    def distribution(self, split, episode, seed):
        return Spoilt(super().distribution(split, episode, seed), self.wrong)


@dataclass(frozen=True)
class Spoilt:
    right: object
    wrong: str

    @property
    def spec(self):
        return self.right.spec

    def episodes(self, indices):
        found = self.right.episodes(indices)
        x, y = found.support
        spoilt = {
            "shape": (x[..., 1:], y),
            "batch": (x[0], y[0]),
            "dtype": (x.double(), y),
            "labels": (x, y.float()),
            "range": (x, y + 1),
            "nan": (x * float("nan"), y),
        }
        if self.wrong == "type":
            return x, y
        if self.wrong == "raises":
            raise IndexError("no task 0")
        return Episode(Examples(*spoilt.get(self.wrong, (x, y))), found.query)
'''

BROKEN = "import no_such_package\n"

Given = Callable[[Path], object]


def nothing(folder: Path) -> None:
    """What is there for every row is enough."""


def written(content: str | bytes) -> Given:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / "short.yaml").write_bytes(raw)


def mine(folder: Path) -> None:
    (folder / "mine.py").write_text(MINE)
    (folder / "broken.py").write_text(BROKEN)
    (folder / "mute.py").write_text("raise RuntimeError\n")


def zips(damage: Callable[[Path], object] = nothing) -> Given:
    """Omniglot's archives, one of them damaged."""

    def make(folder: Path) -> None:
        damage(drawings.write_zips(folder / "raw") / "images_background.zip")

    return make


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4000])


def undecodable(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("images_background/Aleph/character01/0001_99.png", b"\x89PNG no picture")


def climbing(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../etc/0001_99.png", b"")


def photographs(folder: Path) -> None:
    pictures.write(folder / "photos", pictures.split_files())


def spoilt_photographs(folder: Path) -> None:
    photographs(folder)
    next((folder / "photos").rglob("*.png")).write_bytes(b"no picture")


def stored(damage: Callable[[Path], object] = nothing, version: int = store.FORMAT_VERSION) -> Given:
    """Omniglot, prepared in the folder's own cache by a program of store format `version`, and then damaged."""

    def make(folder: Path) -> None:
        drawings.write_zips(folder / "raw")
        ours, store.FORMAT_VERSION = store.FORMAT_VERSION, version
        try:
            Omniglot(root=str(folder / "raw"), cache=str(folder / "cache")).prepare(lambda done, total: None)
        finally:
            store.FORMAT_VERSION = ours
        damage(next((folder / "cache").rglob("*.arrow")))

    return make


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

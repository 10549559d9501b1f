"""Find the configurations that come with metatrain, by name: those of configs/, which an installed wheel has too."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tasks.io.home import home_path

_CHECKOUT = Path(__file__).parents[2] / "configs"
_INSTALLED = "share/metatrain/configs"


def shipped_configs() -> dict[str, Path]:
    """Return the files by their names without the suffix, in the order of these."""
    folder = next((one for one in _folders() if one.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name: str | Path) -> Path:
    """Return the path of a configuration: a file, or without one of that name and a suffix, one that ships with us."""
    path = home_path(name)
    if path.suffix or len(path.parts) > 1 or path.exists():
        return path
    return shipped_configs().get(str(path), path)


def describe_config(path: Path) -> str:
    """Return the first sentence of the comment that begins a configuration."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return lines[0].removeprefix("#").strip() if lines and lines[0].startswith("#") else ""


def _folders() -> Iterator[Path]:
    """Yield where they may lie: beside the packages in a checkout, or under the prefix of an installed wheel."""
    if (_CHECKOUT.parent / "pyproject.toml").exists():
        yield _CHECKOUT
    yield Path(sysconfig.get_path("data")) / _INSTALLED
    yield from (parent / _INSTALLED for parent in Path(__file__).parents)  # pip install --user, --target or --prefix

"""Put the packages of this installation before modules of the same names in a user's folder, and tell of a clash."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds the packages: site-packages, or a checkout."""
PACKAGES = ("metatrain", "tasks", "cluster", "tune")


def claim() -> None:
    """Import the packages beside this one from ROOT, whatever comes before it on sys.path.

    Raises ImportError, which names the file, where a module of such a name has been imported already.
    """
    for name in PACKAGES[1:]:
        source, module = ROOT / name / "__init__.py", sys.modules.get(name)
        if module is None and source.exists():
            spec = importlib.util.spec_from_file_location(name, source, submodule_search_locations=[str(source.parent)])
            assert spec is not None, "it is a Python file"
            assert spec.loader is not None, "and can be loaded"
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        elif module is not None and source.exists():
            there = Path(getattr(module, "__file__", None) or source)
            if there.resolve() != source:
                raise ImportError(f"{describe_clash(there)}; it has been imported before metatrain")


def find_clashes(folder: Path) -> list[Path]:
    """Return modules and packages in `folder` that have the name of one of ours; none in a checkout of metatrain."""
    if (folder / "metatrain" / "own_packages.py").exists():
        return []
    modules = [folder / f"{name}.py" for name in PACKAGES]
    packages = [folder / name / "__init__.py" for name in PACKAGES]
    return [path for path in (*modules, *packages) if path.is_file()]


def describe_clash(path: Path) -> str:
    """Say in one line what is wrong with a user's module at `path`, and the remedy."""
    name = path.parent.name if path.name == "__init__.py" else path.stem
    return f"{path} has the name of a package of metatrain: it is not importable as '{name}'; rename it to use it"

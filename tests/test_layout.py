"""Check that names tell the layout: unique module docstrings, and a README whose tree names every folder."""

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("cluster", "metatrain", "tasks", "tune")


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in map(Path, listed.splitlines()) if (ROOT / path).exists()]


def test_each_module_has_a_docstring_whose_first_line_is_its_own():
    firsts: Counter[str] = Counter()
    for path in (path for path in tracked() if path.suffix == ".py" and path.parts[0] in PACKAGES):
        docstring = ast.get_docstring(ast.parse((ROOT / path).read_text()))
        assert docstring, f"{path} has no docstring"
        firsts[docstring.splitlines()[0]] += 1
    assert [line for line, count in firsts.items() if count > 1] == []


def test_the_tree_in_the_readme_names_every_folder():
    readme = (ROOT / "README.md").read_text()
    tree = next(block for block in re.findall(r"^```\w*\n(.*?)^```", readme, re.M | re.S) if "metatrain/cli/" in block)
    packages = {path.parent for path in tracked() if path.suffix == ".py" and path.parts[0] in PACKAGES}
    top = {Path(path.parts[0]) for path in tracked() if len(path.parts) > 1 and not path.parts[0].startswith(".")}
    missing = [folder for folder in sorted(packages | top) if not re.search(rf"(^|\s){folder}/(\s|$)", tree, re.M)]
    assert missing == []

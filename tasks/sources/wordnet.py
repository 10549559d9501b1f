"""Read which classes lie below which in a hierarchy such as WordNet, from which Meta-Dataset draws classes together."""

from collections.abc import Sequence
from functools import lru_cache

from tasks.io.files import read_document_text
from tasks.io.home import home_path
from tasks.text import enumerate_few

MOST_LEAVES = 392
"""Classes below a node whose classes are drawn together; a node with more says little (Triantafillou et al. 2020)."""


def classes_below(hierarchy: str, classes: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return the numbers of the `classes` below each inner node of a hierarchy, of 2 to `MOST_LEAVES` of them.

    Nodes with the same classes below them, such as one and its only child, count once. The file has lines "PARENT
    CHILD", as wordnet.is_a.txt of ImageNet. ValueError: it cannot be read so, or a class is not in it.
    """
    parents = _read(hierarchy)
    missing = sorted(set(classes) - parents.keys())
    if missing:
        raise ValueError(
            f"hierarchy: {hierarchy} has no line for {enumerate_few(missing)}: add PARENT CHILD for each class"
        )
    below: dict[str, set[int]] = {}
    for number, name in enumerate(classes):
        for node in _ancestors(name, parents):
            below.setdefault(node, set()).add(number)
    found = {tuple(sorted(numbers)) for numbers in below.values() if 2 <= len(numbers) <= MOST_LEAVES}
    return tuple(sorted(found))


def _ancestors(name: str, parents: dict[str, tuple[str, ...]]) -> set[str]:
    """Return all nodes above one, itself not included unless it is above itself."""
    found: set[str] = set()
    waiting = list(parents[name])
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += parents.get(node, ())
    return found


@lru_cache(2)
def _read(hierarchy: str) -> dict[str, tuple[str, ...]]:
    """Return the parents of each node."""
    try:
        lines = read_document_text(home_path(hierarchy)).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text in UTF-8"
        raise ValueError(f"hierarchy: {hierarchy}: {reason}: use a file of lines PARENT CHILD") from error
    parents: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if words and len(words) != 2:
            raise ValueError(f"hierarchy: {hierarchy}, line {number}: no PARENT CHILD: fix that line")
        if words:
            parents[words[1]] = (*parents.get(words[1], ()), words[0])
    return parents

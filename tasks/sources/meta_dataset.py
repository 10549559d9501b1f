"""Serve a dataset of Meta-Dataset (Triantafillou et al. 2020) as a task source, from its TFRecord files."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, NotRequired, TypedDict

from tasks.io.json_documents import check_json, parse_json
from tasks.sources.image_layout import Layout
from tasks.sources.image_store import ImageFormat, SourceInfo
from tasks.sources.list_files import DatasetFiles
from tasks.sources.listed_images import ListedImages
from tasks.store.archive import OpenArchive
from tasks.store.tfrecords import SUFFIX, open_records
from tasks.text import enumerate_few
from tasks.types import SPLITS, Split

_SPEC = "dataset_spec.json"
_COMPLETE = "replace it by a complete copy"
_KEYS: Mapping[Split, str] = {"train": "TRAIN", "validation": "VALID", "test": "TEST"}
_INFO = SourceInfo(
    "meta_dataset",
    "Meta-Dataset, https://github.com/google-research/meta-dataset",
    "Triantafillou, E., Zhu, T., Dumoulin, V., Lamblin, P., Evci, U., Xu, K., Goroshin, R., Gelada, C., Swersky, K., "
    "Manzagol, P.-A., and Larochelle, H. (2020). Meta-Dataset: a dataset of datasets for learning to learn from few "
    "examples. ICLR.",
    f"{_SPEC}, 0{SUFFIX}, 1{SUFFIX}, … of one dataset, as its conversion writes them",
)


class _Node(TypedDict):
    wn_id: str
    children_ids: list[str]


class _Spec(TypedDict):
    """What is read of dataset_spec.json, whose class with number n has the file n.tfrecords.

    Numbers of classes are those of training first, then of validation, then of test. Of a graph, whose leaves are the
    classes, images are counted by split and id.
    """

    name: str
    file_pattern: str
    class_names: dict[str, str]
    images_per_class: dict[str, Any]
    classes_per_split: NotRequired[dict[str, int]]
    superclasses_per_split: NotRequired[dict[str, int]]
    classes_per_superclass: NotRequired[dict[str, int]]
    split_subgraphs: NotRequired[dict[str, list[_Node]]]


@dataclass(frozen=True)
class MetaDataset(ListedImages):
    """One dataset of Meta-Dataset, from records that the user has converted; several of them are a mixture.

    root: the folder of one dataset, such as RECORDS/aircraft, or a URI of it; no zip. It is only read.
    splits: "auto" for those of dataset_spec.json: of classes, of superclasses (Omniglot's alphabets), or of the leaves
    of a graph (ImageNet). A dataset for testing alone (traffic_sign) has test classes alone. With the sampler
    meta_dataset a task's classes are of one superclass, or those below one node of the graph.
    Others, and other settings: as in ImageFolder.
    """

    info: ClassVar[SourceInfo] = _INFO

    def _format(self) -> ImageFormat:
        return ImageFormat(_find_classes, open_records)


def _find_classes(where: str, contents: OpenArchive) -> Layout:
    specs = [name for name in contents.names if name.rpartition("/")[2] == _SPEC]
    if len(specs) > 1:
        folders = enumerate_few([name.rpartition("/")[0] for name in specs])
        raise ValueError(f"{where} holds several datasets ({folders}): set tasks.root to the folder of one")
    files = DatasetFiles(where, contents, _SPEC, _INFO.forms)
    text = f"{where}: {_SPEC}"
    spec: _Spec = check_json(parse_json(files.read(_SPEC), text, _COMPLETE), _Spec, text, _COMPLETE)
    if spec["file_pattern"] != f"{{}}{SUFFIX}":
        reason = f"file_pattern is '{spec['file_pattern']}', and one file a class is read"
        raise ValueError(f"{text}: {reason}: convert the dataset without shards and pools")
    counts = [_count_classes(spec, split, text) for split in SPLITS]
    total = sum(counts)
    there = set(contents.names)
    missing = [f"{number}{SUFFIX}" for number in range(total) if f"{files.base}{number}{SUFFIX}" not in there]
    if missing:
        raise ValueError(f"{where} lacks {enumerate_few(missing)}: {_COMPLETE}")
    names, ends = _name(spec, total), list(accumulate(counts))
    numbers = {split: range(end - count, end) for split, count, end in zip(SPLITS, counts, ends, strict=True)}
    counted = _count_images(spec, numbers)
    classes = {name: _list_images(counted, number, files, text) for number, name in enumerate(names)}
    splits = {split: [names[number] for number in of_split] for split, of_split in numbers.items()}
    groups = [[names[number] for number in one if number < total] for one in _group(spec, numbers)]
    return Layout(classes, splits, groups=groups, whole_groups="split_subgraphs" in spec)


def _count_classes(spec: _Spec, split: Split, where: str) -> int:
    """Return the number of classes of a split. ValueError: none of the forms of a specification says it."""
    key = _KEYS[split]
    if "classes_per_split" in spec:
        return spec["classes_per_split"].get(key, 0)
    if "superclasses_per_split" in spec and "classes_per_superclass" in spec:
        before = [spec["superclasses_per_split"].get(_KEYS[one], 0) for one in SPLITS[: SPLITS.index(split)]]
        numbers = range(sum(before), sum(before) + spec["superclasses_per_split"].get(key, 0))
        return sum(spec["classes_per_superclass"].get(str(number), 0) for number in numbers)
    if "split_subgraphs" in spec:
        return sum(not node["children_ids"] for node in spec["split_subgraphs"].get(key, []))
    raise ValueError(f"{where} does not say which classes are for training: {_COMPLETE}")


def _name(spec: _Spec, total: int) -> list[str]:
    """Return the name of each class, those of one name with their numbers behind it."""
    names = [spec["class_names"].get(str(number), f"class {number}") for number in range(total)]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names)]


def _count_images(spec: _Spec, numbers: Mapping[Split, range]) -> dict[int, Any]:
    """Return what is said to be the number of images of each class, where anything is."""
    counts = spec["images_per_class"]
    if "split_subgraphs" not in spec:
        return {number: counts.get(str(number)) for of_split in numbers.values() for number in of_split}
    found: dict[int, Any] = {}
    for split, of_split in numbers.items():
        by_id = counts.get(_KEYS[split])
        if isinstance(by_id, dict):
            found |= {number: by_id.get(spec["class_names"].get(str(number))) for number in of_split}
    return found


def _group(spec: _Spec, numbers: Mapping[Split, range]) -> list[list[int]]:
    """Return the numbers of the classes of each superclass, or below each inner node of the graph of a split."""
    if "classes_per_superclass" in spec:
        sizes = [spec["classes_per_superclass"].get(str(one), 0) for one in range(len(spec["classes_per_superclass"]))]
        return [list(range(end - size, end)) for size, end in zip(sizes, accumulate(sizes), strict=True)]
    found = []
    for split, of_split in numbers.items():
        nodes = {node["wn_id"]: node["children_ids"] for node in spec.get("split_subgraphs", {}).get(_KEYS[split], [])}
        number_of = {spec["class_names"].get(str(number)): number for number in of_split}
        below = [_leaves_below(one, nodes) for one, children in nodes.items() if children]
        found += [sorted(number_of[leaf] for leaf in leaves if leaf in number_of) for leaves in below]
    return found


def _leaves_below(node: str, children_of: Mapping[str, list[str]]) -> set[str]:
    """Return the nodes without children below a node of a graph."""
    leaves, seen, waiting = set(), {node}, [node]
    while waiting:
        children = children_of.get(one := waiting.pop(), [])
        if not children:
            leaves.add(one)
        waiting += [child for child in children if child not in seen]
        seen.update(children)
    return leaves


def _list_images(counts: Mapping[int, Any], number: int, files: DatasetFiles, where: str) -> list[str]:
    count = counts.get(number)
    if type(count) is not int or count < 1:
        raise ValueError(f"{where}: images_per_class has no number of images for class {number}: {_COMPLETE}")
    return [f"{files.base}{number}{SUFFIX}/{at:07d}" for at in range(count)]

"""Meta-Dataset's records from miniatures of them: framing, checksums, messages, and the forms of a specification."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.opening import open_tasks
from tasks.ragged_shape import RaggedShape, Range
from tasks.sources.meta_dataset import MetaDataset
from tasks.store.tfrecords import crc32c, list_records, mask, parse_example, read_record
from tasks.types import EpisodeShape, Split, no_progress
from tests import pictures
from tests.command_line import metatrain
from tests.miniatures import RECORDED_NAMES, example, framed, masked_crc, record_files

SPLIT_NAMES = {"train": RECORDED_NAMES[:4], "validation": RECORDED_NAMES[4:7], "test": RECORDED_NAMES[7:]}


def records(root: Path, tmp_path: Path, **given: object) -> MetaDataset:
    return MetaDataset(root=str(root), cache=str(tmp_path / "cache"), **{"size": pictures.SIDE, **given})


# The file format.


def test_the_checksum_is_that_of_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0
    for size in (1, 8, 1023, 1024, 1025, 4096, 33333):
        content = random.Random(size).randbytes(size)
        assert mask(crc32c(content)).to_bytes(4, "little") == masked_crc(content)


def test_records_are_found_and_read(tmp_path: Path) -> None:
    contents = [b"", b"a", bytes(range(256)) * 9]
    (tmp_path / "0.tfrecords").write_bytes(b"".join(map(framed, contents)))
    places = list_records(tmp_path / "0.tfrecords")
    assert [read_record(tmp_path / "0.tfrecords", place) for place in places] == contents


def test_the_messages_that_protobuf_writes_are_read() -> None:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, str]) -> None:
        added = file.message_type.add(name=name)
        for field, number, kind, of in fields:
            label = 3 if of.startswith("repeated") or kind in (12, 3, 2) else 1
            made = added.field.add(name=field, number=number, type=kind, label=label)
            if kind == 11:
                made.type_name = of.removeprefix("repeated ")

    message("BytesList", ("value", 1, 12, ""))
    message("FloatList", ("value", 1, 2, ""))
    message("Int64List", ("value", 1, 3, ""))
    lists = ("bytes_list", 1, 11, ".t.BytesList"), ("float_list", 2, 11, ".t.FloatList")
    message("Feature", *lists, ("int64_list", 3, 11, ".t.Int64List"))
    message("Entry", ("key", 1, 9, ""), ("value", 2, 11, ".t.Feature"))
    message("Features", ("feature", 1, 11, "repeated .t.Entry"))
    message("Example", ("features", 1, 11, ".t.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))()
    entries = made.features.feature
    entries.add(key="embedding").value.float_list.value.extend([1.5, 2.5])
    entries.add(key="label").value.int64_list.value.append(1393)
    entries.add(key="image").value.bytes_list.value.append(b"x" * 300)
    assert parse_example(made.SerializeToString()) == (b"x" * 300, 1393)


@given(cut=st.integers(0, 60), flips=st.lists(st.tuples(st.integers(0, 59), st.integers(1, 255)), max_size=3))
@settings(max_examples=300, deadline=None)
def test_a_damaged_message_is_read_or_refused_in_one_line(cut: int, flips: list[tuple[int, int]]) -> None:
    content = bytearray(example(b"0123456789", 7))[: max(1, cut)]
    for place, change in flips:
        content[place % len(content)] ^= change
    try:
        assert isinstance(parse_example(bytes(content)).image, bytes)
    except ValueError as error:
        assert "\n" not in str(error)


# The source.


def graph(children_of: dict[str, list[str]]) -> list[dict[str, object]]:
    """Return a graph of a split as JSON, with the nodes that have no children too."""
    every = dict.fromkeys([*children_of, *(child for children in children_of.values() for child in children)])
    return [
        {
            "wn_id": name,
            "words": name,
            "children_ids": children_of.get(name, []),
            "parents_ids": [one for one, children in children_of.items() if name in children],
        }
        for name in every
    ]


SPECS: dict[str, dict[str, object]] = {
    "plain": {"classes_per_split": {"TRAIN": 4, "VALID": 3, "TEST": 3}},
    "two levels": {
        "superclasses_per_split": {"TRAIN": 2, "VALID": 1, "TEST": 1},
        "classes_per_superclass": {"0": 1, "1": 3, "2": 3, "3": 3},
        "superclass_names": {"0": "a", "1": "b", "2": "c", "3": "d"},
    },
    "graph": {
        "split_subgraphs": {
            "TRAIN": graph({"n0": ["n1", "n2"], "n1": RECORDED_NAMES[:2], "n2": ["n3"], "n3": RECORDED_NAMES[1:4]}),
            "VALID": graph({"n0": RECORDED_NAMES[4:7]}),
            "TEST": graph({"n0": [RECORDED_NAMES[7], "n1"], "n1": RECORDED_NAMES[8:]}),
        },
        # Inner nodes have a count too, of all images below them.
        "images_per_class": {
            "TRAIN": dict.fromkeys(["n0", "n1", *RECORDED_NAMES[:4]], pictures.COPIES),
            "VALID": dict.fromkeys(["n0", *RECORDED_NAMES[4:7]], pictures.COPIES),
            "TEST": dict.fromkeys(["n0", *RECORDED_NAMES[7:]], pictures.COPIES),
        },
    },
}
GROUPS: dict[str, dict[Split, list[list[int]]]] = {
    "plain": {"train": [], "test": []},
    "two levels": {"train": [[1, 2, 3]], "test": [[0, 1, 2]]},
    "graph": {"train": [[0, 1], [0, 1, 2, 3], [1, 2, 3], [1, 2, 3]], "test": [[0, 1, 2], [1, 2]]},
}


@pytest.mark.parametrize("form", SPECS)
def test_each_form_of_a_specification_gives_every_class_its_own_pictures(tmp_path: Path, form: str) -> None:
    root = pictures.write(tmp_path / "raw", record_files(SPECS[form])) / "kinds"
    source = records(root, tmp_path)
    assert source.data().classes == SPLIT_NAMES
    store = source.store(no_progress)
    for number, kind in enumerate(store.header.classes):
        expected = [pictures.pixels(number, copy) for copy in range(pictures.COPIES)]
        assert np.array_equal(store.images[kind.start : kind.stop], np.stack(expected).transpose(0, 3, 1, 2))
    assert source.distribution("test", EpisodeShape(3, 1, 2), 0).episodes([0]).query.x.shape == (1, 6, 3, 12, 12)


@pytest.mark.parametrize("form", SPECS)
def test_classes_are_drawn_from_a_superclass_or_from_below_a_node(tmp_path: Path, form: str) -> None:
    source = records(pictures.write(tmp_path / "raw", record_files(SPECS[form])), tmp_path)
    for split, expected in GROUPS[form].items():
        found = source.pool(split).groups()
        assert sorted([] if found is None else [one.tolist() for one in found.members]) == expected
        assert found is None or found.whole == (form == "graph")
    shape = RaggedShape(Range(2, 9), sampler="meta_dataset")
    plans = [open_tasks(source, "meta_dataset", "train", shape, 0).plan(index) for index in range(60)]
    if form == "graph":
        assert {tuple(sorted(plan.classes)) for plan in plans} == {(0, 1), (0, 1, 2, 3), (1, 2, 3)}
    if form == "two levels":
        assert {len(plan.classes) for plan in plans} == {2, 3} and all(0 not in plan.classes for plan in plans)
    lists = {"train": RECORDED_NAMES[3:], "valid": [RECORDED_NAMES[2]], "test": RECORDED_NAMES[:2]}
    (tmp_path / "other.json").write_text(json.dumps(lists))
    other = records(tmp_path / "raw", tmp_path, splits=str(tmp_path / "other.json")).pool("test").groups()
    assert (None if other is None else [one.tolist() for one in other.members]) == (
        [[0, 1]] * 2 if form == "graph" else None
    )


def test_a_dataset_for_testing_alone(tmp_path: Path) -> None:
    root = pictures.write(tmp_path / "raw", record_files({"classes_per_split": {"TRAIN": 0, "VALID": 0, "TEST": 10}}))
    assert records(root, tmp_path).data().classes == {"train": [], "validation": [], "test": RECORDED_NAMES}


def test_classes_of_few_images_are_left_out_and_lists_of_meta_dataset_are_read(tmp_path: Path) -> None:
    root = pictures.write(tmp_path / "raw", record_files())
    lists = {"train": RECORDED_NAMES[5:], "valid": RECORDED_NAMES[:2], "test": RECORDED_NAMES[2:4]}
    (tmp_path / "kinds_splits.json").write_text(json.dumps(lists))
    found = records(root, tmp_path, splits=str(tmp_path / "kinds_splits.json")).data().classes
    assert found == {"train": RECORDED_NAMES[5:], "validation": RECORDED_NAMES[:2], "test": RECORDED_NAMES[2:4]}
    (tmp_path / "wrong.json").write_text(json.dumps({"trian": []}))
    with pytest.raises(ValueError, match=r"wrong\.json: 'trian' is no split: use"):
        records(root, tmp_path, splits=str(tmp_path / "wrong.json")).prepare(no_progress)
    files = record_files()
    spec = json.loads(files["kinds/dataset_spec.json"])
    spec["images_per_class"]["1"] = 2
    files["kinds/dataset_spec.json"] = json.dumps(spec).encode()
    few = records(pictures.write(tmp_path / "few", files), tmp_path, min_examples=3).data()
    assert few.classes["train"] == ["kind 0", "kind 2", "kind 3"]
    assert "left out: 1 class of fewer than 3 images: kind 1 (2)" in few.notes


def test_a_damaged_record_is_named_or_left_out(tmp_path: Path) -> None:
    files = record_files()
    content = bytearray(files["kinds/3.tfrecords"])
    content[-20] ^= 1
    files["kinds/3.tfrecords"] = bytes(content)
    files["kinds/4.tfrecords"] = files["kinds/5.tfrecords"]
    root = pictures.write(tmp_path / "raw", files)
    with pytest.raises(
        ValueError, match=r"9 files do not decode .*3\.tfrecords/0000007 \(damaged: it does not match its c"
    ):
        records(root, tmp_path).prepare(no_progress)
    left_out = records(root, tmp_path, on_bad_image="skip").data()
    assert left_out.examples == 71
    assert any("4.tfrecords/0000000 (damaged: its label is 5)" in note for note in left_out.notes)


def changed(**parts: object) -> dict[str, bytes]:
    files = record_files()
    spec = json.loads(files["kinds/dataset_spec.json"]) | parts
    files["kinds/dataset_spec.json"] = json.dumps(
        {key: part for key, part in spec.items() if part is not None}
    ).encode()
    return files


def with_records(change: bytes | int) -> dict[str, bytes]:
    files = record_files()
    content = files["kinds/2.tfrecords"]
    files["kinds/2.tfrecords"] = content[:change] if isinstance(change, int) else change + content
    return files


REFUSED: dict[str, tuple[dict[str, bytes], str]] = {
    "another folder": (
        {"a.txt": b""},
        r"raw has no dataset_spec\.json: set tasks\.root to a .* 0\.tfrecords, 1\.tfrec",
    ),
    "several": (
        {**record_files(), "more/dataset_spec.json": b""},
        r"raw holds several datasets \(kinds, more\): set tasks\.root to the folder of one",
    ),
    "no JSON": ({"dataset_spec.json": b"{"}, r"raw: dataset_spec\.json: not JSON: replace it"),
    "no names": (changed(class_names=None), r"dataset_spec\.json: 'class_names' is missing: replace it"),
    "no splits": (
        changed(classes_per_split=None),
        r"dataset_spec\.json does not say which classes are for training: rep",
    ),
    "shards": (
        changed(file_pattern="{}_{}.tfrecords"),
        r"file_pattern is '\{\}_\{\}\.tfrecords', and one file a class is",
    ),
    "no number of images": (
        changed(images_per_class={"0": 8}),
        r"images_per_class has no number of images for class 1:",
    ),
    "no number of images of a leaf": (
        record_files({**SPECS["graph"], "images_per_class": {"TRAIN": {"n0": 8}}}),
        r"images_per_class has no number of images for class 0:",
    ),
    "a node without children": (
        record_files({"split_subgraphs": {"TRAIN": [{"wn_id": "n0"}]}}),
        r"dataset_spec\.json: .*children_ids",
    ),
    "pools": (changed(images_per_class={"0": {"train": 8}}), r"images_per_class has no number of images for class 0:"),
    "a file is missing": (
        {
            name: content
            for name, content in record_files().items()
            if not name.endswith(("/2.tfrecords", "9.tfrecords"))
        },
        r"raw lacks 2\.tfrecords, 9\.tfrecords: replace it by a complete copy",
    ),
    "fewer records": (with_records(0), r"2\.tfrecords has 0 records, and should have more: replace it"),
    "a cut file": (with_records(-3), r"2\.tfrecords ends within record 7: replace it"),
    "a cut head": (with_records(5), r"2\.tfrecords: record 0 has a damaged length: replace it"),
    "no records": (with_records(b"some other file"), r"2\.tfrecords: record 0 has a damaged length: replace it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_copy_that_is_not_whole_is_told_in_one_line(tmp_path: Path, case: str) -> None:
    files, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        records(pictures.write(tmp_path / "raw", files), tmp_path).prepare(no_progress)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_a_zip_is_refused(tmp_path: Path) -> None:
    root = pictures.write_zip(tmp_path / "a.zip", record_files())
    with pytest.raises(ValueError, match=r"a\.zip is a zip, and records are read from a folder: unpack it"):
        records(root, tmp_path).prepare(no_progress)


def test_the_command_line_says_it_and_exits_with_2(tmp_path: Path) -> None:
    pictures.write(tmp_path / "raw", with_records(-3))
    done = metatrain(tmp_path, "data", "prepare", "meta_dataset", "root=raw", expect=2)
    assert "2.tfrecords ends within record 7" in " ".join(done.err.split())

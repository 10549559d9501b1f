"""The store format, its atomic writing, and every way in which a file can be wrong."""

import hashlib
import json
import os
import pickle
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tasks.io.atomic import atomic_write
from tasks.store import store as store_module
from tasks.store.archive import Archive, find_archive, open_archive
from tasks.store.cache import FileChecksum, build_once, cache_root, content_key
from tasks.store.class_pool import StorePool
from tasks.store.store import ClassSlice, Header, Images, open_store, write_store

HEADER = Header(
    name="tiny",
    image_shape=(2, 3, 4),
    classes=(ClassSlice("a/one", 0, 3), ClassSlice("a/two", 3, 8)),
    splittings={"characters": {"train": (0,), "test": (1,)}},
    source="here",
    citation="nobody",
    preprocessing="none",
)


def some_images() -> Images:
    return np.arange(8 * 24, dtype=np.uint8).reshape(8, 2, 3, 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_store(tmp_path / "tiny.arrow", HEADER, some_images())
    return tmp_path / "tiny.arrow"


def test_what_is_written_is_read(path: Path) -> None:
    store = open_store(path)
    assert store.header == HEADER
    assert np.array_equal(store.images, some_images())


def test_images_are_the_mapping_itself_and_read_only(path: Path) -> None:
    store = open_store(path)
    assert not store.images.flags.owndata
    assert not store.images.flags.writeable
    assert pa.total_allocated_bytes() == 0


def test_any_arrow_reader_opens_it(path: Path) -> None:
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table.column_names == ["image"]
    assert table.num_rows == 8


def test_pickles_by_path_and_shares_its_mapping(path: Path) -> None:
    store = open_store(path)
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    assert pickle.loads(pickled) is store


def test_a_store_built_anew_in_the_same_place_is_read_anew(path: Path) -> None:
    open_store(path)
    write_store(path, HEADER, some_images()[::-1])
    assert np.array_equal(open_store(path).images, some_images()[::-1])


def test_pool_gathers_scales_and_turns(path: Path) -> None:
    square = Header("sq", (1, 3, 3), (ClassSlice("x", 0, 2), ClassSlice("y", 2, 4)), {}, "", "", "")
    images = np.arange(36, dtype=np.uint8).reshape(4, 1, 3, 3) * 7
    write_store(path, square, images)
    pool = StorePool("sq", open_store(path), (1, 0), turns=4)
    classes, members = np.array([0, 1, 3, 4, 7]), np.array([1, 0, 1, 0, 1])
    expected = [
        np.rot90(images[2 * (1 - c % 2) + m], c // 2, axes=(1, 2)) for c, m in zip(classes, members, strict=True)
    ]
    assert np.allclose(pool.examples(classes, members).numpy(), np.stack(expected) / 255, atol=1e-7)
    assert pool.class_names(classes) == ["y", "x", "x 90°", "y 180°", "x 270°"]
    assert pool.num_classes == 8
    assert pool.min_class_size == 2


def test_full_ink_is_exactly_one(path: Path) -> None:
    write_store(path, HEADER, np.full((8, 2, 3, 4), 255, dtype=np.uint8))
    pool = StorePool("white", open_store(path), (0, 1))
    assert (pool.examples(np.array([0]), np.array([0])) == 1).all()


def test_every_flipped_byte_is_noticed_or_harmless(path: Path) -> None:
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        os.utime(path, ns=(at, at))
        try:
            store = open_store(path)
        except ValueError as error:
            assert "metatrain data prepare" in str(error)
            assert "\n" not in str(error)
            refused += 1
        else:
            assert store.header == HEADER
            assert np.array_equal(store.images, some_images())
    assert refused > len(whole) / 3 * 0.2


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_store_is_refused_with_the_remedy(path: Path, kept: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match=r"delete it and run `metatrain data prepare"):
        open_store(path)


def test_a_store_of_another_version_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "FORMAT_VERSION", 99)
    with pytest.raises(ValueError, match=r"has format version 1, and this program reads 99; delete it"):
        open_store(path)


def test_a_foreign_arrow_file_is_refused(path: Path) -> None:
    table = pa.table({"image": [1, 2, 3]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)
    with pytest.raises(ValueError, match="delete it"):
        open_store(path)


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `metatrain data prepare NAME`"):
        open_store(tmp_path / "none.arrow")


def test_a_failed_write_leaves_what_was_there(path: Path) -> None:
    before = path.read_bytes()

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_takes_its_place_has_the_mode_of_any_new_file(path: Path) -> None:
    usual = path.parent / "usual"
    usual.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


def test_a_full_disk_says_what_to_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*free some space, or set tasks\.cache"):
        write_store(path.parent / "other.arrow", HEADER, some_images())
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]


def test_cache_root_in_order_of_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METATRAIN_CACHE", str(tmp_path / "env"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root(str(tmp_path / "set")) == tmp_path / "set"
    assert cache_root(None) == tmp_path / "env"
    monkeypatch.delenv("METATRAIN_CACHE")
    assert cache_root(None) == tmp_path / "xdg" / "metatrain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root(None) == Path.home() / ".cache" / "metatrain"


BUILDER = """
import sys, time
from pathlib import Path
from tasks.store.cache import build_once

def build(path):
    with (Path(sys.argv[1]) / "builds").open("a") as log:
        log.write("x")
    time.sleep(0.5)
    path.write_text("built")

print("ready", flush=True)
sys.stdin.readline()
print(build_once(Path(sys.argv[1]), "tiny", "key", build).read_text())
"""


def test_processes_that_ask_together_build_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILDER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    builders = [subprocess.Popen(command, cwd=Path(__file__).parents[1], **pipes) for _ in range(3)]
    for builder in builders:
        assert builder.stdout.readline() == "ready\n"
    for builder in builders:
        builder.stdin.write("go\n")
        builder.stdin.flush()
    assert [builder.communicate()[0] for builder in builders] == ["built\n"] * 3
    assert (tmp_path / "builds").read_text() == "x"


def test_an_unwritable_cache_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"set tasks\.cache=FOLDER"):
        build_once(tmp_path / "file", "tiny", "key", lambda _: None)


def _archives(tmp_path: Path) -> tuple[Path, Path]:
    """The same three files as a zip and as a folder."""
    contents = {"a/1.png": b"one", "a/2.png": b"two", "b/1.png": b"three", "b/notes.txt": b"no", ".hidden/1.png": b"no"}
    zipped, unpacked = tmp_path / "zipped", tmp_path / "unpacked"
    zipped.mkdir()
    with zipfile.ZipFile(zipped / "raw.zip", "w") as out:
        for name in reversed(contents):
            out.writestr(f"raw/{name}", contents[name])
    for name, content in contents.items():
        (unpacked / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (unpacked / "raw" / name).write_bytes(content)
    return zipped, unpacked


def _checksums(archive: Archive) -> list[FileChecksum]:
    with open_archive(archive) as found:
        return [found.checksum(name) for name in found.names if name.endswith(".png")]


def test_a_zip_and_its_unpacked_folder_have_one_key_and_content(tmp_path: Path) -> None:
    listings, contents = [], []
    for root in _archives(tmp_path):
        archive = find_archive([root], "raw")
        assert archive is not None
        listings.append(_checksums(archive))
        with open_archive(archive) as found:
            contents.append([found.read(file.name) for file in listings[-1]])
    assert listings[0] == listings[1]
    assert contents[0] == contents[1] == [b"one", b"two", b"three"]
    assert content_key(listings[0], "p", 1) == content_key(listings[1][::-1], "p", 1)


def test_the_key_changes_with_content_preprocessing_and_version(tmp_path: Path) -> None:
    _, unpacked = _archives(tmp_path)
    archive = find_archive([unpacked], "raw")
    assert archive is not None
    before = _checksums(archive)
    (unpacked / "raw/a/1.png").write_bytes(b"One")
    after = _checksums(archive)
    keys = [content_key(before, "p", 1), content_key(after, "p", 1), content_key(before, "q", 1)]
    assert len({*keys, content_key(before, "p", 2)}) == 4


@pytest.mark.parametrize("name", ["../raw/a.png", "/raw/a.png", "raw/../../a.png", "..\\a.png", "C:\\a.png"])
def test_a_zip_entry_that_climbs_out_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "raw.zip", "w") as out:
        out.writestr(name, b"x")
    archive = find_archive([tmp_path], "raw")
    assert archive is not None
    with pytest.raises(ValueError, match="leads outside its folder, or can be no file's name: replace it by"):
        _checksums(archive)


def test_the_header_is_plain_json(path: Path) -> None:
    with pa.memory_map(str(path)) as source:
        metadata = pa.ipc.open_file(source).schema.metadata
    header = json.loads(metadata[b"metatrain.header"])
    assert header["classes"][1] == {"name": "a/two", "start": 3, "stop": 8}


@pytest.mark.parametrize(
    "changed",
    [
        {"classes": 3},
        {"classes": [{"name": "a", "start": -5, "stop": 2}]},
        {"image_shape": [1, 2]},
        {"image_shape": [0, 2, 2]},
        {"splittings": {"all": {"train": [99]}}},
        {"name": None},
        {"splittings": [[[]]]},
    ],
    ids=str,
)
def test_a_forged_header_is_refused(tmp_path: Path, changed: dict[str, object]) -> None:
    path = tmp_path / "forged.arrow"
    header = Header("x", (1, 2, 2), (ClassSlice("a", 0, 2),), {"all": {"train": (0,)}}, "", "", "")
    write_store(path, header, np.zeros((2, 1, 2, 2), np.uint8))
    table = pa.ipc.open_file(str(path)).read_all()
    text = json.dumps(json.loads(table.schema.metadata[b"metatrain.header"]) | changed).encode()
    digest = hashlib.sha256(text).hexdigest().encode()
    forged = table.replace_schema_metadata({b"metatrain.header": text, b"metatrain.header_sha256": digest})
    with pa.ipc.new_file(str(path), forged.schema) as writer:
        writer.write_table(forged)
    with pytest.raises(ValueError, match=r"cannot use the store .*: its header.*; delete it"):
        open_store(path)

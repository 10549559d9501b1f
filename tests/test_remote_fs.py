"""Task data behind URIs: a real S3 server, a proxy that fails on purpose, and processes that ask at the same time."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.io import remote_fs
from tasks.io.remote_fs import child, download, parse_uri
from tasks.sources.features import Features
from tasks.sources.image_folder import ImageFolder
from tasks.sources.mini_imagenet import MiniImageNet
from tasks.sources.omniglot import Omniglot
from tasks.store.cache import cache_root
from tasks.types import EpisodeShape, no_progress
from tests import drawings, pictures
from tests.fault_proxy import FaultProxy, Faults
from tests.object_store import ROOT, ObjectStore
from tests.remote_pictures import (
    NAMES,
    connect_through_proxy,
    fail_if_built,
    find_gets,
    images,
    prepare_error,
    serve_pictures,
    upload,
)

SHAPE = EpisodeShape(2, 1, 1)
FAULTS = Faults(refuse=0.09, lose=0.05, cut=0.05, stall=0.02, stall_seconds=0.2)

Machine = Callable[[str], Path]
Source = Omniglot | ImageFolder | MiniImageNet


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with serve_pictures(tmp_path_factory.mktemp("server")) as store:
        yield store


@pytest.fixture
def proxy(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with connect_through_proxy(server, monkeypatch) as between:
        yield between


@pytest.fixture
def shared(server: ObjectStore) -> str:
    """A bucket of the test's own, for a shared cache."""
    bucket = f"cache-{time.time_ns()}"
    server.make_bucket(bucket)
    return f"s3://{bucket}/metatrain"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """As many machines as a test needs, each with a cache of its own. This process is now on the one named."""

    def move(name: str) -> Path:
        monkeypatch.setenv("METATRAIN_CACHE", str(tmp_path / name))
        return tmp_path / name

    move("first")
    return move


def test_vectors_on_s3_are_those_here(server: ObjectStore, proxy: FaultProxy, machine: Machine, tmp_path: Path) -> None:
    labels = np.array([f"c{number // 4}" for number in range(24)])
    np.savez(tmp_path / "v.npz", x=np.arange(72.0).reshape(24, 3), **{"class": labels})
    upload(server, "raw", "vectors", {"v.npz": (tmp_path / "v.npz").read_bytes()})
    here, there = (Features(root).data() for root in (str(tmp_path / "v.npz"), "s3://raw/vectors/v.npz"))
    assert there.fingerprint == here.fingerprint and there.examples == 24
    with pytest.raises(ValueError, match=r"s3://raw/vectors/w\.npz does not exist, or is empty: set tasks\.root"):
        Features("s3://raw/vectors/w.npz").data()


@pytest.mark.parametrize("form", ["some.zip", "tables"])
@pytest.mark.parametrize("kind", [ImageFolder, MiniImageNet])
def test_images_on_s3_give_what_they_give_here(
    server: ObjectStore, proxy: FaultProxy, machine: Machine, tmp_path: Path, kind: type[ImageFolder], form: str
) -> None:
    here = pictures.write(tmp_path / "here", pictures.table_files())
    zipped = pictures.write_zip(tmp_path / "some.zip", pictures.table_files()).read_bytes()
    upload(
        server,
        "raw",
        "forms",
        {"some.zip": zipped}
        if form == "some.zip"
        else {f"tables/{name}": c for name, c in pictures.table_files().items()},
    )
    local = kind(root=str(here), cache=str(tmp_path / "local"), size=pictures.SIDE)
    remote = kind(root=f"s3://raw/forms/{form}", size=pictures.SIDE)
    paths = [Path(source.store(no_progress).path) for source in (local, remote)]
    assert paths[0].name == paths[1].name
    assert paths[0].read_bytes() == paths[1].read_bytes()
    episodes = [source.distribution("train", SHAPE, 3).episodes(range(4)) for source in (local, remote)]
    assert torch.equal(episodes[0].support.x, episodes[1].support.x)
    assert torch.equal(episodes[0].query.x, episodes[1].query.x)


def test_omniglot_on_s3_copies_its_zips_alone(
    server: ObjectStore, proxy: FaultProxy, machine: Machine, tmp_path: Path
) -> None:
    here = drawings.write_zips(tmp_path / "here")
    archives = {f"omniglot-py/{path.name}": path.read_bytes() for path in here.iterdir()}
    unpacked = {"omniglot-py/images_background/Aleph/character01/0001_01.png": b"", "other/large.bin": b"none of it"}
    upload(server, "raw", "omniglot", archives | unpacked)
    found = Omniglot(root="s3://raw/omniglot").store(no_progress)
    expected = Omniglot(root=str(here), cache=str(tmp_path / "local")).store(no_progress)
    assert Path(found.path).read_bytes() == Path(expected.path).read_bytes()
    assert sorted(request.path for request in find_gets(proxy, "")) == [
        "/raw",
        *sorted(f"/raw/omniglot/{name}" for name in archives),
    ]


def test_a_fifth_of_all_requests_failing_changes_nothing(
    proxy: FaultProxy, machine: Machine, shared: str, tmp_path: Path
) -> None:
    here = pictures.write(tmp_path / "here", pictures.class_files(NAMES))
    expected = Path(images(here, str(tmp_path / "local")).store(no_progress).path)
    proxy.faults = FAULTS
    for name, progress in (("first", no_progress), ("second", fail_if_built)):
        machine(name)
        found = Path(images("s3://raw/classes", shared).store(progress).path)
        assert found.read_bytes() == expected.read_bytes()
    met = [request.fault for request in proxy.requests() if request.fault]
    assert len(met) > len(proxy.requests()) * 0.12
    assert set(met) == {"refuse", "lose", "cut", "stall"}


def test_a_file_of_many_blocks_arrives_whole(
    server: ObjectStore, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: str
) -> None:
    monkeypatch.setattr(remote_fs, "_BLOCK", 2**12)
    (tmp_path / "sent").write_bytes(os.urandom(20 * 2**12 + 5))
    proxy.faults = FAULTS
    target = child(parse_uri(shared), "a b%20c é")
    remote_fs.upload(tmp_path / "sent", target)
    assert server.keys(shared.split("/")[2]) == ["metatrain/a b%20c é"]
    assert download(target, tmp_path / "came") == 20 * 2**12 + 5
    assert (tmp_path / "came").read_bytes() == (tmp_path / "sent").read_bytes()
    assert any(request.fault == "cut" for request in find_gets(proxy, ""))


ASKER = """
import os, sys
from tasks.sources.image_folder import ImageFolder

for cache in sys.argv[3:]:
    print("ready", flush=True)
    sys.stdin.readline()
    os.environ["METATRAIN_CACHE"] = cache
    print(ImageFolder(root=sys.argv[1], cache=sys.argv[2], size=12).store(lambda done, total: None).path, flush=True)
"""


def test_two_processes_copy_raw_files_once_and_fetch_a_store_once(
    proxy: FaultProxy, shared: str, tmp_path: Path
) -> None:
    proxy.faults = Faults(stall=1, stall_seconds=0.03)
    caches = [str(tmp_path / "first"), str(tmp_path / "second")]
    command = [sys.executable, "-c", ASKER, "s3://raw/classes", shared, *caches]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    askers = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    counts = []
    for _ in caches:
        assert [asker.stdout.readline() for asker in askers] == ["ready\n"] * 2
        for asker in askers:
            asker.stdin.write("go\n")
            asker.stdin.flush()
        assert len({asker.stdout.readline() for asker in askers}) == 1
        counts.append([len(find_gets(proxy, end)) for end in (".png", ".arrow")])
    for asker in askers:
        asker.communicate()
        assert asker.returncode == 0
    files = len(pictures.class_files(NAMES))
    assert counts == [[files, 0], [files, 1]]
    assert len([r for r in proxy.requests() if r.method == "PUT"]) <= 3  # a store, and a note from each process


def test_another_machine_asks_for_a_listing_a_note_and_a_store(
    server: ObjectStore, proxy: FaultProxy, machine: Machine, shared: str
) -> None:
    first = images("s3://raw/classes", shared).store(no_progress)
    assert [Path(key).suffix for key in server.keys(shared.split("/")[2])] in ([".arrow", ".key"], [".key", ".arrow"])
    count = len(proxy.requests())
    cache = machine("second")
    second = images("s3://raw/classes", shared).store(fail_if_built)
    asked = [(r.method, r.path if r.path == "/raw" else Path(r.path).suffix) for r in proxy.requests()[count:]]
    assert asked == [("GET", "/raw"), ("HEAD", ".key"), ("GET", ".key"), ("HEAD", ".arrow"), ("GET", ".arrow")]
    assert Path(second.path).is_relative_to(cache)
    assert Path(second.path).read_bytes() == Path(first.path).read_bytes()
    assert not (cache / "raw").exists()
    count = len(proxy.requests())
    images("s3://raw/classes", shared).store(fail_if_built)
    assert [r.path for r in proxy.requests()[count:]] == ["/raw"]


def test_another_size_and_other_files_are_another_store(
    server: ObjectStore, proxy: FaultProxy, machine: Machine, shared: str
) -> None:
    upload(server, "raw", "changing", pictures.class_files(NAMES))
    source = images("s3://raw/changing", shared)
    stores = [source.store(no_progress), replace(source, size=6).store(no_progress)]
    upload(server, "raw", "changing", {"class_0/0.png": pictures.encoded(pictures.pixels(5, 5))})
    stores.append(source.store(no_progress))
    assert len({store.path for store in stores}) == 3


@pytest.mark.parametrize("place", ["s3", "file"])
def test_a_store_that_is_here_already_is_shared(
    proxy: FaultProxy, machine: Machine, shared: str, tmp_path: Path, place: str
) -> None:
    cache = shared if place == "s3" else (tmp_path / "a shared").as_uri()
    here = pictures.write(tmp_path / "here", pictures.class_files(NAMES))
    images(here).store(no_progress)
    path = images(here, cache).store(fail_if_built).path
    machine("second")
    there = pictures.write(tmp_path / "there", pictures.class_files(NAMES))
    fetched = images(there, cache).store(fail_if_built)
    assert Path(fetched.path).read_bytes() == Path(path).read_bytes()
    assert fetched.path != path
    assert not [name for name in tmp_path.rglob(".*") if name.is_file()]


def test_raw_files_behind_a_file_uri(machine: Machine, tmp_path: Path) -> None:
    here = pictures.write(tmp_path / "with space", pictures.class_files(NAMES) | {".git/0.png": b"no"})
    found = images(here.as_uri()).store(no_progress)
    assert Path(found.path).name == Path(images(here, str(tmp_path / "local")).store(no_progress).path).name
    assert not list((tmp_path / "first/raw").rglob(".git"))


def damage(server: ObjectStore, shared: str, suffix: str) -> str:
    """Damage what ends so in the shared cache. Returns its URI."""
    bucket = shared.split("/")[2]
    (key,) = [key for key in server.keys(bucket) if key.endswith(suffix)]
    content = bytearray(server.client().get_object(Bucket=bucket, Key=key)["Body"].read())
    content[len(content) // 2] ^= 0x40
    server.client().put_object(Bucket=bucket, Key=key, Body=bytes(content))
    return f"s3://{bucket}/{key}"


def test_a_damaged_store_in_the_shared_cache_is_refused(
    server: ObjectStore, proxy: FaultProxy, machine: Machine, shared: str
) -> None:
    images("s3://raw/classes", shared).store(no_progress)
    uri = damage(server, shared, ".arrow")
    machine("second")
    said = prepare_error(images("s3://raw/classes", shared))
    assert said.startswith(f"{uri} is damaged (its images do not match their checksum): delete it there, and run `meta")
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    server.client().delete_object(Bucket=bucket, Key=key)
    images("s3://raw/classes", shared).store(no_progress)
    machine("third")
    images("s3://raw/classes", shared).store(fail_if_built)


def test_a_damaged_note_in_the_shared_cache_is_written_anew(
    server: ObjectStore, proxy: FaultProxy, machine: Machine, shared: str
) -> None:
    images("s3://raw/classes", shared).store(no_progress)
    damage(server, shared, ".key")
    for name in ("second", "third"):
        machine(name)
        images("s3://raw/classes", shared).store(fail_if_built)
    assert (cache_root(None) / "raw").exists() is False

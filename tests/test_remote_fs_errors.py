"""Task data behind URIs that cannot be had: each is one line that says what to do, and comes soon."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.io.remote_fs import FileEntry, is_uri, list_files, parse_uri
from tasks.sources.omniglot import Omniglot
from tasks.store.cache import cache_root
from tasks.store.store_cache import _copy_raw_files
from tasks.types import no_progress
from tests import drawings, pictures
from tests.fault_proxy import FaultProxy, Faults
from tests.object_store import ObjectStore
from tests.remote_pictures import (
    NAMES,
    connect_through_proxy,
    deny_action,
    fail_if_built,
    find_gets,
    images,
    prepare_error,
    serve_pictures,
    upload,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with serve_pictures(tmp_path_factory.mktemp("server")) as store:
        yield store


@pytest.fixture
def proxy(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with connect_through_proxy(server, monkeypatch) as between:
        yield between


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METATRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_damaged_is_called_as_the_user_called_it(
    server: ObjectStore, proxy: FaultProxy, tmp_path: Path
) -> None:
    zips = {path.name: path.read_bytes() for path in drawings.write_zips(tmp_path / "here").iterdir()}
    upload(server, "damaged", "a", zips | {"images_evaluation.zip": zips["images_evaluation.zip"][:900]})
    said = prepare_error(Omniglot(root="s3://damaged/a"))
    assert said.startswith("s3://damaged/a/images_evaluation.zip is not a complete zip (")
    assert f"replace it by a complete copy (copied to {tmp_path}" in said
    upload(server, "damaged", "b", {"images_background.zip": zips["images_background.zip"]})
    assert prepare_error(Omniglot(root="s3://damaged/b")).startswith(
        "s3://damaged/b has no images_evaluation: set tasks.root"
    )


def test_a_copy_that_is_not_what_was_listed_is_none(proxy: FaultProxy, tmp_path: Path) -> None:
    folder, entries = list_files(parse_uri("s3://raw/classes"))
    longer = entries[1]._replace(size=entries[1].size + 1)
    with pytest.raises(ValueError, match=rf"s3://raw/classes/{longer.name} has .* when listed: retry") as error:
        _copy_raw_files(tmp_path, folder, [entries[0], longer])
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"s3://raw/classes: '\.\./up' leads outside its folder"):
        _copy_raw_files(tmp_path, folder, [FileEntry("../up", 1, 0)])
    assert not [
        path for path in (tmp_path / "raw").iterdir() if not path.name.endswith(".lock") and path.name[0] != "."
    ]


DENIED = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of an account that may"


@pytest.mark.parametrize(
    ("root", "environment", "message"),
    [
        ("s3://none-such/x", {}, "s3://none-such/x: there is no such bucket: create none-such, or fix its name"),
        ("s3://raw/none", {}, "s3://raw/none does not exist, or is empty: set tasks.root to"),
        ("s3://denied/x", {}, f"s3://denied/x/0.png: access denied (ACCESS_DENIED): {DENIED} read it"),
        (
            "s3://denied/x",
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            f"s3://denied/x/0.png: access denied (AWS_ACCESS_KEY_ID is not set): {DENIED} read it",
        ),
        (
            "s3://raw/classes",
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
            "s3://raw/classes: no answer at http://127.0.0.1:1 (Connection refused): set AWS_ENDPOINT_URL to",
        ),
        (
            "s3://raw/classes",
            {"AWS_ENDPOINT_URL": "127.0.0.1:1"},
            "AWS_ENDPOINT_URL is '127.0.0.1:1': set it to http://HOST:PORT",
        ),
        ("s3://", {}, "s3:// names no bucket: use s3://BUCKET/FOLDER"),
        ("foo://bar", {}, "cannot use foo://bar (Unrecognized filesystem type"),
    ],
)
def test_a_root_that_cannot_be(
    server: ObjectStore,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    root: str,
    environment: dict[str, str],
    message: str,
) -> None:
    if "denied" in root:
        deny_action(server, "denied", "s3:GetObject")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert prepare_error(images(root)).startswith(message)
    assert len(proxy.requests()) <= 3, "what cannot help is not tried again"


def test_an_endpoint_that_has_gone_is_noticed_soon(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultProxy(server.url, Faults(), 7) as proxy:
        for name, value in server.environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        path = parse_uri("s3://raw/classes")
    begun = time.monotonic()
    with pytest.raises(ConnectionError, match=r"no answer at http://.*: set AWS_ENDPOINT_URL"):
        list_files(path)
    assert time.monotonic() - begun < 20


def test_a_shared_cache_that_cannot_be(server: ObjectStore, proxy: FaultProxy, tmp_path: Path) -> None:
    said = prepare_error(images("s3://raw/classes", "s3://none-such/cache"))
    assert said == "s3://none-such/cache: there is no such bucket: create none-such, or fix its name"
    assert not find_gets(proxy, ".png"), "it is noticed before anything is copied"
    deny_action(server, "read-only", "s3:PutObject")
    here = pictures.write(tmp_path / "here", pictures.class_files(NAMES))
    with pytest.raises(
        PermissionError, match=rf"^s3://read-only/image_folder/.*arrow: access denied .*: {DENIED} write"
    ):
        images(here, "s3://read-only").store(no_progress)
    # What was built is kept here.
    images(here).store(fail_if_built)


def test_a_uri_is_told_from_a_path_and_leaves_the_cache_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert [is_uri(text) for text in ("s3://b/x", "file:///x", "/x", "~/x", "x", "s3:/b", "a b://x")] == [True] * 2 + [
        False
    ] * 5
    monkeypatch.setenv("METATRAIN_CACHE", str(tmp_path))
    assert cache_root("s3://bucket/cache") == cache_root(None) == tmp_path
    monkeypatch.setenv("METATRAIN_CACHE", "s3://bucket/cache")
    with pytest.raises(ValueError, match=r"METATRAIN_CACHE is s3://bucket/cache: set it to a folder of this machine"):
        cache_root(None)

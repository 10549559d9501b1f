"""Files that strangers hand over: names and links that lead elsewhere, documents that grow without bounds."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from metatrain import runs
from metatrain.runs import checkpoints
from metatrain.runs.head import parse_head
from metatrain.tracking.jsonl import JsonlRecorder
from tasks.io.atomic import atomic_write
from tasks.io.names import check_name, resolve_within
from tune.history.journal import Journal

OUTSIDE = [
    "/etc/passwd",
    "../victim",
    "a/../../victim",
    "..",
    ".",
    "",
    "a//b",
    "a/",
    "./a",
    "..\\victim",
    "a\\b",
    "C:\\a",
    "C:a",
    "a\0b",
    "a\nb",
    "a\x1b[2Jb",
    "x" * 256,
    "/".join(["abc"] * 400),
    None,
    7,
    ["a"],
]


@pytest.mark.parametrize("name", OUTSIDE, ids=lambda name: ascii(name)[:20])
def test_a_name_that_leads_out_of_its_folder_is_refused_in_one_line(name: object) -> None:
    with pytest.raises(ValueError, match=r"^head\.json: .* leads outside its folder") as refusal:
        check_name(name, "head.json")
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 250


@pytest.mark.parametrize("name", ["run.json", "checkpoints/00000001/state.pt", "a b/ü.png", "..a/b..c", "x" * 255])
def test_a_name_within_its_folder_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    assert resolve_within(tmp_path, name, "head.json") == tmp_path / name


def head(**changed: object) -> bytes:
    stored = {"key": "run~1.1.json", "size": 2, "sha256": "0" * 64}
    plain = {"format": 1, "epoch": 1, "owner": None, "heartbeat_s": 15.0, "claim": "", "stamp": "", "files": {}}
    return json.dumps(plain | {"files": {"run.json": stored}} | changed).encode()


def test_a_head_is_read() -> None:
    found = parse_head(head(owner={"host": "a", "machine": "b", "pid": 3, "started": "9"}, later="unknown"), "s3://a/b")
    assert found.owner is not None and found.owner.pid == 3
    assert found.files["run.json"].key == "run~1.1.json"


FILE = {"key": "k", "size": 2, "sha256": "0"}
OWNER = {"host": "a", "machine": "b", "pid": 3, "started": "9"}


@pytest.mark.parametrize(
    "body",
    [
        *(head(files={name: FILE}) for name in OUTSIDE if isinstance(name, str)),
        *(head(files={"a": FILE | {"key": name}}) for name in OUTSIDE),
        *(head(files={name: FILE}) for name in ("owner.lock", ".alive", ".unsent", "a/.b")),
        head(files={"a": FILE | {"key": "head.json"}}),
        *(head(files=wrong) for wrong in ([], None, 3, {"a": None}, {"a": {}}, {"a": FILE | {"size": "2"}})),
        *(head(owner=wrong) for wrong in (3, [], {"pid": 1}, OWNER | {"pid": "1"}, OWNER | {"host": "a\nb"})),
        *(head(**{key: wrong}) for key in ("epoch", "heartbeat_s", "claim") for wrong in (None, [], {}, True)),
        head(epoch=10**400),
        head(format=2),
        b"[" * 100_000,
        b'{"a":' * 500 + b"1" + b"}" * 500,
        b"1" * 6000,
        b"\xff\xfe",
        b"null",
        b"",
    ],
)
def test_a_hostile_head_is_refused_in_one_line(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"^s3://a/b/head\.json: ") as refusal:
        parse_head(body, "s3://a/b")
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 250


@pytest.fixture
def home(tmp_path: Path) -> runs.Run:
    made = runs.create_run(tmp_path / "runs", "mine", "seed: 3\n", {})
    for step in (1, 2):
        checkpoints.save(made.checkpoints, step, {"step": step})
    return made


def album(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of somebody else's, which looks like one of checkpoints."""
    for step in (1, 2):
        checkpoints.save(tmp_path / "album", step, {"step": step})
    (tmp_path / "album" / "victim.txt").write_text("mine\n")
    return tmp_path / "album"


LINKS = ["owner.lock", "checkpoints", "evaluations", "plots", "metrics.jsonl", "report.html", "config.yaml", "any/deep"]


@pytest.mark.parametrize("target", ["album", "album/victim.txt", "album/nothing"])
def test_a_run_with_a_link_in_it_is_neither_locked_nor_written(home: runs.Run, elsewhere: Path, target: str) -> None:
    before = album(elsewhere)
    for name in LINKS:
        place, kept = home.path / name, home.path.parent / "kept"
        if place.exists():
            place.rename(kept)
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(elsewhere.parent / target)
        with pytest.raises(ValueError, match=f"{name}: is a link, .*: remove it$"), runs.lock_run(home):
            pass
        assert runs.find_owner(home) is None
        if name == "checkpoints":
            for act in (lambda: checkpoints.prune(place, 1), lambda: checkpoints.save(place, 9, {})):  # noqa: B023
                with pytest.raises(ValueError, match="checkpoints: is a link"):
                    act()
        place.unlink()
        if kept.exists():
            kept.rename(place)
    assert album(elsewhere) == before


def test_a_checkpoint_that_is_a_link_is_not_pruned(home: runs.Run, elsewhere: Path) -> None:
    before = album(elsewhere)
    (home.checkpoints / "00000000").symlink_to(elsewhere / "00000001")
    with pytest.raises(ValueError, match="00000000: is a link"):
        checkpoints.prune(home.checkpoints, 1)
    assert album(elsewhere) == before


def test_a_run_that_is_reached_through_a_link_is_locked(home: runs.Run, tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to(home.path)
    with runs.lock_run(runs.open_run(tmp_path / "mine")):
        assert runs.find_owner(home) == f"pid {os.getpid()}"


def record(path: Path) -> None:
    recorder = JsonlRecorder(path)
    recorder.start(0, 1)
    recorder.close("finished")


def replace(path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("new")


@pytest.mark.parametrize("write", [record, replace, lambda path: Journal(path, {})], ids=["lines", "atomic", "journal"])
def test_no_file_is_written_through_a_link(tmp_path: Path, write) -> None:
    victim = tmp_path / "victim"
    victim.write_text('{"step": 7}\n')
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(ValueError, match="link: is a link, and nothing is written or removed through links: remove it"):
        write(tmp_path / "link")
    assert victim.read_text() == '{"step": 7}\n'


def test_lines_are_cut_back_beside_a_link_with_the_name_of_the_former_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / ".metrics.jsonl.tmp").symlink_to(tmp_path / "victim")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    recorder = JsonlRecorder(tmp_path / "metrics.jsonl")
    recorder.start(1, 3)
    recorder.close("finished")
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_pipe_in_place_of_a_file_does_not_wait_for_ever(home: runs.Run) -> None:
    os.mkfifo(home.path / "owner.lock")
    with pytest.raises(ValueError, match="is a device or a pipe"), runs.lock_run(home):
        pass

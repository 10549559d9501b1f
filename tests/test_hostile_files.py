"""Files that strangers hand over: names and links that lead elsewhere, documents that grow without bounds."""

import codecs
import hashlib
import json
import os
import pickle
import resource
import struct
import time
import zipfile
from pathlib import Path

import pytest

from metatrain import runs
from metatrain.runs import checkpoints
from metatrain.runs.head import parse_head
from metatrain.runs.locations import is_search
from metatrain.runs.signature import is_own
from metatrain.tracking.jsonl import JsonlRecorder, read_lines
from metatrain.yaml_config import apply_overrides, load_yaml, parse_yaml
from tasks.io.atomic import atomic_write
from tasks.io.json_lines import LONGEST
from tasks.io.names import check_name, resolve_within
from tasks.io.safe_pickle import load_arrays
from tasks.store.archive import Archive, open_archive
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


def memo(count: int) -> bytes:
    return b"\x80\x02}r" + struct.pack("<I", count) + b"."


class Made:
    """Pickled as a call of `function`."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


TEXT = "x" * 2_000_000
MANY = list(range(100_000))
PICKLES = {
    "set of a range": pickle.dumps(Made(set, range(10**12))),
    "list of a range": pickle.dumps({"a": Made(list, range(10**12))}),
    "many lists of one": pickle.dumps([Made(list, MANY) for _ in range(2000)]),
    "many conversions of one text": pickle.dumps([Made(codecs.encode, TEXT, "latin1") for _ in range(1000)]),
    "number of an object": memo(2**31),
    "announced bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**36) + b"x.",
    "announced frame": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"x.",
    "endless number": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_does_not_fill_the_memory(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.pkl").write_bytes(PICKLES[name])
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(ValueError, match=r"x\.pkl is not a complete pickle of arrays \(.*\): replace it") as refusal:
        load_arrays(tmp_path / "x.pkl")
    assert str(refusal.value).isprintable()
    assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def nested(levels: int, width: int) -> str:
    lines = ["a0: &a0 [x, x, x]"]
    lines += [f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * width)}]" for at in range(1, levels)]
    return "\n".join(lines)


MERGED = "\n".join(
    ["m0: &m0 {a: 1}", *(f"m{at}: &m{at} {{<<: [{', '.join([f'*m{at - 1}'] * 9)}]}}" for at in range(1, 10))]
)
YAML = {
    "aliases": (nested(9, 9), "holds more than"),
    "aliases of merged keys": (MERGED, "holds more than"),
    "itself": ("a: &a [*a]", "holds itself"),
    "depth": ("[" * 100_000, "nests more than"),
    "depth of sections": ("{a: " * 10_000, "nests more than"),
    "depth by lines": ("".join(f"{'  ' * at}a:\n" for at in range(60)), "nests more than"),
    "many values": ("x: [" + "1," * 100_000 + "]", "holds more than"),
    "size": ("x" * 3_000_000, "longer than"),
    "digits": ("x: " + "1" * 200_000, "a number of 200000 characters"),
    "digits of a date": ("x: 1" + ":1" * 300 + ".0", "a number of"),
    "a tag": ("x: !!timestamp z", "is not read"),
    "a tag of Python's": ("x: !!python/object/apply:os.system [a]", "is not read"),
    "a key": ("1: 2", "the key '1' is no text"),
    "half a letter": ('x: "\\ud800"', "surrogates not allowed|invalid Unicode character"),
    "a list for a section": ("x: !!map [1]", "not a section"),
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_is_bounded(tmp_path: Path, name: str) -> None:
    text, reason = YAML[name]
    began = time.process_time()
    for read in (lambda: parse_yaml(text, "x.yaml"), lambda: apply_overrides({}, [f"x={text}"])):
        with pytest.raises(ValueError, match=reason) as refusal:
            read()
        assert str(refusal.value).isprintable() and len(str(refusal.value)) < 250
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=reason):
        load_yaml(tmp_path / "x.yaml", "a configuration")
    assert time.process_time() - began < 20  # without bounds, aliases and depth take minutes


def test_a_device_is_not_read_as_yaml() -> None:
    with pytest.raises(ValueError, match="/dev/zero: is a device or a pipe"):
        load_yaml(Path("/dev/zero"), "a configuration")


def test_a_zip_of_zeros_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", b"x")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    at = content.index(b"PK\1\2")
    content[at + 24 : at + 28] = struct.pack("<I", 2**31)  # its size, in the directory at the end
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png would unpack to 2\.15 GB"), open_archive(Archive(tmp_path / "a.zip")):
        pass


def test_a_pipe_in_place_of_a_file_does_not_wait_for_ever(home: runs.Run) -> None:
    os.mkfifo(home.path / "owner.lock")
    with pytest.raises(ValueError, match="is a device or a pipe"), runs.lock_run(home):
        pass


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "signature"])
@pytest.mark.parametrize("special", ["pipe", "device"])
def test_a_device_or_pipe_in_place_of_a_file_is_not_read(home: runs.Run, name: str, special: str) -> None:
    path = home.path / name
    path.unlink(missing_ok=True)
    os.mkfifo(path) if special == "pipe" else path.symlink_to("/dev/null")  # /dev/zero fills the memory if it is read
    if name != "metrics.jsonl":
        assert not is_own(home.path)
    if name != "signature":
        with pytest.raises(ValueError, match="is a device or a pipe"):
            is_search(home) if name == "config.yaml" else list(read_lines(path))


def test_a_line_without_an_end_is_refused_in_parts(tmp_path: Path) -> None:
    with (tmp_path / "metrics.jsonl").open("wb") as file:
        file.truncate(4 * LONGEST)
    with pytest.raises(ValueError, match=r"line 1: longer than 16 MiB"):
        list(read_lines(tmp_path / "metrics.jsonl"))


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """As root, `report --out /dev/null` took the device away from the machine."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="name a file to write"), atomic_write(tmp_path / "pipe") as temporary:
        temporary.write_text("page")
    assert (tmp_path / "pipe").is_fifo()

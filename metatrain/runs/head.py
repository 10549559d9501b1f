"""Describe what head.json of a run in S3 holds, and read one that a stranger may have written."""

from dataclasses import dataclass, field
from typing import TypedDict

from metatrain.runs.process_id import Process
from tasks.io.json_documents import check_json, parse_json
from tasks.io.names import check_name

HEAD = "head.json"
FORMAT = 1
PRIVATE = ("owner.lock",)
"""Files of the local folder that stay there."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of the run: its object's key, its size and checksum."""

    key: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Head:
    """The content of head.json. `epoch` counts owners, `claim` is unique to an owner, `stamp` to a version."""

    epoch: int = 0
    owner: Process | None = None
    heartbeat_s: float = 15.0
    claim: str = ""
    stamp: str = ""
    files: dict[str, RemoteFile] = field(default_factory=dict)


class _PlainFile(TypedDict):
    key: str
    size: int
    sha256: str


class _PlainProcess(TypedDict):
    host: str
    machine: str
    pid: int
    started: str


class _PlainHead(TypedDict):
    format: int
    epoch: int
    owner: _PlainProcess | None
    heartbeat_s: float
    claim: str
    stamp: str
    files: dict[str, _PlainFile]


def parse_head(body: bytes, where: str) -> Head:
    """Read the head of the run at `where`. ValueError: it is damaged, or names files outside the run's folder."""
    where, remedy = f"{where}/{HEAD}", "restore that object or train anew"
    plain = check_json(parse_json(body, where, remedy), _PlainHead, where, remedy)
    if plain["format"] != FORMAT:
        raise ValueError(f"{where}: has another format than {FORMAT}: use the version of metatrain that wrote it")
    files, owner = plain["files"], plain["owner"]
    for name, stored in files.items():
        _check_file(name, stored["key"], where)
    if owner is not None and not f"{owner['host']}{owner['started']}".isprintable():
        raise ValueError(f"{where}: its owner is on no machine: {remedy}")
    return Head(
        **{key: plain[key] for key in ("epoch", "heartbeat_s", "claim", "stamp")},
        owner=owner and Process(**{key: owner[key] for key in _PlainProcess.__annotations__}),
        files={
            name: RemoteFile(**{key: stored[key] for key in _PlainFile.__annotations__})
            for name, stored in files.items()
        },
    )


def _check_file(name: str, key: str, where: str) -> None:
    """Raise ValueError where a file would lie outside the folder, or be one that this machine keeps for itself."""
    check_name(key, where)
    parts = check_name(name, where).split("/")
    if any(part.startswith(".") for part in parts) or name in PRIVATE or key == HEAD:
        raise ValueError(f"{where}: {name!r} is no file of a run: remove that entry, or restore that object")

"""A run in object storage: whole commits, one owner, and nothing lost to an endpoint that fails."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from metatrain.errors import RunLost, RunOwnedError
from metatrain.runs import Run, lock_run
from metatrain.runs.locations import create_run, create_run_at, open_run, release_run
from metatrain.runs.remote import RemoteRun
from metatrain.runs.s3 import StorageError
from tests.fault_proxy import FaultProxy, Faults
from tests.object_store import ObjectStore, object_store
from tests.remote_pictures import connect_through_proxy, deny_action


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("server")) as store:
        store.make_bucket("runs")
        yield store


@pytest.fixture
def proxy(server: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FaultProxy]:
    monkeypatch.setenv("METATRAIN_CACHE", str(tmp_path / "cache"))
    with connect_through_proxy(server, monkeypatch) as between:
        yield between


@pytest.fixture
def home(proxy: FaultProxy) -> Run:
    return create_run("s3://runs/team", "far", "seed: 0\n", {"python": "3"}, 15.0)


def again(home: Run) -> Run:
    """The same run as another machine meets it."""
    return open_run(home.where)


def head_of(server: ObjectStore, home: Run) -> dict:
    key = home.where.removeprefix("s3://runs/") + "/head.json"
    return json.loads(server.client().get_object(Bucket="runs", Key=key)["Body"].read())


def test_what_is_committed_is_what_another_machine_finds(server, home):
    with lock_run(home):
        (home.checkpoints / "00000001").mkdir()
        (home.checkpoints / "00000001" / "state.pt").write_bytes(bytes(range(256)) * 99)
        home.metrics.write_text("one\n")
        home.commit()
        home.metrics.write_text("one\ntwo\n")
        (home.path / "owner.lock").write_text("a file of this machine's own")
        home.commit()
        (home.checkpoints / "00000001" / "state.pt").unlink()
        (home.checkpoints / "00000002").mkdir()
        (home.checkpoints / "00000002" / "state.pt").write_bytes(b"second")
        assert again(home).metrics.read_text() == "one\ntwo\n", "what is not committed is not there"
        home.commit()
    other = again(home)
    files = {path.relative_to(other.path).as_posix(): path.read_bytes() for path in other.path.rglob("[!.]*.*")}
    always = {"config.yaml", "environment.json", "run.json"}
    assert files.keys() == always | {"metrics.jsonl", "checkpoints/00000002/state.pt"}
    assert files["checkpoints/00000002/state.pt"] == b"second"
    assert (other.run_id, other.created) == (home.run_id, home.created)
    assert len(server.keys("runs", home.where.removeprefix("s3://runs/"))) == len(files) + 2, "nothing old is left"


def test_a_second_owner_is_refused_until_the_first_one_leaves(home):
    with lock_run(home):
        with pytest.raises(RunOwnedError, match=r"trained by another process \(pid \d+ on .* s ago\).*--take-over"):
            lock_run(again(home)).__enter__()
        home.metrics.write_text("mine\n")
        home.commit()
    with lock_run(again(home)):
        pass


def test_an_owner_presumed_dead_can_write_nothing_more(server, home):
    with lock_run(home):
        home.metrics.write_text("before\n")
        home.commit()
        with lock_run(other := again(home), take_over=True):
            (other.path / "metrics.jsonl").write_text("of the new owner\n")
            other.commit()
            before = head_of(server, home), server.keys("runs")
            home.metrics.write_text("of the old owner\n")
            with pytest.raises(RunLost, match="was taken over by pid"):
                home.commit()
            with pytest.raises(RunLost, match="stops"):
                home.check_ownership()
            assert head_of(server, home) == before[0]
            other.commit()
    assert again(home).metrics.read_text() == "of the new owner\n"
    with lock_run(final := again(home)):
        final.commit()
    left = [key for key in server.keys("runs", home.where.removeprefix("s3://runs/")) if "metrics" in key]
    assert len(left) == 1, "what the old owner had uploaded in vain is swept away"


def test_of_many_who_take_a_run_at_once_one_gets_it(home):
    homes, got, refused = [again(home) for _ in range(6)], [], []
    ready, leave = threading.Barrier(len(homes)), threading.Event()

    def take(one: Run) -> None:
        ready.wait()
        try:
            with lock_run(one):
                got.append(one)
                leave.wait(30)
        except RunOwnedError as error:
            refused.append(error)

    threads = [threading.Thread(target=take, args=(one,)) for one in homes]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 30
    while len(got) + len(refused) < len(homes) and time.monotonic() < until:
        time.sleep(0.01)
    leave.set()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, len(homes) - 1)


@pytest.mark.slow
def test_an_owner_without_a_heartbeat_is_presumed_dead_one_with_is_not(home, monkeypatch):
    slow = RemoteRun(home.where, again(home).path, 1.0)
    beating = slow.lock(False, False, None)
    beating.__enter__()
    time.sleep(6)  # a server tells time in whole seconds
    with pytest.raises(RunOwnedError):
        lock_run(again(home)).__enter__()
    beating.__exit__(None, None, None)
    monkeypatch.setattr(RemoteRun, "_send_heartbeats", lambda self, ended: None)
    silent = RemoteRun(home.where, again(home).path, 1.0)
    with silent.lock(False, False, None):
        time.sleep(6)
        with lock_run(again(home)):
            pass
        (silent.folder / "metrics.jsonl").write_text("too late\n")
        with pytest.raises(RunLost):
            silent.commit()


def test_an_endpoint_that_fails_one_request_in_five_loses_nothing(proxy, home):
    proxy.faults = Faults(refuse=0.1, lose=0.06, cut=0.04)
    with lock_run(home):
        for step in range(25):
            with home.metrics.open("a") as file:
                file.write(f"{step}\n")
            home.commit()
    found = again(home)
    assert found.metrics.read_text().split() == [str(step) for step in range(25)]
    assert sum(bool(request.fault) for request in proxy.requests()) > 10


def test_a_reader_meets_whole_commits_while_the_owner_goes_on(home):
    done = threading.Event()

    def go_on() -> None:
        with lock_run(home):
            for number in range(40):
                home.metrics.write_text(f"{number}\n")
                home.evaluations.joinpath("one.json").write_text(f"{number}\n")
                home.commit()
        done.set()

    owner = threading.Thread(target=go_on)
    owner.start()
    met = 0
    while not done.is_set():
        found = again(home)
        if found.metrics.exists():
            assert found.metrics.read_text() == (found.evaluations / "one.json").read_text()
            met += 1
    owner.join()
    assert met > 3


def test_a_guest_takes_a_run_from_nobody_who_may_be_alive(home, monkeypatch):
    monkeypatch.setattr(RemoteRun, "_send_heartbeats", lambda self, ended: None)
    with lock_run(home, heartbeat_s=0.25):
        time.sleep(3)
        with pytest.raises(RunOwnedError):
            lock_run(again(home), guest=True).__enter__()
        with lock_run(again(home)):
            pass


def test_what_could_not_be_sent_is_sent_with_the_next_commit(proxy, home, monkeypatch):
    """Also where a head was written, its answer lost, and every further attempt in vain."""
    monkeypatch.setattr("metatrain.runs.s3.ATTEMPTS", 2)
    remote = RemoteRun(home.where, again(home).path, 60.0)
    with remote.lock(False, False, None):
        for faults in (Faults(refuse=1.0), Faults(lose=1.0)):
            proxy.faults = faults
            (remote.folder / "metrics.jsonl").write_text(f"{faults}\n")
            with pytest.raises(StorageError, match=r"^s3://runs/team.*try again|no answer"):
                remote.commit()
            assert not remote.is_synced()
            proxy.faults = Faults()
            remote.commit()
            assert remote.is_synced()
            assert again(home).metrics.read_text() == f"{faults}\n"


def test_a_checkpoint_damaged_in_the_bucket_comes_as_it_is(server, home):
    with lock_run(home):
        (home.checkpoints / "00000001").mkdir()
        (home.checkpoints / "00000001" / "state.pt").write_bytes(b"whole")
        home.commit()
    (key,) = [key for key in server.keys("runs", home.where.removeprefix("s3://runs/")) if "state" in key]
    server.client().put_object(Bucket="runs", Key=key, Body=b"half")
    assert (again(home).checkpoints / "00000001" / "state.pt").read_bytes() == b"half"
    server.client().delete_object(Bucket="runs", Key=key)
    assert not (again(home).checkpoints / "00000001" / "state.pt").exists()


@pytest.mark.parametrize(
    ("root", "environment", "message"),
    [
        ("s3://no-such-bucket/x", {}, "there is no bucket 'no-such-bucket': create it, or name another"),
        ("s3://denied/x", {}, "access is denied: use credentials with s3:ListBucket, GetObject, PutObject"),
        ("s3://runs/x", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "no answer from http://127.0.0.1:9 .*: set AWS_"),
        (
            "s3://runs/x",
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            "there are no credentials for it: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        ("gs://runs/x", {}, "runs are kept on disks and in s3://BUCKET/FOLDER: use one of these"),
    ],
)
def test_what_cannot_be_had_is_one_line_and_comes_soon(server, proxy, monkeypatch, root, environment, message):
    if "denied" in root:
        deny_action(server, "denied", "s3:PutObject")
    for name, value in environment.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name)
    if not environment.get("AWS_ACCESS_KEY_ID", "x"):
        monkeypatch.setenv("HOME", "/nonexistent")
    began = time.monotonic()
    with pytest.raises((ValueError, OSError), match=rf"^{root}.*{message}") as refused:
        create_run(root, "far", "seed: 0\n", {}, 15.0)
    assert "\n" not in str(refused.value)
    assert time.monotonic() - began < 15


def test_where_no_run_is_is_said(server, proxy):
    with pytest.raises(ValueError, match=r"^no run at s3://runs/nothing: it has no head.json; use the URI"):
        open_run("s3://runs/nothing")
    server.client().put_object(Bucket="runs", Key="odd/head.json", Body=b"{}")
    with pytest.raises(ValueError, match=r"^s3://runs/odd/head.json: 'claim' is missing: restore that object"):
        open_run("s3://runs/odd")


def test_a_process_that_goes_on_to_others_leaves_nothing_behind(home):
    path = home.path
    with lock_run(home):
        (path / "more.txt").write_text("kept")
        home.commit()
    release_run(home)
    assert not path.exists()
    release_run(home)
    again = open_run(home.where)
    assert (again.path / "more.txt").read_text() == "kept"


def test_runs_within_a_run_are_not_swept_away(home):
    inner = create_run_at(
        f"{home.where}/trials/0000", "inner", "seed: 0\n", {}, 15.0, {"beside.txt": "there from the first"}
    )
    with lock_run(home):
        home.commit()
    found = open_run(inner.where)
    assert found.run_id == "inner" and (found.path / "beside.txt").read_text() == "there from the first"


@pytest.mark.parametrize("name", ["{outside}", "../../../victim.txt", "checkpoints/../../../victim.txt"])
def test_a_run_whose_head_names_files_elsewhere_is_refused(server, home, tmp_path, name):
    head = head_of(server, home)
    head["files"] |= {name.format(outside=tmp_path / "victim.txt"): head["files"]["config.yaml"]}
    key = home.where.removeprefix("s3://runs/") + "/head.json"
    server.client().put_object(Bucket="runs", Key=key, Body=json.dumps(head).encode())
    with pytest.raises(ValueError, match="leads outside its folder"):
        again(home)
    assert not list(tmp_path.rglob("victim.txt"))

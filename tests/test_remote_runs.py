"""Data, runs and checkpoints wholly in S3, from the command line, at an endpoint that fails one request in five."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import metatrain as library
from metatrain.runs.locations import open_run
from metatrain.testing import evaluation_name
from metatrain.tracking.jsonl import read_lines
from tests import pictures
from tests.command_line import last_json, metatrain, process_arguments
from tests.configurations import TINY
from tests.fault_proxy import FaultProxy, Faults
from tests.remote_pictures import connect_through_proxy, serve_pictures

FAULTS = Faults(refuse=0.1, lose=0.05, cut=0.05)
IMAGES = {
    "name": "image_folder",
    "root": "s3://raw/classes",
    "cache": "s3://runs/cache",
    "size": pictures.SIDE,
    "train": {"ways": 2, "shots": 1, "queries": 1},
    "test": {"ways": 2, "shots": 1, "queries": 1},
}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    with serve_pictures(tmp_path_factory.mktemp("server")) as server, pytest.MonkeyPatch.context() as patch:
        server.make_bucket("runs")
        with connect_through_proxy(server, patch) as between:
            between.faults = FAULTS
            patch.setenv("METATRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
            yield between


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory, proxy: FaultProxy) -> tuple[Path, dict]:
    """A folder with a configuration, and what came of an undisturbed run of it on this machine's disk."""
    folder = tmp_path_factory.mktemp("far")
    long = TINY | {"tasks": IMAGES, "outer": TINY["outer"] | {"steps": 60}, "model": {"name": "mlp", "width": 8}}
    (folder / "far.yaml").write_text(yaml.safe_dump(long))
    return folder, last_json(metatrain(folder, "train", "far.yaml", "--json"))


def steps_in(place: str) -> list[int]:
    return [line["step"] for line in read_lines(open_run(place).metrics) if "train/loss" in line]


@pytest.mark.slow
def test_a_driver_killed_is_resumed_by_a_machine_with_an_empty_disk(far, proxy, monkeypatch, tmp_path):
    folder, undisturbed = far
    began = subprocess.Popen(process_arguments("train", "far.yaml", "runs.root=s3://runs/killed"), cwd=folder)
    cache, until = Path(os.environ["METATRAIN_CACHE"]), time.monotonic() + 120
    while not any(path.stat().st_size > 2000 for path in cache.glob("runs/*/metrics.jsonl")):
        assert time.monotonic() < until
        assert began.poll() is None
        time.sleep(0.02)
    began.send_signal(signal.SIGKILL)
    began.wait()
    # The local folder of a run in object storage is named by the run and a suffix of this process.
    run_id = next(path.name for path in cache.glob("runs/*-run-*")).partition(".")[0]
    shutil.rmtree(cache)
    place = f"s3://runs/killed/{run_id}"
    result = last_json(metatrain(folder, "train", "--resume", place, "--json"))
    assert not any(cache.glob("runs/*")), "the folder that stood for the run is gone"
    assert result["run_dir"] == place
    assert result["params_sha256"] == undisturbed["params_sha256"]
    assert result["test"] == undisturbed["test"]
    assert steps_in(place) == list(range(1, 61))
    assert sum(bool(request.fault) for request in proxy.requests()) > 20
    learner = library.load(place)
    assert learner.params.keys() == library.load(folder / undisturbed["run_dir"]).params.keys()
    evaluated = last_json(metatrain(folder, "evaluate", place, "tasks.test.queries=2", "--json"))
    assert evaluated["params_sha256"]
    metatrain(folder, "report", place)
    assert place in (folder / "report.html").read_text()
    files = {path.name for path in open_run(place).evaluations.iterdir()}
    assert files == {"test.json", f"{evaluation_name(['tasks.test.queries=2'])}.json"}


@pytest.mark.slow
def test_a_run_that_cannot_be_sent_is_kept_here_and_can_go_on(far, proxy, monkeypatch):
    """The endpoint goes away in mid-run and does not come back: two minutes of attempts."""
    folder, undisturbed = far
    arguments = process_arguments("train", "far.yaml", "runs.root=s3://runs/cut-off", "outer.steps=60")
    cache, until = Path(os.environ["METATRAIN_CACHE"]), time.monotonic() + 120
    before = set(cache.glob("runs/*/checkpoints/*"))  # of runs that this process has loaded
    with (folder / "log").open("w") as log:
        began = subprocess.Popen(arguments, cwd=folder, stderr=log)
    while before.issuperset(cache.glob("runs/*/checkpoints/*")):
        assert time.monotonic() < until
        time.sleep(0.02)
    proxy.faults = Faults(refuse=1.0)
    try:
        assert began.wait(400) == 1
    finally:
        proxy.faults = FAULTS
        said = (folder / "log").read_text()
        print(said)
    assert "what was not sent lies in" in said
    assert "go on with `metatrain train --resume s3://runs/cut-off/" in said
    left = said.rpartition("what was not sent lies in ")[2].partition(")")[0]
    assert json.loads((Path(left) / "run.json").read_text())["format"] == 1
    again = last_json(metatrain(folder, "train", "--resume", left, "--json"))
    assert again["params_sha256"] == undisturbed["params_sha256"]


@pytest.mark.slow
def test_what_a_run_began_with_is_kept_there_and_another_begins_from_it(far, proxy, tmp_path):
    """A machine with an empty disk, on which there is no run to begin from, goes on; and one begins from S3."""
    folder, undisturbed = far
    source = shutil.copytree(folder / undisturbed["run_dir"], tmp_path / "source")
    quick = ("train", "far.yaml", f"initialize={source}", "evaluation.baselines=false", "--json")
    here = last_json(metatrain(folder, *quick, "outer.steps=4"))
    there = last_json(metatrain(folder, *quick, "outer.steps=2", "runs.root=s3://runs/begun"))
    shutil.rmtree(source)
    for cached in Path(os.environ["METATRAIN_CACHE"]).glob("runs/*"):
        shutil.rmtree(cached)
    place = there["run_dir"]
    again = last_json(metatrain(folder, "train", "--resume", place, "outer.steps=4", "--json"))
    assert again["params_sha256"] == here["params_sha256"] != there["params_sha256"]
    begun = last_json(metatrain(folder, "train", "far.yaml", f"initialize={place}", "outer.steps=1", "--json"))
    (event,) = [
        line
        for line in read_lines(open_run(str(folder / begun["run_dir"])).metrics)
        if line.get("event") == "initialized"
    ]
    assert f"from {place} (sha256 " in event["text"]

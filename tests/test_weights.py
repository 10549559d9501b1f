"""Begin a run with the weights of a file or with another run's parameters (`model.weights`, `initialize`)."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import metatrain
from metatrain.config.initial import read_initial
from metatrain.config.weight_files import read_weights
from metatrain.errors import RunFailed
from metatrain.models import Conv4, Torchvision, build_model
from metatrain.models.weights import match_weights
from metatrain.runs import checkpoints, open_run
from metatrain.training.initial import load_initial
from metatrain.training.worker import Worker
from tasks.types import TaskSpec
from tests.configurations import tiny

CPU = torch.device("cpu")
NET = {"name": "conv4", "width": 4, "depth": 2}
QUICK = {
    "model": NET,
    "outer": {"steps": 2, "tasks_per_step": 2},
    "evaluation": {"every": 2, "tasks": 4, "validation_tasks": 2, "from_scratch_tasks": 0},
}


def settings(**changes):
    return {name: QUICK.get(name, {}) | changes.get(name, {}) for name in QUICK} | {
        name: value for name, value in changes.items() if name not in QUICK
    }


def worker(*overrides: str) -> Worker:
    return Worker(tiny("model={name: conv4, width: 4, depth: 2}", *overrides), CPU)


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Write the format by its description, beside the code that reads it."""
    header, content = {}, b""
    for name, value in tensors.items():
        kind = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}[value.dtype]
        raw = value.numpy().tobytes()
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [len(content), len(content + raw)]}
        content += raw
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """A state dict of the body, of other values than any seed gives, with running statistics and another head."""
    made = {name.removeprefix("model.body."): 3 + torch.randn(p.shape) for name, p in worker().initial().items()}
    body = {name: value for name, value in made.items() if not name.startswith("model.head.")}
    statistics = {"0.1.running_mean": torch.zeros(4), "0.1.num_batches_tracked": torch.tensor(7)}
    return body | statistics | {"fc.weight": torch.ones(64, 196), "fc.bias": torch.ones(64)}


@pytest.mark.parametrize("form", ["pt", "safetensors", "wrapped", "prefixed", "parallel"])
def test_every_form_of_file_gives_the_body_and_says_what_is_left_out(form, state, tmp_path):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    prefix = {"prefixed": "model.body.", "parallel": "module."}.get(form, "")
    named = {prefix + name: value for name, value in state.items()}
    if form == "safetensors":
        write_safetensors(path, named)
    else:
        torch.save({"state_dict": named, "epoch": 3} if form == "wrapped" else named, path)
    one = worker(f"model.weights={path}")
    found = read_initial(one)
    assert {name for name in one.initial() if name.startswith("model.body.")} == set(found.params)
    for name, value in found.params.items():
        assert torch.equal(value, state[name.removeprefix("model.body.")])
    (note,) = found.notes
    for part in (f"8 parameters from {path} (sha256 ", "model.head.weight is as initialised", "2 running statistics"):
        assert part in note
    assert "the file's own head" in note
    one.given = found
    assert torch.equal(one.initial()["model.body.0.0.weight"], state["0.0.weight"])
    assert torch.equal(one.initial()["model.head.weight"], worker().initial()["model.head.weight"])


WRONG = {
    "lacks": (lambda s: s.pop("1.0.weight"), r"lacks 1\.0\.weight: use weights of this architecture"),
    "shape": (lambda s: s.update({"1.0.weight": torch.ones(4, 5, 3, 3)}), r"1\.0\.weight is \[4, 5, 3, 3\] and not"),
    "more": (lambda s: s.update({"2.0.weight": torch.ones(2)}), r"holds fc\.weight, fc\.bias, 2\.0\.weight, which"),
    "nan": (lambda s: s["0.0.bias"].fill_(torch.nan), r"0\.0\.bias holds values that are not finite"),
    "whole numbers": (lambda s: s.update({"0.0.bias": torch.ones(4, dtype=torch.int64)}), r"0\.0\.bias is torch.int64"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_weights_that_do_not_fit_are_refused_in_one_line(case, state, tmp_path):
    damage, says = WRONG[case]
    damage(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"model\.weights: {tmp_path}/w\.pt .*{says}") as found:
        read_initial(worker(f"model.weights={tmp_path}/w.pt"))
    assert "\n" not in str(found.value)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


def test_files_that_are_no_weights_are_refused_without_running_them(tmp_path):
    torch.save({"w": Evil()}, tmp_path / "evil.pt")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "w.txt").write_text("no")
    expected = {
        "evil.pt": "without running code it carries: use a state dict",
        "list.pth": "holds no state dict",
        "old.pt": "before 1.6: save it anew",
        "w.txt": r"use \.pt, \.pth",
        "none.pt": "cannot be read .No such file",
    }
    for name, says in expected.items():
        with pytest.raises(ValueError, match=says):
            read_weights(tmp_path / name)


def test_damaged_safetensors_are_refused(tmp_path):
    path = write_safetensors(tmp_path / "w.safetensors", {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.float16)})
    whole = path.read_bytes()
    assert read_weights(path)["b"].dtype == torch.float16
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])

    def forged(**changes) -> bytes:
        text = json.dumps(header | changes).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + size :]

    one = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    damaged = [
        whole[:5],
        whole[:-1],
        whole + b"\0",
        struct.pack("<Q", 2**60) + whole[8:],
        whole.replace(b'"b"', b'"a"'),
        forged(a=one | {"shape": [2**40]}),
        forged(a=one | {"shape": [-3]}),
        forged(a=one | {"data_offsets": [4, 16]}),
        forged(a=one | {"dtype": "C64"}),
        forged(a=one | {"shape": [True, 3]}),
        forged(a=[1]),
        struct.pack("<Q", 4) + b"[[[[",
    ]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"safetensors|header|save it"):
            read_weights(path)


@pytest.mark.parametrize("classifier", ["resnet18", "squeezenet1_1", pytest.param("vit_b_32", marks=pytest.mark.slow)])
def test_torchvisions_classifiers_take_their_own_state_dicts(classifier):
    from torchvision import models

    if classifier == "vit_b_32":
        with torch.device("meta"):
            official = models.vit_b_32(image_size=32).state_dict()
        official = {name: torch.zeros(value.shape) for name, value in official.items()}
    else:
        official = models.get_model(
            classifier, num_classes=5 if classifier.startswith("squeeze") else 1000
        ).state_dict()
    spec = TaskSpec("classification", 5, (3, 32, 32), ())
    architecture = Torchvision(classifier)
    model = build_model(architecture, spec, 0)
    found = match_weights(official, model, architecture, model.initial())
    heads = {name for name in model.initial() if name.startswith("model.head.")}
    assert set(found.params) == set(model.initial()) - heads
    assert sum("[1000" in phrase for phrase in found.left_out) == len(heads)
    if classifier == "resnet18":
        assert torch.equal(found.params["model.body.trunk.layer1.0.conv1.weight"], official["layer1.0.conv1.weight"])
        official["fc.weight"], official["fc.bias"] = torch.ones(5, 512), torch.ones(5)
        again = match_weights(official, model, architecture, model.initial())
        assert set(again.params) == set(model.initial())


def test_a_loaded_network_computes_what_the_file_computes():
    """Through names alone: a network written here, with the state dict that a user would have."""
    net = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)), nn.Sequential())
    net[1].append(nn.Conv2d(4, 4, 3, padding=1)).append(nn.BatchNorm2d(4))
    model = build_model(Conv4(width=4, depth=2), TaskSpec("classification", 3, (1, 8, 8), ()), 0)
    found = match_weights(net.state_dict(), model, Conv4(width=4, depth=2), model.initial())
    x = torch.randn(6, 1, 8, 8)
    expected = x
    for block in net.train():
        expected = F.max_pool2d(torch.relu(block(expected)), 2)
    given = model.initial() | found.params
    assert torch.allclose(model.embed(given, x, torch.tensor(-1)), expected.flatten(1), atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run of MAML, and the weights of its network in a file."""
    root = tmp_path_factory.mktemp("trained")
    result = metatrain.train(tiny(), **settings(runs={"root": str(root)}), progress=False)
    params = checkpoints.load(open_run(result.run_dir).checkpoints, 2)["params"]
    torch.save(params, root / "w.pt")
    return Path(result.run_dir), root / "w.pt", params


def test_a_run_keeps_what_it_began_with_and_a_resume_reads_no_file(trained, tmp_path):
    _, weights, params = trained
    copied = Path(shutil.copy(weights, tmp_path / "w.pt"))
    given = settings(model=NET | {"weights": str(copied)}, runs={"root": str(tmp_path)}, outer={"lr": 1e-3})
    whole = metatrain.train(tiny(), **given, progress=False)
    home = open_run(whole.run_dir)
    kept = load_initial(home)
    assert all(torch.equal(kept.params[name], value) for name, value in params.items())
    assert "initialized" in home.metrics.read_text()
    assert f"8 parameters from {copied}" not in home.metrics.read_text(), "the head fits too"
    assert f"10 parameters from {copied} (sha256 {checkpoints.params_sha256(params)[:16]})" in home.metrics.read_text()
    copied.unlink()
    for step in (home.checkpoints).iterdir():
        shutil.rmtree(step)
    again = metatrain.train(resume=home.where, progress=False)
    assert again.params_sha256 == whole.params_sha256
    assert [one.value for one in again.results] == [one.value for one in whole.results]
    untrained = next(one for one in again.results if one.learner == "untrained")
    assert untrained.value == next(one.value for one in whole.results if one.learner == "untrained")
    shutil.rmtree(home.path / "initial")
    with pytest.raises(ValueError, match="its initial parameters are missing: restore the folder initial/"):
        metatrain.train(resume=home.where, progress=False)
    random = metatrain.train(tiny(), **settings(runs={"root": str(tmp_path)}, outer={"lr": 1e-3}), progress=False)
    assert random.params_sha256 != whole.params_sha256


def test_a_run_is_a_file_of_weights_too(trained):
    source, _, params = trained
    found = read_initial(worker(f"model.weights={source}", "algorithm={name: protonet}"))
    body = {name: value for name, value in params.items() if name.startswith("model.body.")}
    assert set(found.params) == set(body)
    assert all(torch.equal(found.params[name], value) for name, value in body.items())
    assert "model.head.weight is left out: this algorithm learns no head" in found.notes[0]


def test_another_runs_parameters_begin_a_run_of_another_algorithm(trained):
    source, _, params = trained
    one = worker(f"initialize={source}", "algorithm={name: meta_sgd}", "tasks.train.ways=4")
    found = read_initial(one)
    assert set(found.params) == {name for name in params if name.startswith("model.body.")}
    (note,) = found.notes
    assert f"8 parameters from {source} (sha256 " in note
    assert "12 parameters as without it (inner_lr, model.head)" in note
    assert "2 parameters there are not used (model.head)" in note
    assert len(read_initial(worker(f"initialize={source}", "algorithm={name: meta_sgd}")).params) == 10


def test_what_cannot_be_begun_with_is_refused(trained, tmp_path):
    source, weights, _ = trained
    young = shutil.copytree(source, tmp_path / "young")
    shutil.rmtree(young / "checkpoints")
    (young / "checkpoints").mkdir()
    expected = {
        f"initialize={young}": "initialize: .*holds no checkpoint yet",
        f"initialize={tmp_path}": "initialize: .*is not a run",
        f"initialize={weights}": "initialize: no run at .*w.pt",
        f"model.weights={tmp_path}": r"model\.weights: .*is not a run",
    }
    for override, says in expected.items():
        with pytest.raises(ValueError, match=says):
            read_initial(worker(override))
    with pytest.raises(ValueError, match=r"model\.body\.0\.0\.bias is \[4\] there and \[5\] here: set model"):
        read_initial(worker(f"initialize={source}", "model.width=5"))
    with pytest.raises(ValueError, match=r"initialize: .* and model\.weights both give model\.body\.0\.0\.bias"):
        read_initial(worker(f"initialize={source}", f"model.weights={weights}"))
    with pytest.raises((ValueError, RunFailed), match=r"initialize: cannot change in a resumed run"):
        metatrain.train(resume=source, initialize=str(young))

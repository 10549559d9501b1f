import contextlib
import hashlib
import json
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from metatrain.runs import checkpoints


def snapshot(value: float = 1.0) -> dict[str, Any]:
    return {"params": {"w": torch.full((64,), value), "b": torch.zeros(2, 3)}, "best": None, "next": (3, 4)}


def saved(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoints.save(folder, step, snapshot(float(step)))


def test_round_trip(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, 7, snapshot(), {"validation": 0.5})
    assert path == tmp_path / "00000007"
    assert checkpoints.files(tmp_path, 7) == sorted(path.iterdir()) == [path / "manifest.json", path / "state.pt"]
    found = checkpoints.newest(tmp_path)
    assert found is not None
    state, step, damaged = found
    assert (step, damaged, state["next"], state["best"]) == (7, [], (3, 4), None)
    assert torch.equal(state["params"]["w"], snapshot()["params"]["w"])
    manifest = checkpoints.manifest(tmp_path, 7)
    assert manifest["extra"] == {"validation": 0.5}
    assert manifest["size"] == (path / "state.pt").stat().st_size


def test_adam_goes_on_bitwise(tmp_path: Path) -> None:
    def fresh() -> tuple[torch.nn.Parameter, torch.optim.Adam]:
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 50))
        return parameter, torch.optim.Adam([parameter], lr=1e-2, amsgrad=True)

    def advance(parameter: torch.nn.Parameter, optimiser: torch.optim.Adam, steps: range) -> None:
        for step in steps:
            parameter.grad = torch.sin(parameter.detach() * (step + 1))
            optimiser.step()

    straight, optimiser = fresh()
    advance(straight, optimiser, range(5))
    checkpoints.save(tmp_path, 5, {"params": {"w": straight.detach()}, "optimiser": optimiser.state_dict()})
    advance(straight, optimiser, range(5, 9))

    resumed, other = fresh()
    state = checkpoints.load(tmp_path, 5)
    with torch.no_grad():
        resumed.copy_(state["params"]["w"])
    other.load_state_dict(state["optimiser"])
    advance(resumed, other, range(5, 9))
    assert torch.equal(straight, resumed)
    before, after = optimiser.state_dict(), other.state_dict()
    assert before["param_groups"] == after["param_groups"]
    assert all(torch.equal(value, after["state"][0][key]) for key, value in before["state"][0].items())


def test_nothing_there_is_not_an_error(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None
    assert checkpoints.newest(tmp_path / "missing") is None


def flip_a_bit(path: Path) -> None:
    content = bytearray((path / "state.pt").read_bytes())
    content[len(content) // 2] ^= 4
    (path / "state.pt").write_bytes(bytes(content))


def edit(key: str, value: object) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps({**manifest, key: value}))

    return spoil


SPOILERS: list[tuple[Callable[[Path], object], str]] = [
    (flip_a_bit, "sha256"),
    (lambda path: (path / "state.pt").write_bytes((path / "state.pt").read_bytes()[:-100]), "size"),
    (lambda path: (path / "state.pt").unlink(), "state.pt is missing"),
    (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
    (lambda path: (path / "manifest.json").write_text('{"format": 1, "st'), "cannot be read"),
    (lambda path: (path / "manifest.json").write_text("[]"), "cannot be read"),
    (edit("format", 2), "format is 1 where manifest.json says 2"),
    (edit("step", 3), "step is 2"),
]


@pytest.mark.parametrize(("spoil", "reason"), SPOILERS)
def test_a_damaged_newest_is_passed_over_with_the_reason(
    tmp_path: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    saved(tmp_path, 1, 2)
    spoil(tmp_path / "00000002")
    found = checkpoints.newest(tmp_path)
    assert found is not None and found.step == 1
    assert len(found.damaged) == 1 and reason in found.damaged[0] and "00000002" in found.damaged[0]
    with pytest.raises(checkpoints.DamagedError, match=reason):
        checkpoints.load(tmp_path, 2)


def test_none_valid_is_an_error_that_lists_them(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    flip_a_bit(tmp_path / "00000001")
    flip_a_bit(tmp_path / "00000002")
    with pytest.raises(checkpoints.DamagedError, match=r"00000002.*00000001.*train anew"):
        checkpoints.newest(tmp_path)


def test_a_first_save_that_was_cut_short_counts_as_nothing(tmp_path: Path) -> None:
    (tmp_path / "00000001.new").mkdir()
    (tmp_path / "00000001.new" / "state.pt").write_bytes(b"half")
    assert checkpoints.newest(tmp_path) is None


def test_a_replacement_that_was_whole_is_read_and_then_put_in_place(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    (tmp_path / "00000004").rename(tmp_path / "00000004.new")
    (tmp_path / "00000004").mkdir()
    found = checkpoints.newest(tmp_path)
    assert found is not None and found.step == 4
    assert checkpoints.load(tmp_path, 4)["params"]["w"][0] == 4
    assert checkpoints.manifest(tmp_path, 4)["step"] == 4
    checkpoints.save(tmp_path, 4, snapshot(9.0))
    assert [path.name for path in tmp_path.iterdir()] == ["00000004"]
    assert checkpoints.load(tmp_path, 4)["params"]["w"][0] == 9


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "exploded",)

    saved(tmp_path, 1, 2)
    state = tmp_path / "00000002" / "state.pt"
    torch.save({"bomb": Bomb()}, state)
    manifest = {"format": 1, "step": 2, "extra": {}, **checkpoints._fingerprint(state)}
    (state.parent / "manifest.json").write_text(json.dumps(manifest))
    found = checkpoints.newest(tmp_path)
    assert found is not None and found.step == 1 and "without running code" in found.damaged[0]
    state.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(checkpoints.DamagedError):
        checkpoints.load(tmp_path, 2)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("leaf", [numpy.float64(1.0), Path("x"), {1}, object(), checkpoints.Newest({}, 1, [])])
def test_what_could_not_be_read_back_is_refused_and_named(tmp_path: Path, leaf: object) -> None:
    with pytest.raises(TypeError, match=r"snapshot\['best'\]\['score'\]\[0\]"):
        checkpoints.save(tmp_path, 1, {"best": {"score": [leaf]}})
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    saved(tmp_path, 1, 5)
    with pytest.raises(ValueError, match=r"no checkpoint of step 3: choose one of \[1, 5\]"):
        checkpoints.load(tmp_path, 3)


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, 5)
    checkpoints.prune(tmp_path, keep=2, spared={1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001", "00000004", "00000005"]
    with pytest.raises(ValueError, match="at least 1"):
        checkpoints.prune(tmp_path, keep=0, spared=())


def test_prune_counts_only_valid_ones(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4)
    flip_a_bit(tmp_path / "00000004")
    checkpoints.prune(tmp_path, keep=2, spared=())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000002", "00000003", "00000004"]


def test_prune_removes_the_leftovers_of_old_saves(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    (tmp_path / "00000001.new").mkdir()
    checkpoints.prune(tmp_path, keep=1, spared=())
    assert [path.name for path in tmp_path.iterdir()] == ["00000002"]


def test_params_sha256_is_of_raw_bytes_in_name_order() -> None:
    first = torch.arange(12.0).reshape(3, 4)
    params = {"b": torch.tensor(2.0), "a": first}
    digest = checkpoints.params_sha256(params)
    assert digest == checkpoints.params_sha256({"a": first.T.contiguous().T, "b": torch.tensor(2.0)})
    assert digest != checkpoints.params_sha256({"a": first, "b": torch.tensor(2.0 + 1e-6)})
    expected = hashlib.sha256(first.numpy().tobytes() + numpy.float32(2).tobytes()).hexdigest()
    assert digest == expected
    assert checkpoints.params_sha256({"a": torch.ones(2, dtype=torch.bfloat16), "e": torch.zeros(0)})


SAVER = """
import itertools, sys, torch
from pathlib import Path
from metatrain.runs import checkpoints
folder = Path(sys.argv[1])
found = checkpoints.newest(folder)
first = found.step if found else 0
print("ready", flush=True)
for n in itertools.count():
    # Half of the saves replace the newest one, as a replay after a resume does.
    step = first + n // 2
    checkpoints.save(folder, step, {"step": step, "w": torch.full((20_000,), float(step))})
    checkpoints.prune(folder, keep=1, spared=())
    print(step, flush=True)
"""


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_sigkill_in_a_save_loop_never_loses_the_newest(tmp_path: Path, kills: int) -> None:
    chance = random.Random(0)
    last = -1
    for _ in range(kills):
        saver = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert saver.stdout is not None
        assert saver.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0, 0.25))
        saver.send_signal(signal.SIGKILL)
        reported = [int(line) for line in saver.communicate()[0].split("\n")[:-1]]
        last = max([last, *reported])
        found = checkpoints.newest(tmp_path)
        if last >= 0:
            assert found is not None and found.step >= last
            assert found.snapshot["step"] == found.step and torch.all(found.snapshot["w"] == found.step)
            last = found.step
    assert last > kills


def test_two_kills_in_a_row_at_any_call_leave_a_valid_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replace the only checkpoint, stopped at each call that touches the folder; replace again, stopped likewise."""

    class KilledError(Exception):
        pass

    calls = {"left": 10_000}

    def dies(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if calls["left"] == 0:
                raise KilledError
            calls["left"] -= 1
            return function(*args, **kwargs)

        return wrapped

    def survives(folder: Path, kill_at: int) -> bool:
        """Whether a save is done before its call number `kill_at`; either way a valid checkpoint is there after it."""
        calls["left"] = kill_at
        with contextlib.suppress(KilledError):
            checkpoints.save(folder, 6, snapshot())
        done, calls["left"] = calls["left"] > 0, 10_000
        found = checkpoints.newest(folder)
        assert found is not None and found.step == 6
        return done

    for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "open"):
        monkeypatch.setattr(Path, name, dies(getattr(Path, name)))
    monkeypatch.setattr(checkpoints.shutil, "rmtree", dies(checkpoints.shutil.rmtree))
    for first in range(100):
        done = False
        for second in range(100):
            folder = tmp_path / f"{first}-{second}"
            checkpoints.save(folder, 6, snapshot())
            done = survives(folder, first)
            if survives(folder, second):
                break
        if done:
            break
    assert 8 < first < 99

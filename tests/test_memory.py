"""Learners of sequences: what they may not see, scores by instance, and gradients against networks written here."""

import re

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

import metatrain
from metatrain.algorithms import ALGORITHMS
from metatrain.algorithms.memory.mann import least_used
from metatrain.algorithms.memory.sequences import predict_all
from metatrain.engine import Engine
from metatrain.evaluation.evaluate import score_tasks
from metatrain.models import Conv4, Model, build_model
from metatrain.training.worker import Worker
from metatrain.types import Context
from metatrain.yaml_config import apply_overrides
from tasks.sequences import Sequences, as_sequences
from tasks.sources.gaussian_process import GaussianProcess
from tasks.sources.strokes import Strokes
from tasks.types import EpisodeShape, LabelledSequence
from tests.command_line import last_json
from tests.command_line import metatrain as command
from tests.configurations import ON_SEQUENCES, TINY, tiny
from tests.episodes import classification_spec, context_of

SETTINGS = {
    "lstm": {"hidden": 6},
    "mann": {"hidden": 6, "slots": 5, "slot_width": 3, "heads": 2},
    "snail": {"length": 9, "filters": 3, "keys": (3, 4, 5), "values": (2, 3, 4)},
}
SPEC = classification_spec(3, 8, 1)._replace(ordered=True)
MODEL: Model = build_model(Conv4(width=4, depth=2, normalization="none"), SPEC, seed=0)
MODEL.to(torch.device("cpu"), torch.float64)
STEPS = 9


class Setting:
    def __init__(self, name: str, model: Model = MODEL, **settings: object) -> None:
        self.method, self.model = ALGORITHMS[name](**SETTINGS[name] | settings), model
        self.params = {key: value.double() for key, value in self.method.init(model, SPEC, 0).items()}

    def predict(self, task: LabelledSequence) -> Tensor:
        return predict_all(self.method, self.model, self.params, task, Context(torch.tensor(0), torch.tensor(-1)))

    def gradient(self, tasks: LabelledSequence, kind: str) -> dict[str, Tensor]:
        context = context_of(len(tasks.y))
        return self.method.meta_gradient(self.model, self.params, tasks, context, Engine(kind)).grads


def sequences(count: int) -> LabelledSequence:
    """Three examples of each of three classes, in any order."""
    random = torch.Generator().manual_seed(0)
    orders = torch.stack([torch.randperm(STEPS, generator=random) for _ in range(count)])
    return LabelledSequence(torch.rand(count, STEPS, 1, 8, 8, generator=random).double(), orders % 3)


def one_task() -> LabelledSequence:
    return tree_map(lambda leaf: leaf[0], sequences(1))


@pytest.fixture(params=SETTINGS)
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param)


def test_every_learner_of_sequences_is_here():
    assert list(SETTINGS) == ON_SEQUENCES


def test_a_prediction_depends_on_nothing_that_comes_later(setting):
    task, at = one_task(), 4
    before = setting.predict(task)
    x, y = task.x.clone(), task.y.clone()
    x[at + 1 :] += 1.0
    y[at:] = (y[at:] + 1) % 3  # the label of a step is told after it
    after = setting.predict(LabelledSequence(x, y))
    torch.testing.assert_close(after[: at + 1], before[: at + 1], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(after[at + 1 :], before[at + 1 :], rtol=1e-4)


def test_earlier_examples_and_their_labels_are_remembered(setting):
    task = one_task()
    before = setting.predict(task)[-1]
    for changed in (task._replace(x=task.x.index_fill(0, torch.tensor([2]), 0.5)), task._replace(y=task.y.roll(1))):
        assert float((setting.predict(changed)[-1] - before).abs().max()) > 1e-6


def test_vmap_and_loop_agree(setting):
    by_loop, by_vmap = (setting.gradient(sequences(4), kind) for kind in ("loop", "vmap"))
    assert by_loop.keys() == by_vmap.keys() == setting.params.keys()
    for name, slope in by_loop.items():
        torch.testing.assert_close(by_vmap[name], slope, rtol=1e-9, atol=1e-11)


def test_scores_are_those_of_the_first_second_and_third_example_of_each_class(setting):
    tasks = sequences(5)
    found = score_tasks(setting.method, setting.model, setting.params, tasks, context_of(5), Engine("vmap")).values
    assert found["inner_step"].tolist() == [[0, 1, 2]] * 5
    for number in range(5):
        task = tree_map(lambda leaf, number=number: leaf[number], tasks)
        logits, seen = setting.predict(task), [0, 0, 0]
        losses, right = torch.zeros(3, 3).double(), torch.zeros(3, 3)
        for step, label in enumerate(task.y.tolist()):
            losses[seen[label], label] = F.cross_entropy(logits[step : step + 1], task.y[step : step + 1])
            right[seen[label], label] = logits[step].argmax() == label
            seen[label] += 1
        torch.testing.assert_close(found["loss"][number], losses.mean(1), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found["accuracy"][number], right.mean(1).double())


def test_tasks_of_fewer_classes_are_read_and_of_more_refused(setting):
    few = setting.model.for_tasks(SPEC._replace(ways=2), setting.params)
    task = one_task()
    two = LabelledSequence(task.x[task.y < 2], task.y[task.y < 2])
    context = Context(torch.tensor(0), torch.tensor(-1))
    assert predict_all(setting.method, few, setting.params, two, context).shape == (6, 2)
    many = setting.model.for_tasks(SPEC._replace(ways=4), setting.params)
    with pytest.raises(ValueError, match=re.escape("ways: 4 classes, and the network was trained for 3 at most")):
        predict_all(setting.method, many, setting.params, task, context)


# Against networks written here.


def cell(params: dict[str, Tensor], name: str, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """By torch's own cell, whose gates are i, f, u, o; ours i, f, o, u of [x, h]."""
    weight, bias = (
        torch.cat([params[f"{name}.gates.{kind}"].chunk(4)[k] for k in (0, 1, 3, 2)]) for kind in ("weight", "bias")
    )
    size = len(x)
    h, c = torch.lstm_cell(
        x[None], (h[None], c[None]), weight[:, :size], weight[:, size:], bias, torch.zeros_like(bias)
    )
    return h[0], c[0]


def affine(params: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def standardised(features: Tensor) -> Tensor:
    centred = features - features.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()


def lstm_logits(params: dict[str, Tensor], inputs: list[Tensor]) -> Tensor:
    h = c = torch.zeros(6).double()
    found = []
    for x in inputs:
        h, c = cell(params, "recurrent.cell", x, h, c)
        found.append(affine(params, "recurrent.output", h))
    return torch.stack(found)


def mann_logits(params: dict[str, Tensor], inputs: list[Tensor]) -> Tensor:
    h = c = torch.zeros(6).double()
    memory = [torch.full((3,), 1e-6).double() for _ in range(5)]
    used, read, recalled = [0.0] * 5, [[torch.tensor(0.0).double()] * 5 for _ in range(2)], torch.zeros(6).double()
    gates = torch.sigmoid(params["memory.gate"])[:, 0]
    found = []
    for x in inputs:
        h, c = cell(params, "memory.controller", torch.cat([x, recalled]), h, c)
        keys = torch.tanh(affine(params, "memory.keys", h)).view(2, 3)
        free = sorted(range(5), key=lambda slot: float(torch.as_tensor(used[slot]).detach()))[:2]
        for slot in free:
            memory[slot] = torch.zeros(3).double()
        write = [[gates[i] * read[i][s] + (1 - gates[i]) * (free[i] == s) for s in range(5)] for i in range(2)]
        memory = [memory[s] + sum(write[i][s] * keys[i] for i in range(2)) for s in range(5)]
        near = [
            torch.stack([F.cosine_similarity(keys[i], memory[s], dim=0, eps=1e-12) for s in range(5)]) for i in (0, 1)
        ]
        strengths = 1 + torch.log1p(torch.exp(affine(params, "memory.strengths", h)))
        read = [list((strength * one).softmax(0)) for strength, one in zip(strengths, near, strict=True)]
        used = [0.99 * used[s] + sum(read[i][s] + write[i][s] for i in range(2)) for s in range(5)]
        recalled = torch.cat([sum(read[i][s] * memory[s] for s in range(5)) for i in range(2)])
        found.append(affine(params, "memory.output", torch.cat([h, recalled])))
    return torch.stack(found)


def snail_logits(params: dict[str, Tensor], inputs: list[Tensor]) -> Tensor:
    """By one sequence for each step: the examples before it with their labels, and its own without."""
    rows, none = torch.stack(inputs), torch.zeros(3).double()
    features, told = rows[:, :-3], [*rows[1:, -3:], none]
    whole = [torch.cat([one, label]) for one, label in zip(features, told, strict=True)]
    return torch.stack([snail_prefix(params, [*whole[:t], torch.cat([features[t], none])]) for t in range(len(rows))])


def snail_prefix(params: dict[str, Tensor], inputs: list[Tensor]) -> Tensor:
    x, number = torch.stack(inputs), 0
    for block in range(3):
        name = f"snail.blocks.{number}"
        q, k, v = (affine(params, f"{name}.{part}", x) for part in ("query", "key", "value"))
        scores = [torch.cat([k[:t] @ q[t] / k.shape[1] ** 0.5, torch.zeros(1).double()]) for t in range(len(x))]
        rows = [score.softmax(0)[:-1] @ v[:t] for t, score in enumerate(scores)]
        x, number = torch.cat([x, torch.stack(rows)], 1), number + 1
        for dilation in (1, 2, 4, 8) if block < 2 else ():
            weight, bias = params[f"snail.blocks.{number}.linear.weight"], params[f"snail.blocks.{number}.linear.bias"]
            now, before = weight.chunk(2, 1)
            kernel = torch.stack([before, now], 2)
            padded = F.pad(x.T[None], (dilation, 0))
            a, b = F.conv1d(padded, kernel, bias, dilation=dilation)[0].T.chunk(2, 1)
            x, number = torch.cat([x, torch.tanh(a) * torch.sigmoid(b)], 1), number + 1
    return affine(params, "snail.output", x)[-1]


@pytest.mark.parametrize(("name", "logits"), [("lstm", lstm_logits), ("mann", mann_logits), ("snail", snail_logits)])
def test_gradients_are_those_of_networks_written_apart(name, logits):
    setting, tasks, total = Setting(name), sequences(3), torch.tensor(0.0).double()
    params = {key: value.clone().requires_grad_() for key, value in setting.params.items()}
    for number in range(3):
        x, y = tasks.x[number], tasks.y[number]
        features = setting.model.embed(params, x, torch.tensor(-1))
        features = standardised(features)
        features = standardised(torch.stack([one - features[: t + 1].mean(0) for t, one in enumerate(features)]))
        told = [torch.zeros(3).double(), *F.one_hot(y[:-1], 3).double()]
        found = logits(params, [torch.cat([one, label]) for one, label in zip(features, told, strict=True)])
        torch.testing.assert_close(setting.predict(LabelledSequence(x, y)), found.detach(), rtol=1e-9, atol=1e-10)
        total = total + F.cross_entropy(found, y)
    expected = dict(zip(params, torch.autograd.grad(total, list(params.values())), strict=True))
    slopes = setting.gradient(tasks, "loop")
    scale = max(float(value.abs().max()) for value in expected.values())
    assert max(float((slopes[key] - expected[key]).abs().max()) for key in expected) / scale < 1e-9


def test_the_slots_used_least_come_first():
    used = torch.tensor([0.5, 0.1, 0.9, 0.3])
    assert least_used(used, 2).tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert least_used(torch.zeros(3), 2).tolist() == [[1, 0, 0], [0, 1, 0]]


# Tasks as sequences.

SHAPE = EpisodeShape(3, 2, 1)


def drawn(split: str = "test", seed: int = 0) -> Sequences:
    return as_sequences(Strokes().distribution(split, SHAPE, seed), "strokes", split, seed)


@given(indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=4), seed=st.integers(0, 2**40))
def test_a_sequence_is_the_same_whatever_is_asked_with_it(indices, seed):
    together = drawn(seed=seed).episodes(indices)
    for row, index in enumerate(indices):
        for one, all_ in zip(tree_leaves(drawn(seed=seed).episodes([index])), tree_leaves(together), strict=True):
            assert torch.equal(one[0], all_[row])


def test_a_sequence_holds_the_examples_of_its_episode_in_an_order_of_its_own():
    found, episodes = drawn().episodes(range(30)), Strokes().distribution("test", SHAPE, 0).episodes(range(30))
    assert found.x.shape == (30, 9, 1, 28, 28) and found.y.shape == (30, 9)
    assert torch.equal(found.y.sort(1).values, torch.arange(3).repeat_interleave(3).expand(30, -1))
    for number in range(30):
        pairs = {(int(y), x.numpy().tobytes()) for x, y in zip(found.x[number], found.y[number], strict=True)}
        parts = (episodes.support, episodes.query)
        assert pairs == {
            (int(y), x.numpy().tobytes()) for part in parts for x, y in zip(part.x[number], part.y[number], strict=True)
        }
    assert len({tuple(order.tolist()) for order in found.y}) > 20, "a label tells nothing by its place"


def test_the_worker_serves_sequences_to_methods_that_read_them_and_leaves_out_baselines_that_do_not():
    worker = Worker(tiny("algorithm={name: lstm, hidden: 4}", "model.normalization=none"), torch.device("cpu"))
    assert worker.distribution("train").spec.ordered
    assert isinstance(worker.distribution("train").episodes([0]), LabelledSequence)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=re.escape("lstm may not see later examples of a sequence, as statistics")):
        Setting("lstm", build_model(Conv4(width=4, depth=2), SPEC, 0))
    with pytest.raises(ValueError, match=re.escape("algorithm.heads: 6 heads and 5 slots: lower it")):
        Setting("mann", heads=6)
    with pytest.raises(ValueError, match=re.escape("algorithm.decay: 1 is no share")):
        Setting("mann", decay=1.0)
    functions = GaussianProcess().distribution("test", EpisodeShape(None, 3, 2), 0)
    with pytest.raises(
        ValueError, match=re.escape("tasks of gaussian_process have no classes, and this algorithm reads")
    ):
        as_sequences(functions, "gaussian_process", "test", 0)


def test_a_run_has_its_score_by_instance_and_no_baselines_that_adapt_to_support_sets(tmp_path):
    settings = ("algorithm={name: mann, hidden: 4, slots: 6, slot_width: 3, heads: 2}", "model.normalization=none")
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(apply_overrides(TINY, settings)))
    found = last_json(command(tmp_path, "train", "m.yaml", "--json"))
    assert found["test"]["score"] == "accuracy" and found["test"]["curve"]["steps"] == [0, 1, 2, 3]
    assert not found["test"]["transductive"] and found["test"]["ci95_classes"] is not None
    assert [one["learner"] for one in found["baselines"]] == ["untrained"]
    with pytest.raises(
        ValueError, match="mann scores tasks as a whole and predicts no examples: use metatrain evaluate"
    ):
        metatrain.load(tmp_path / found["run_dir"])
    done = command(tmp_path, "train", "m.yaml", "model.normalization=transductive", expect=2)
    assert "set model.normalization=group" in done.err and len(done.err.strip().splitlines()) == 1

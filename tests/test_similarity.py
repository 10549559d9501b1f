"""Task2Vec: the Fisher information of single tasks, distances of tasks and sources, and `metatrain data similarity`."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import spearmanr
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from metatrain.models import Conv4, build_model
from metatrain.models.dropout import NO_NOISE
from metatrain.models.fixed_norm import with_fixed_statistics
from metatrain.similarity.correlation import spearman, spearman_interval
from metatrain.similarity.distances import (
    classical_scaling,
    source_distances,
    task_distances,
    trivial_distances,
)
from metatrain.similarity.task2vec import embed_task, filters_of, fit_head
from metatrain.similarity.transfer import Transfer, against_own_runs
from tasks.corruptions import Corruption, corrupted
from tasks.sources.strokes import Strokes
from tasks.types import Episode, EpisodeShape, Examples, TaskSpec
from tests import pictures
from tests.command_line import last_json, metatrain
from tests.compared_runs import tiny_run
from tests.configurations import TINY

SILENT = torch.tensor(NO_NOISE)
SHAPE = EpisodeShape(3, 1, 4)
RNG = np.random.default_rng(0)


def network(side: int, normalization: str = "transductive", **settings: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    spec = TaskSpec("classification", 3, (1, side, side), ())
    model = build_model(Conv4(downsample="stride", normalization=normalization, **settings), spec, 3)
    return model, model.initial(head=False)


def embeddings(source: Any, count: int = 6) -> np.ndarray:
    model, params = network(28, width=8, depth=3)
    tasks = source.distribution("test", SHAPE, 0)
    found = [
        embed_task(model, params, tree_map(lambda leaf: leaf[0], tasks.episodes([index])), 3) for index in range(count)
    ]
    return torch.stack(found).double().numpy()


def naive_fisher(params: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Two convolutions with normalisation, a loop over examples and classes, a head by L-BFGS; nothing of ours."""
    w, b, gamma, beta = (
        [params[f"model.body.{block}.{part}"].clone() for block in (0, 1)]
        for part in ("0.weight", "0.bias", "1.weight", "1.bias")
    )
    moments: list[tuple[torch.Tensor, torch.Tensor]] = []

    def features(x: torch.Tensor, first: bool = False) -> torch.Tensor:
        for layer in (0, 1):
            x = F.conv2d(x, w[layer], b[layer], stride=2, padding=1)
            if first:
                moments.append((x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)))
            mean, variance = moments[layer]
            x = F.relu(F.batch_norm(x, mean, variance, gamma[layer], beta[layer], training=False))
        return x.mean((2, 3))

    z = features(x, first=True)
    scale = z.var(0, correction=0).sum().sqrt()
    head, bias = torch.zeros(z.shape[1], 3, dtype=z.dtype), torch.zeros(3, dtype=z.dtype)
    descent = torch.optim.LBFGS([head.requires_grad_(), bias.requires_grad_()], max_iter=500, tolerance_grad=1e-13,
                                tolerance_change=0, line_search_fn="strong_wolfe")  # fmt: skip

    def loss() -> torch.Tensor:
        descent.zero_grad()
        value = F.cross_entropy(z / scale @ head + bias, y, reduction="sum") + head.square().sum() / 2
        value.backward()
        return value

    descent.step(loss)
    found = [torch.zeros(len(weight), dtype=z.dtype) for weight in w]
    for weight in w:
        weight.requires_grad_()
    for one in x:
        log_p = (features(one[None])[0] / scale @ head.detach() + bias.detach()).log_softmax(0)
        for chance, value in zip(log_p.exp().detach(), log_p, strict=True):
            slopes = torch.autograd.grad(value, w, retain_graph=True)
            for total, slope in zip(found, slopes, strict=True):
                total += chance * slope.square().mean((1, 2, 3)) / len(x)
    return torch.cat(found)


def test_the_fisher_information_is_that_of_a_loop_over_examples_and_classes():
    model, params = network(8, width=4, depth=2)
    model.to(torch.device("cpu"), torch.float64)
    params = {name: value.double() for name, value in params.items()}
    x, y = torch.randn(12, 1, 8, 8, dtype=torch.float64, generator=torch.manual_seed(0)), torch.arange(3).repeat(4)
    task = Episode(Examples(x[:3], y[:3]), Examples(x[3:], y[3:]))
    found, expected = embed_task(model, params, task, 3), naive_fisher(params, x, y)
    assert found.shape == (8,) and (expected > 0).all()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_examples_are_computed_in_parts_of_any_size(monkeypatch):
    together = embeddings(Strokes(), 1)
    monkeypatch.setattr("metatrain.similarity.task2vec._NUMBERS", 1)
    np.testing.assert_allclose(embeddings(Strokes(), 1), together, rtol=1e-5)


def test_the_head_is_at_the_minimum_whatever_the_scale_of_the_features():
    y, generator = torch.arange(3).repeat(8), torch.manual_seed(1)
    features = torch.randn(24, 5, dtype=torch.float64, generator=generator)
    w, b = (value.requires_grad_() for value in fit_head(features, y, 3))
    scale = features.var(0, correction=0).sum().sqrt()
    loss = F.cross_entropy(features @ w + b, y, reduction="sum") + (scale * w).square().sum() / 2
    for slope in torch.autograd.grad(loss, (w, b)):
        assert slope.abs().max() < 1e-8
    other = fit_head(1000 * features, y, 3)
    torch.testing.assert_close(1000 * other[0], w.detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("normalization", ["transductive", "inductive", "none"])
def test_fixed_statistics_are_those_of_the_examples_and_move_with_no_other(normalization):
    model, params = network(8, normalization, width=4, depth=2)
    x = torch.randn(6, 1, 8, 8, generator=torch.manual_seed(2))
    before = {name: value.clone() for name, value in params.items()}
    fixed = with_fixed_statistics(model, params, x)
    torch.testing.assert_close(fixed.embed(params, x, SILENT), model.embed(params, x, SILENT), rtol=1e-4, atol=1e-5)
    alone = torch.cat([fixed.embed(params, one[None], SILENT) for one in x])
    torch.testing.assert_close(alone, fixed.embed(params, x, SILENT), rtol=1e-4, atol=1e-5)
    assert fixed.normalization == "none" and model.normalization == normalization
    assert all(torch.equal(params[name], value) for name, value in before.items())


def test_distances_are_symmetric_and_zero_for_the_same_task_at_any_scale():
    f = RNG.gamma(1.0, size=(5, 7))
    found = task_distances(np.concatenate([f, f[:1], 3 * f[:1], np.zeros((1, 7))]))
    assert np.array_equal(found, found.T) and (found >= 0).all() and (found <= 1).all()
    assert found[0, 5] == pytest.approx(0, abs=1e-12) and found[0, 6] == pytest.approx(0, abs=1e-12)
    assert (found[:7, 7] == 1).all() and found[7, 7] == 0
    a, b = f[1] / (f[1] + f[2]), f[2] / (f[1] + f[2])
    assert found[1, 2] == pytest.approx(1 - a @ b / np.sqrt((a @ a) * (b @ b)), rel=1e-12)
    dead = np.concatenate([f, np.zeros((5, 2))], 1)
    np.testing.assert_allclose(task_distances(dead), found[:5, :5], atol=1e-12)


def test_the_trivial_embedding_is_where_all_filters_are_alike():
    f = np.stack([np.ones(4), np.array([1e-3, 1e-3, 1.0, 1.0]), np.array([1e-3, 1.0, 1.0, 2.0])])
    even, half, some = trivial_distances(f)
    assert even == pytest.approx(0, abs=1e-12) and half > some > 0.1


def test_a_mean_over_pairs_has_the_interval_of_resampled_tasks():
    d = task_distances(RNG.gamma(1.0, size=(15, 6)))
    places = {"a": np.arange(6), "b": np.arange(6, 15)}
    found = source_distances(d, places)
    a, b = d[:6, :6], d[6:, 6:]
    own = {
        name: np.mean([one[pair] for pair in combinations(range(len(one)), 2)]) for name, one in (("a", a), ("b", b))
    }
    assert {name: one.value for name, one in found.within.items()} == pytest.approx(own)
    between = found.between["a", "b"]
    assert between.value == pytest.approx(d[:6, 6:].mean())
    assert found.excess["a", "b"].value == pytest.approx(between.value - (own["a"] + own["b"]) / 2)
    means, inside = [], []
    for _ in range(4000):
        i, j = RNG.integers(0, 6, 6), RNG.integers(6, 15, 9)
        means.append(d[np.ix_(i, j)].mean())
        pairs = [d[k, m] for k, m in combinations(j, 2) if k != m]
        inside.append(np.mean(pairs))
    np.testing.assert_allclose(between[1:], np.percentile(means, [2.5, 97.5]), rtol=0.02)
    np.testing.assert_allclose(found.within["b"][1:], np.percentile(inside, [2.5, 97.5]), rtol=0.02)


def test_other_images_are_further_apart_than_other_characters():
    given = {
        "strokes": Strokes(),
        "others": Strokes(seed=9),
        "inverted": corrupted(Strokes(), "strokes", Corruption("invert", 1)),
        "noisy": corrupted(Strokes(), "strokes", Corruption("gaussian_noise", 5)),
    }
    places = {name: np.arange(6) + 6 * number for number, name in enumerate(given)}
    found = source_distances(task_distances(np.concatenate([embeddings(one) for one in given.values()])), places)
    excess = found.excess
    assert excess["strokes", "others"].low < 0 < excess["strokes", "others"].high
    for name in ("inverted", "noisy"):
        assert excess["strokes", name].low > 0.02, name
        assert found.between["strokes", name].value > 1.2 * found.between["strokes", "others"].value, name


def test_a_map_keeps_distances_that_a_plane_can_have():
    points = RNG.normal(size=(9, 2))
    d = np.linalg.norm(points[:, None] - points[None], axis=2)
    found, share = classical_scaling(d)
    np.testing.assert_allclose(np.linalg.norm(found[:, None] - found[None], axis=2), d, atol=1e-9)
    assert share == pytest.approx(1) and classical_scaling(np.zeros((3, 3)))[1] == 1.0
    np.testing.assert_allclose(classical_scaling(d[:2, :2])[0][:, 0], [d[0, 1] / 2, -d[0, 1] / 2], atol=1e-9)


def test_the_rank_correlation_is_scipy_s_also_of_ties():
    for size in (3, 10, 40):
        x, y = RNG.integers(0, 6, size).astype(float), RNG.normal(size=size)
        assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert spearman(np.arange(5.0), np.exp(np.arange(5.0))) == pytest.approx(1)
    assert np.isnan(spearman(np.ones(4), np.arange(4.0)))


def test_the_interval_of_a_rank_correlation_narrows_with_points_and_needs_a_few():
    widths = []
    for size in (12, 120):
        x = RNG.normal(size=size)
        found = spearman_interval(x, x + RNG.normal(size=size))
        assert -1 <= found.low < found.value < found.high <= 1
        widths.append(found.high - found.low)
    assert widths[1] < 0.6 * widths[0]
    few = spearman_interval(np.arange(3.0), np.arange(3.0))
    assert few.value == pytest.approx(1) and np.isnan(few.low) and np.isnan(few.high)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of three sources, two of them with tasks alone, and a run on each of two that was tested on the others."""
    folder = tmp_path_factory.mktemp("similar")
    root = pictures.write(folder / "raw", pictures.split_files())
    shape = {"ways": 3, "shots": 1, "queries": 3}
    photographs = {"name": "image_folder", "root": str(root), "cache": str(folder / "cache"), "size": 12}
    sources = {"photographs": photographs, "strokes": {"name": "strokes"}, "others": {"name": "strokes", "seed": 9}}
    for name, source in sources.items():
        tasks = source | {"train": shape, "test": shape}
        kept = {"photographs": tasks, "strokes": TINY | {"tasks": tasks}, "others": {"tasks": tasks}}[name]
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(kept))
        if name != "others":
            run = tiny_run(folder, name, f"tasks={json.dumps(tasks)}", "algorithm={name: protonet}")
            (folder / f"{name}.run").write_text(str(run))
    return folder


def run_of(folder: Path, name: str) -> str:
    return (folder / f"{name}.run").read_text()


def test_the_command_says_how_far_sources_are_apart(folder):
    files, few = ("strokes.yaml", "others.yaml", "photographs.yaml"), ("--tasks", "4", "--out", "first")
    done = metatrain(folder, "data", "similarity", run_of(folder, "strokes"), *files, *few, "--json")
    found, kept = last_json(done), json.loads((folder / "first" / "similarity.json").read_text())
    assert (folder / "first" / "similarity.png").read_bytes().startswith(b"\x89PNG")
    assert [one["name"] for one in found["sources"]] == ["strokes", "others", "photographs"]
    assert found["probe"]["filters"] == 16 and found["shape"] == {"ways": 3, "shots": 1, "queries": 3}
    assert found["transfer"] is None and found["tasks"] == 4 and found["split"] == "test"
    pairs = {(one["first"], one["second"]): one for one in found["pairs"]}
    near, far = pairs["strokes", "others"], pairs["strokes", "photographs"]
    assert far["distance"]["value"] > near["distance"]["value"] and far["excess"]["low"] > 0
    assert all(
        pair["distance"]["low"] <= pair["distance"]["value"] <= pair["distance"]["high"] for pair in pairs.values()
    )
    d = np.array(kept["task_distances"])
    assert d.shape == (12, 12) and far["distance"]["value"] == pytest.approx(d[:4, 8:].mean())
    assert [one["source"] for one in kept["map"]] == [name for name in pairs_names(found) for _ in range(4)]
    assert "images of image_folder [3, 12, 12] are brought to those trained on, [1, 28, 28]" in done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("strokes") and "within 0." in lines[0]
    assert lines[3].startswith("strokes and others") and lines[5].startswith(("strokes and photo", "others and photo"))


def pairs_names(found: dict[str, Any]) -> list[str]:
    return [one["name"] for one in found["sources"]]


def test_runs_tell_how_well_distance_predicts_what_they_lose(folder):
    few = ("evaluation.tasks=6", "evaluation.baselines=false", "tracking.uri=null")
    asked = ("data", "similarity", run_of(folder, "photographs"), "strokes.yaml", "others.yaml", "photographs.yaml")
    asked += ("--tasks", "2", "--out", "second")
    runs = [run_of(folder, name) for name in ("strokes", "photographs")]
    done = metatrain(folder, *asked, "--run", runs[0], expect=2)
    assert done.err == (
        f"metatrain: {runs[0]}: holds no result on others.yaml: run `metatrain evaluate {runs[0]} tasks=others.yaml`\n"
    )
    for run, tested in ((runs[0], "others"), (runs[0], "photographs"), (runs[1], "strokes"), (runs[1], "others")):
        metatrain(folder, "evaluate", run, f"tasks={tested}.yaml", *few)
    metatrain(folder, "evaluate", runs[1], "tasks=others.yaml", "tasks.test.ways=2", "evaluation.tasks=20", *few[1:])
    found = last_json(metatrain(folder, *asked, *(f"--run={run}" for run in runs), "--json"))
    points = {(one["trained_on"], one["tested_on"]): one for one in found["transfer"]["points"]}
    assert points.keys() == {
        *(("strokes", "others"), ("strokes", "photographs")),
        *(("photographs", "strokes"), ("photographs", "others")),
    }
    at_home = json.loads((Path(runs[1]) / "evaluations" / "test.json").read_text())["test"]["accuracy"]
    elsewhere = [json.loads(path.read_text()) for path in (Path(runs[1]) / "evaluations").glob("test-*.json")]
    (there,) = (one for one in elsewhere if one["overrides"] == ["tasks=others.yaml", *few])
    one = points["photographs", "others"]
    assert one["at_home"] == at_home and one["accuracy"] == there["test"]["accuracy"]
    assert one["loss"] == pytest.approx(at_home - one["accuracy"])
    own = metatrain(folder, *asked[:5], *asked[6:], *(f"--run={run}" for run in runs), "--json")
    assert pairs_names(last_json(own)) == ["strokes", "others", f"tasks of {Path(runs[1]).name}"]
    assert {key: last_json(own)["transfer"]["spearman"][key] for key in ("low", "high")} == {"low": None, "high": None}
    assert "(n/a)  (3 results on other sources)" in own.out
    few_points = metatrain(folder, *asked[:5], *asked[6:], "--run", runs[0], expect=2)
    assert few_points.err.startswith("metatrain: --run: 1 results on other sources have no rank correlation: give")
    x, y = ([one[key] for one in points.values()] for key in ("distance", "loss"))
    assert found["transfer"]["spearman"]["value"] == pytest.approx(spearmanr(x, y).statistic)


def test_losses_are_from_runs_of_the_source_tested_on_where_every_source_has_one():
    rows = [
        ("a1", "a", "b", 0.9, 0.5),
        ("a2", "a", "b", 0.8, 0.6),
        ("b1", "b", "a", 0.7, 0.65),
    ]
    found = [Transfer(*row, row[3]) for row in rows]
    assert [round(one.loss, 9) for one in against_own_runs(found)] == [0.2, 0.1, 0.2]
    assert [round(one.loss, 9) for one in against_own_runs(found[:2])] == [0.4, 0.2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("strokes.yaml", "--tasks", "1"), "--tasks: 1 has no pairs of tasks: set 2 or more"),
        (("strokes.yaml",), "SOURCE…: one source is as far from nothing: name two files or more"),
        (("strokes.yaml", "nowhere.yaml"), "nowhere.yaml: "),
        (
            ("strokes.yaml", "wide.yaml"),
            "tasks.test: strokes has 3-way 1-shot, 3 queries and wide has 5-way 1-shot, 15",
        ),
        (("strokes.yaml", "curves.yaml"), "curves: tasks of one size with classes are compared: set tasks.test.ways"),
        (("strokes.yaml", "rows.yaml"), "rows.yaml: tasks.target: missing: set it to the name of"),
        (("strokes.yaml", "bare.yaml"), "bare.yaml: tasks: missing: name one"),
        (("strokes.yaml", "strokes.yaml"), "SOURCE…: "),
        (("strokes.yaml", "photographs.yaml", "--split", "validation", "--run", "nowhere"), "no run at nowhere: "),
        (("strokes.yaml", "others.yaml", "--out", "none/here"), "--out: there is no folder 'none': make it, or use"),
    ],
)
def test_what_cannot_be_compared_is_told_in_a_line(folder, arguments, message):
    (folder / "wide.yaml").write_text("name: strokes\n")
    (folder / "curves.yaml").write_text("tasks: {name: sinusoid, test: {ways: null}}\n")
    (folder / "bare.yaml").write_text("model: {name: mlp}\n")
    (folder / "rows.yaml").write_text("tasks: {name: table, root: wine, test: {ways: 3, shots: 1, queries: 3}}\n")
    done = metatrain(folder, "data", "similarity", run_of(folder, "strokes"), *arguments, expect=2)
    assert done.err.splitlines()[-1].startswith(f"metatrain: {message}"), done.err
    assert "Traceback" not in done.err and not (folder / "similarity").exists()


def test_a_network_without_filters_embeds_no_tasks():
    _, params = network(28, width=4, depth=1)
    scales = {name: value for name, value in params.items() if value.dim() == 1}
    with pytest.raises(ValueError, match="model: its body has no weights to embed tasks by: use a run with a network"):
        filters_of(scales)
    head_only = {"model.head.weight": torch.ones(3, 4)}
    with pytest.raises(ValueError, match="no weights"):
        filters_of(head_only)
    assert list(filters_of(params | head_only)) == ["model.body.0.0.weight"]

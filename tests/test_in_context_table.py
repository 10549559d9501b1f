"""In-context learning on tables: what changes no prediction, and gradients against a network written here."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metatrain.algorithms.in_context.table import InContextTable, known_mean_and_std
from metatrain.engine import Engine
from metatrain.metrics import task_loss
from metatrain.models import Model, build_model, transformer
from metatrain.models.architectures import MLP, Identity
from metatrain.types import Context
from tasks.sources.causal_tables import CausalTables
from tasks.types import Episode, EpisodeShape, Examples, PaddedExamples

TABLES = CausalTables((1, 6), (2, 4), fewest=5, missing=1.0).distribution("test", EpisodeShape(None, 9, 7), 0)
MODEL: Model = build_model(Identity(), TABLES.spec, seed=0)
METHOD = InContextTable(width=8, layers=3, heads=2, hidden=12)
PARAMS = {name: value.double() for name, value in METHOD.init(MODEL, TABLES.spec, 0).items()}
NO_NOISE = Context(torch.tensor(0), torch.tensor(-1))


def tables(count: int) -> Episode:
    return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, TABLES.episodes(range(count)))


def table(number: int = 3) -> Episode:
    return tree_map(lambda leaf: leaf[number], tables(number + 1))


def predict(support: Examples | PaddedExamples, x: Tensor, model: Model = MODEL) -> Tensor:
    (read,) = METHOD.trajectory(model, PARAMS, support, NO_NOISE)
    return METHOD.predict(model, PARAMS, read, x, NO_NOISE)


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def inside(support: PaddedExamples) -> Examples:
    return Examples(support.x[support.mask], support.y[support.mask])


@pytest.mark.parametrize("number", range(6))
def test_padding_and_absent_features_are_as_if_they_were_not_there(number):
    one = table(number)
    expected = predict(one.support, one.query.x)
    known = ~one.support.x[one.support.mask].isnan().all(0)
    alone = inside(one.support)
    same(predict(alone, one.query.x), expected)
    same(predict(alone._replace(x=alone.x[:, known]), one.query.x[:, known]), expected)
    filled = one.support._replace(x=torch.where(one.support.mask[:, None], one.support.x, 7.0), y=one.support.y + 0)
    same(predict(filled, one.query.x), expected)


@pytest.mark.parametrize("number", range(6))
def test_the_order_of_rows_and_of_features_changes_nothing(number):
    one, random = table(number), torch.Generator().manual_seed(0)
    rows, features = (torch.randperm(size, generator=random) for size in one.support.x.shape)
    shuffled = PaddedExamples(*(part[rows] for part in one.support))
    expected = predict(one.support, one.query.x)
    same(predict(shuffled, one.query.x), expected)
    same(predict(one.support._replace(x=one.support.x[:, features]), one.query.x[:, features]), expected)


def test_the_numbers_of_classes_carry_no_meaning():
    one, order = table(), torch.tensor([2, 0, 3, 1])
    renamed = one.support._replace(y=order[one.support.y])
    same(predict(renamed, one.query.x)[:, order], predict(one.support, one.query.x))
    wider = replace(MODEL, spec=TABLES.spec._replace(ways=9))
    same(predict(one.support, one.query.x, wider)[:, :4], predict(one.support, one.query.x))


def test_a_query_changes_no_other_prediction():
    one = table()
    together = predict(one.support, one.query.x)
    same(torch.cat([predict(one.support, one.query.x[at : at + 1]) for at in range(7)]), together)


def test_scale_and_shift_of_a_feature_change_nothing():
    one = table()
    scale, shift = torch.tensor([2.0, 1e3, 1e-2, 1.0, 5.0, -3.0]).double(), torch.arange(6).double()
    scale = scale.abs()
    moved = one.support._replace(x=one.support.x * scale + shift)
    torch.testing.assert_close(predict(moved, one.query.x * scale + shift), predict(one.support, one.query.x))


def test_classes_that_are_not_shown_have_no_probability():
    one = table()
    shown = one.support.y[one.support.mask].unique()
    probabilities = predict(one.support, one.query.x).softmax(1)
    absent = [number for number in range(4) if number not in shown]
    assert absent and bool((probabilities[:, absent] == 0).all())
    same(probabilities[:, shown].sum(1), torch.ones(7).double())


def test_labels_and_features_matter():
    one = table()
    before = predict(one.support, one.query.x)
    others = one.support._replace(y=one.support.y.roll(1))
    assert float((predict(others, one.query.x) - before).abs().max()) > 1e-5
    assert float((predict(one.support, one.query.x + 1.0) - before).abs().max()) > 1e-4


def test_trimming_a_batch_changes_no_prediction():
    whole = tables(5)
    trimmed = METHOD.trim(whole)
    assert trimmed.support.x.shape[1] == int(whole.support.mask.sum(1).max())
    assert trimmed.support.x.shape[2] == trimmed.query.x.shape[2] <= 6
    for at in range(5):
        one, less = (tree_map(lambda leaf, at=at: leaf[at], tasks) for tasks in (whole, trimmed))
        same(predict(less.support, less.query.x), predict(one.support, one.query.x))
    narrow = whole._replace(support=whole.support._replace(x=whole.support.x.clone()))
    narrow.support.x[..., 1:] = torch.nan
    assert METHOD.trim(narrow).query.x.shape[2] == 1


def test_fused_attention_is_that_written_out(monkeypatch):
    one = table()
    expected = predict(one.support, one.query.x)
    monkeypatch.setattr(transformer, "_LARGE", 0)
    same(predict(one.support, one.query.x), expected)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x, y: (x[:1], y[:1]), id="one row"),
        pytest.param(lambda x, y: (x, y * 0), id="one class"),
        pytest.param(lambda x, y: (x * 0 + 3.0, y), id="constant features"),
        pytest.param(lambda x, y: (x * torch.nan, y), id="nothing known"),
        pytest.param(lambda x, y: (x * 1e30, y), id="huge values"),
    ],
)
def test_tables_at_the_limit_have_finite_predictions(change):
    one = table()
    x, y = change(*inside(one.support))
    found = predict(Examples(x, y), one.query.x)
    assert bool(found.isfinite().all())
    assert set(found.argmax(1).tolist()) <= set(y.tolist())


def test_a_value_missing_in_queries_alone_is_read():
    one = table()
    support = one.support._replace(x=one.support.x.nan_to_num(0.0))
    x = one.query.x.nan_to_num(0.0)
    gone = x.clone()
    gone[:, 0] = torch.nan
    found = predict(support, gone)
    assert bool(found.isfinite().all()) and not torch.allclose(found, predict(support, x))


def gradient(tasks: Episode, vectorize: str) -> dict[str, Tensor]:
    count = len(tasks.query.y)
    context = Context(torch.zeros(count, dtype=torch.int64), torch.arange(count))
    return METHOD.meta_gradient(MODEL, PARAMS, tasks, context, Engine(vectorize)).grads


def test_vmap_and_loop_agree():
    by_loop, by_vmap = (gradient(tables(4), kind) for kind in ("loop", "vmap"))
    assert by_loop.keys() == by_vmap.keys() == PARAMS.keys()
    for name, slope in by_loop.items():
        torch.testing.assert_close(by_vmap[name], slope, rtol=1e-9, atol=1e-11)


# Against a network written here, cell by cell.


def linear(params: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    bias = params.get(f"table.{name}.bias")
    return x @ params[f"table.{name}.weight"].T + (0 if bias is None else bias)


def attend(params: dict[str, Tensor], name: str, query: Tensor, others: Tensor) -> Tensor:
    """Return what one cell [width] reads of others [n, width], head by head."""
    q, k, v = (
        linear(params, f"{name}.{part}", x) for part, x in (("query", query), ("key", others), ("value", others))
    )
    shares = weights(q, k)
    return linear(params, f"{name}.output", torch.cat([shares[0] @ v[:, :4], shares[1] @ v[:, 4:]]))


def weights(q: Tensor, k: Tensor) -> list[Tensor]:
    """Return the weights of others with keys k [n, 8], in each of two heads of width 4."""
    return [(k[:, at : at + 4] @ q[at : at + 4] / 2.0).softmax(0) for at in (0, 4)]


def evidence(params: dict[str, Tensor], name: str, row: list[Tensor], shown: Tensor, is_class: Tensor) -> Tensor:
    """Return what the features' cells of a row tell about the class that the support rows `is_class` have."""
    hidden = []
    for f, cell in enumerate(row):
        query, key = (linear(params, f"{name}.column.{part}", x) for part, x in (("query", cell), ("key", shown[:, f])))
        frequent = [share[is_class].sum() / is_class.double().mean() - 1 for share in weights(query, key)]
        surplus = linear(params, f"{name}.evidence.surplus", torch.stack(frequent))
        hidden.append((surplus + linear(params, f"{name}.evidence.cell", cell)).clamp(min=0))
    return linear(params, f"{name}.evidence.output", torch.stack(hidden).mean(0))


def norm(params: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean()
    scaled = centred / (centred.square().mean() + 1e-5).sqrt()
    return scaled * params[f"table.{name}.weight"] + params[f"table.{name}.bias"]


def expected_logits(params: dict[str, Tensor], support: Examples, x: Tensor) -> Tensor:
    known = ~support.x.isnan()
    features = [f for f in range(support.x.shape[1]) if bool(known[:, f].any())]
    rows, shown_classes, table_of = len(support.y), support.y.unique().tolist(), []
    for number, values in enumerate(torch.cat([support.x, x])):
        cells = []
        for f in features:
            column = support.x[known[:, f], f]
            std = column.std(correction=0)
            z = (values[f] - column.mean()) / (std if std > 1e-6 * (1 + column.mean().abs()) else 1.0)
            missing = bool(values[f].isnan())
            z = torch.tensor(0.0).double() if missing else z.clamp(-10, 10)
            cells.append(
                linear(params, "values", torch.stack([z, z.sign() * (1 + z.abs()).log(), torch.tensor(float(missing))]))
            )
        for c in shown_classes:
            label = ("yes" if support.y[number] == c else "no") if number < rows else "unknown"
            cells.append(params[f"table.{label}"])
        table_of.append(torch.stack(cells))
    for layer in range(3):
        name = f"layers.{layer}"
        table_of = [
            torch.stack([norm(params, f"{name}.row_norm", c + attend(params, f"{name}.row", c, row)) for c in row])
            for row in table_of
        ]
        shown = torch.stack(table_of[:rows])
        following = []
        for row in table_of:
            cells = []
            for f, c in enumerate(row):
                read = attend(params, f"{name}.column", c, shown[:, f])
                if f >= len(features):
                    is_class = support.y == shown_classes[f - len(features)]
                    read = read + evidence(params, name, row[: len(features)], shown, is_class)
                c = norm(params, f"{name}.column_norm", c + read)
                linear_of = linear(params, f"{name}.linear.2", linear(params, f"{name}.linear.0", c).clamp(min=0))
                cells.append(norm(params, f"{name}.norm", c + linear_of))
            following.append(torch.stack(cells))
        table_of = following
    logits = torch.full((len(x), 4), -1e4).double()
    for column, c in enumerate(shown_classes, start=len(features)):
        read = torch.stack([row[column] for row in table_of[rows:]])
        logits[:, c] = linear(params, "output.2", linear(params, "output.0", read).clamp(min=0))[:, 0]
    return logits


def test_gradients_are_those_of_a_network_written_apart():
    tasks, total = tables(3), torch.tensor(0.0).double()
    params = {name: value.clone().requires_grad_() for name, value in PARAMS.items()}
    for at in range(3):
        one = tree_map(lambda leaf, at=at: leaf[at], tasks)
        logits = expected_logits(params, inside(one.support), one.query.x)
        same(predict(one.support, one.query.x), logits.detach())
        total = total + task_loss(logits, one.query.y)[0]
    expected = dict(zip(params, torch.autograd.grad(total, list(params.values())), strict=True))
    found = gradient(tasks, "loop")
    scale = max(float(value.abs().max()) for value in expected.values())
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) / scale < 1e-9


def test_the_known_values_of_a_column_give_its_mean_and_deviation():
    x = torch.tensor([[1.0, torch.nan, 5.0], [3.0, torch.nan, 5.0], [8.0, 2.0, 5.0]]).double()
    mean, std = known_mean_and_std(x, ~x.isnan() & torch.tensor([[True], [True], [False]]))
    assert mean.tolist() == [2.0, 0.0, 5.0] and std.tolist() == [1.0, 1.0, 1.0]


def test_what_cannot_be_is_refused():
    spec = TABLES.spec
    with pytest.raises(ValueError, match=re.escape("in_context_table needs classes")):
        METHOD.init(MODEL, spec._replace(kind="regression", ways=None, y=(1,)), 0)
    with pytest.raises(ValueError, match=re.escape("reads rows of numbers, x [features]")):
        METHOD.init(MODEL, spec._replace(x=(1, 8, 8)), 0)
    with pytest.raises(ValueError, match=re.escape("model.name: in_context_table reads the features themselves")):
        METHOD.init(build_model(MLP(), spec, 0), spec, 0)
    with pytest.raises(ValueError, match=re.escape("algorithm.heads: 8 is no multiple of 3")):
        InContextTable(width=8, heads=3)

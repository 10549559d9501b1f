"""Compute the predictions of metric-based methods naively, for the gradients of `tests/reference.py`.

Imports nothing of metatrain: example by example and pair by pair, by torch's own LSTM cell.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def attention(theta: dict[str, Tensor], support: Tensor, y: Tensor, query: Tensor, scale: float = 1.0) -> Tensor:
    """Compute log p, p the sum over each class of softmax(scale · cosine)."""
    near = F.cosine_similarity(query[:, None, :], support[None, :, :], dim=2)
    return torch.log(torch.softmax(scale * near, dim=1) @ F.one_hot(y).to(near.dtype))


def full_context(theta: dict[str, Tensor], support: Tensor, y: Tensor, query: Tensor, steps: int = 2) -> Tensor:
    """Compute the same of features that LSTMs have put into the context of the support set."""
    features = support.shape[1]

    def cell(name: str, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Our gates are i, f, o, u of [x, h, rest]; torch's are i, f, u, o, of the input [x, rest] and the state h."""
        weight, bias = theta[f"context.{name}.gates.weight"], theta[f"context.{name}.gates.bias"]
        i, f, o, u = weight.chunk(4)
        ordered = torch.cat([i, f, u, o])
        inputs = torch.cat([ordered[:, :features], ordered[:, 2 * features :]], 1)
        b = torch.cat([bias.chunk(4)[k] for k in (0, 1, 3, 2)])
        return torch.lstm_cell(x, (h, c), inputs, ordered[:, features : 2 * features], b, torch.zeros_like(b))

    g = [0.0] * len(y)
    for name, order in (("forwards", range(len(y))), ("backwards", reversed(range(len(y))))):
        h = c = torch.zeros(1, features, dtype=support.dtype)
        for i in order:
            h, c = cell(name, support[i][None], h, c)
            g[i] = g[i] + h
    memory = torch.cat(g) + support
    found = []
    for x in query:
        h = c = r = torch.zeros(1, features, dtype=support.dtype)
        for _ in range(steps):
            h, c = cell("attending", torch.cat([x[None], r], 1), h, c)
            h = h + x
            r = torch.softmax(h @ memory.T, dim=1) @ memory
        found.append(h)
    return attention(theta, memory, y, torch.cat(found))


def pairs(theta: dict[str, Tensor], support: Tensor, y: Tensor, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-odds of (query, support) pairs, of (support, support) pairs, and the support's labels."""

    def odds(a: Tensor, b: Tensor) -> Tensor:
        return (theta["siamese.weight"] * (a - b).abs()).sum() + theta["siamese.bias"]

    return (
        torch.stack([torch.stack([odds(a, b) for b in support]) for a in query]),
        torch.stack([torch.stack([odds(a, b) for b in support]) for a in support]),
        y,
    )


def pair_loss(found: tuple[Tensor, Tensor, Tensor], query_y: Tensor, balanced: bool = True) -> Tensor:
    """Compute the mean binary cross-entropy of all pairs of different examples, or the mean of those of both kinds."""
    between, within, y = found
    n = len(y)
    same, other = [], []
    for q in range(len(query_y)):
        for i in range(n):
            (same if query_y[q] == y[i] else other).append(between[q, i])
    for i in range(n):
        for j in range(i):
            (same if y[i] == y[j] else other).append(within[i, j])
    of_same = [torch.log1p(torch.exp(-odds)) for odds in same]
    of_other = [torch.log1p(torch.exp(odds)) for odds in other]
    if balanced:
        return (torch.stack(of_same).mean() + torch.stack(of_other).mean()) / 2
    return torch.stack(of_same + of_other).mean()


def relation(theta: dict[str, Tensor], support: Tensor, y: Tensor, query: Tensor) -> Tensor:
    """Score each pair by itself: its two feature maps (or vectors) are stacked, and convolved by both weights."""
    w = {name.removeprefix("relation."): value for name, value in theta.items() if name.startswith("relation.")}
    weight = torch.cat([w["of_class.weight"], w["of_query.weight"]], 1)
    shape = [-1]
    if weight.dim() == 4:
        channels = weight.shape[1] // 2
        side = round((support.shape[1] // channels) ** 0.5)
        shape = [channels, side, side]

    def block(x: Tensor, weight: Tensor, bias: Tensor, norm: str) -> Tensor:
        x = F.conv2d(x[None], weight, bias, padding=1)[0] if weight.dim() == 4 else weight @ x + bias
        x = (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
        each = [-1] + [1] * (x.dim() - 1)
        x = torch.clamp(x * w[f"{norm}.weight"].reshape(each) + w[f"{norm}.bias"].reshape(each), min=0)
        return F.max_pool2d(x[None], 2)[0] if x.dim() == 3 and x.shape[1] > 1 else x

    rows = []
    for x in query:
        row = []
        for n in range(int(y.max()) + 1):
            pair = torch.cat([support[y == n].sum(dim=0).reshape(shape), x.reshape(shape)])
            pair = block(pair, weight, w["of_class.bias"], "first_norm")
            pair = block(pair, w["second.weight"], w["second.bias"], "second_norm")
            hidden = torch.clamp(w["hidden.weight"] @ pair.flatten() + w["hidden.bias"], min=0)
            row.append(w["score.weight"] @ hidden + w["score.bias"])
        rows.append(torch.cat(row))
    return torch.stack(rows)


def sigmoid_mse(found: Tensor, y: Tensor) -> Tensor:
    return ((1 / (1 + torch.exp(-found)) - F.one_hot(y, found.shape[1])) ** 2).mean()


def in_context(theta: dict[str, Tensor], support: Tensor, y: Tensor, query: Tensor) -> Tensor:
    """Return the logits of a Transformer in which each query stands alone behind the support set; one by one."""
    found = []
    for x in query:
        labels = torch.cat([F.one_hot(y).to(x.dtype), torch.zeros(1, int(y.max()) + 1).to(x.dtype)])
        pairs = torch.cat([torch.cat([support, x[None]]), labels], 1)
        tokens = pairs @ theta["transformer.embedding.0.weight"].T + theta["transformer.embedding.0.bias"]
        tokens = torch.cat([tokens[:-1], theta["transformer.start"], tokens[-1:]])
        barred = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
        barred[:, -1] = True
        for layer in range(sum(name.endswith("first_norm.bias") for name in theta)):
            tokens = _encoder_layer(theta, f"transformer.layers.{layer}.", tokens, barred)
        hidden = tokens[-1] @ theta["transformer.output.0.weight"].T + theta["transformer.output.0.bias"]
        found.append(hidden.clamp(min=0) @ theta["transformer.output.2.weight"].T + theta["transformer.output.2.bias"])
    return torch.stack(found)


def _encoder_layer(theta: dict[str, Tensor], prefix: str, tokens: Tensor, barred: Tensor) -> Tensor:
    """Apply torch's own layer of an encoder, with two heads, at these weights."""
    own = {name.removeprefix(prefix): value for name, value in theta.items() if name.startswith(prefix)}
    width, hidden = len(own["first_norm.bias"]), len(own["linear.0.bias"])
    layer = torch.nn.TransformerEncoderLayer(width, 2, hidden, 0.0, batch_first=True).double()
    given = {
        "self_attn.in_proj_weight": torch.cat([own[f"attention.{part}.weight"] for part in ("query", "key", "value")]),
        "self_attn.in_proj_bias": torch.zeros(3 * width, dtype=tokens.dtype),
        "self_attn.out_proj.weight": own["attention.output.weight"],
        "self_attn.out_proj.bias": own["attention.output.bias"],
    }
    theirs = {"linear.0": "linear1", "linear.2": "linear2", "first_norm": "norm1", "second_norm": "norm2"}
    given |= {f"{theirs[ours]}.{kind}": own[f"{ours}.{kind}"] for ours in theirs for kind in ("weight", "bias")}
    return torch.func.functional_call(layer, given, (tokens[None], barred))[0]

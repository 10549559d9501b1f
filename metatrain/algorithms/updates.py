"""Define what an update of the meta-parameters asks for: loops yield, callers act.

An algorithm whose step is not one along its meta-gradient has `update(params)`, a generator. It yields requests, which
`metatrain.training.outer_loop` answers: that is the only place that computes on workers and changes parameters.
"""

from collections.abc import Callable, Generator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

from metatrain.types import MetaGradient, Metrics, Params, ShardRequest

OLD, DIRECTION = "old.", "direction."
"""Prefixes of parameters that are sent beside a call's own: those that acted in the tasks, and a direction."""
_SENT = (OLD, DIRECTION)

NO_PARAMS: Mapping[str, Params] = {}


class Compute(NamedTuple):
    """Compute `kind` at `params` for the tasks of this step; answered by its sums over them, a MetaGradient.

    sent: other parameters that it takes, by prefix. Without OLD ones the tasks are acted in by `params`.
    """

    kind: Literal["gradient", "fisher", "surrogate"]
    params: Params
    sent: Mapping[str, Params] = NO_PARAMS

    def request(self, step: int) -> ShardRequest:
        """Return the request to the workers at outer step `step`."""
        return ShardRequest(self.kind, "train", step, sent=tuple(self.sent))

    @property
    def all_params(self) -> Params:
        """Return all that is sent, under full names."""
        return self.params | {prefix + name: p for prefix, part in self.sent.items() for name, p in part.items()}


class Descend(NamedTuple):
    """Take one step of the outer optimiser along the mean of `gradient`; answered by the step's metrics."""

    gradient: MetaGradient


class Move(NamedTuple):
    """Set the parameters to `params`."""

    params: Params


Update = Generator[Compute | Descend | Move, Any, Metrics]
"""One outer step; returns its metrics, "loss" among them."""


class UpdatesItself(Protocol):
    """What an `Algorithm` may have whose outer step is another than `descend_once`.

    One that never yields `Descend` has `uses_optimizer = False`, and settings of the outer optimiser are refused.
    """

    def update(self, params: Params) -> Update:
        """Take one outer step. `params` change in place with each Descend or Move: copy what is to be kept."""


class Collects(Protocol):
    """What an `Algorithm` may have whose tasks are acted in before anything is computed of them."""

    def collect(self, model: Any, params: Params, tasks: Any, context: Any, engine: Any) -> Any:
        """Return what `params` experience in a batch of tasks: what `meta_gradient` and others then get as tasks.

        A pure function, as all else: where it is lost it is collected again, to the bit.
        """


def descend_once(params: Params) -> Update:
    """Take one step along the meta-gradient: the update of algorithms that have no other."""
    gradient = yield Compute("gradient", params)
    metrics: Metrics = yield Descend(gradient)
    return metrics


def update_of(algorithm: Any) -> Callable[[Params], Update]:
    """Return what an outer step of an algorithm is."""
    found: Callable[[Params], Update] = getattr(algorithm, "update", descend_once)
    return found


def own_params(params: Params) -> Params:
    """Return the parameters without those that are sent beside them."""
    return {name: value for name, value in params.items() if not name.startswith(_SENT)}


def sent_params(params: Params, prefix: str) -> Params:
    """Return the parameters that are sent under a prefix, by their own names; empty if there are none."""
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}

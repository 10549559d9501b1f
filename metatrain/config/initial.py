"""Read the parameters that a new run begins with from a file of weights or another run.

They are read once, by the driver, and kept in the run. No code that the other run names is imported.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metatrain.config.best_params import best_params
from metatrain.config.weight_files import read_weights
from metatrain.models.model import BODY
from metatrain.models.weights import match_weights
from metatrain.runs import Run, checkpoints, is_search, open_run, release_run
from metatrain.training.initial import FOLDER, Initial, load_initial
from metatrain.training.worker import Worker
from metatrain.types import Params
from metatrain.validation import require
from tasks.io.home import home_path
from tasks.io.remote_fs import is_uri


def find_initial(worker: Worker, home: Run | None) -> Initial | None:
    """Return what a run begins with in place of random parameters: what `home` keeps, or what its settings name.

    None: all of it is random. ValueError: what the settings name cannot be read, or does not fit.
    """
    if worker.config.weights is None and worker.config.initialize is None:
        return None
    if home is not None and (kept := load_initial(home)) is not None:
        return kept
    begun = home is not None and checkpoints.newest(home.checkpoints) is not None
    require(not begun, f"{home and home.where}: its initial parameters are missing: restore the folder {FOLDER}/")
    return read_initial(worker)


def read_initial(worker: Worker) -> Initial:
    """Return the parameters that `model.weights` and `initialize` give. ValueError: see `find_initial`."""
    config = worker.config
    params: Params = {}
    notes: list[str] = []
    for place, read in ((config.weights, _read_weights), (config.initialize, _read_run)):
        if place is None:
            continue
        found = read(place, worker)
        twice = sorted(params.keys() & found.params.keys())
        require(
            not twice,
            f"initialize: {place} and model.weights both give {', '.join(twice[:2])} and others: remove one of the two",
        )
        params |= found.params
        notes += found.notes
    return Initial(params, notes)


def _read_weights(place: str, worker: Worker) -> Initial:
    """Return the network's weights in a file, or in a run of ours."""
    wanted = {name: value for name, value in worker.initial().items() if name.startswith("model.")}
    is_run = is_uri(place) or home_path(place).is_dir()
    if is_run:
        found = _params_of(place, "model.weights")
        given: Mapping[str, Tensor] = {name: value for name, value in found.items() if name.startswith("model.")}
    else:
        try:
            given = read_weights(home_path(place))
        except ValueError as error:
            raise ValueError(f"model.weights: {place} {error}") from error
    try:
        matched = match_weights(given, worker.model, worker.config.model, wanted)
    except ValueError as error:
        remedy = "use weights of this architecture, or set model to the one they are of"
        raise ValueError(f"model.weights: {place} {error}: {remedy}") from error
    which = f"{place} (sha256 {checkpoints.params_sha256(matched.params)[:16]})"
    told = [f"model.weights: {_count(matched.params)} from {which}", *matched.left_out]
    return Initial(matched.params, ["; ".join(told)])


def _read_run(place: str, worker: Worker) -> Initial:
    """Return all parameters of another run that have the name and shape of the worker's."""
    wanted, found = worker.initial(), _params_of(place, "initialize")
    same = {name: found[name] for name in wanted if name in found and found[name].shape == wanted[name].shape}
    differ = sorted(name for name in wanted if name.startswith(BODY) and name not in same)
    if differ:
        theirs = found.get(differ[0])
        shape = "absent" if theirs is None else list(theirs.shape)
        raise ValueError(
            f"initialize: {place}: {differ[0]} is {shape} there and {list(wanted[differ[0]].shape)} here: set model as "
            "that run has it"
        )
    finite = all(bool(torch.isfinite(value).all()) for value in same.values())
    require(finite, f"initialize: {place}: its parameters are not finite: use another run")
    params = {name: value.to(wanted[name].dtype).clone() for name, value in same.items()}
    fresh = [name for name in wanted if name not in same]
    unused = [name for name in found if name not in same]
    told = [f"initialize: {_count(params)} from {place} (sha256 {checkpoints.params_sha256(params)[:16]})"]
    told += [f"{_count(fresh)} as without it ({_groups(fresh)})"] if fresh else []
    told += [f"{_count(unused)} there are not used ({_groups(unused)})"] if unused else []
    return Initial(params, ["; ".join(told)])


def _params_of(place: str, key: str) -> Params:
    """Return the best parameters of the run at `place`. ValueError: there is no such run, or it has none."""
    try:
        home = open_run(place)
        try:
            require(not is_search(home), f"{place} is a search: name one of its runs, in trials/")
            return best_params(home)[0]
        finally:
            release_run(home)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _count(names: Sequence[str] | Params) -> str:
    return "1 parameter" if len(names) == 1 else f"{len(names)} parameters"


def _groups(names: Sequence[str]) -> str:
    """Return the first parts of parameters' names: "inner_lr, model.head"."""
    parts = {".".join(name.split(".")[: 2 if name.startswith("model.") else 1]) for name in names}
    return ", ".join(sorted(parts))

"""Measure the relative error of a meta-gradient by precision, eager and compiled: ‖g − r‖ / ‖r‖ over all parameters.

r is the same meta-gradient in float64. tf32 is measured on a GPU only.
"""

import argparse

import torch
from torch.utils._pytree import tree_map

from benchmarks import cases, results
from benchmarks.metatrain_contender import in_process
from metatrain.engine import Engine, resolve_vectorize
from metatrain.types import Params
from tasks.types import Tree

CASES = ("sinusoid-1-32", "sinusoid-5-32", "omniglot-1-8", "omniglot-5-8", "resnet12-1-2")


def main(argv: list[str]) -> None:
    """Measure, and write the part "precision"."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks precision", description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    kinds = ["float32", "bfloat16"] + (["tf32"] if device.type == "cuda" else [])
    rows = [[name, kind, *errors(cases.find_case(name), kind, device)] for name in options.cases for kind in kinds]
    notes = [
        "r: the same meta-gradient in float64. Rounding is amplified by batch normalisation over few examples and by "
        "every inner "
        f"step; the networks are untrained, α is {cases.OMNIGLOT.inner_lr} on Omniglot, {cases.SINUSOID.inner_lr:g} on "
        f"sinusoids and {cases.RESNET12.inner_lr} for ResNet-12. On {device.type}."
    ]
    columns = ["case", "precision", "error, eager", "error, compiled"]
    results.write("precision", "The meta-gradient's error by precision", columns, rows, notes, {})


def errors(case: cases.Case, precision: str, device: torch.device) -> list[str]:
    """Return the errors of the eager and the compiled gradient."""
    exact = gradient(case, Engine(vectorize(case, device)), device, torch.float64)
    found = []
    for compile in (False, True):
        engine = Engine(vectorize(case, device), compile, precision=precision)  # type: ignore[arg-type]
        found.append(f"{relative_error(gradient(case, engine, device, torch.float32), exact):.1e}")
    return found


def vectorize(case: cases.Case, device: torch.device) -> str:
    """Return what `auto` resolves to for this case."""
    return resolve_vectorize("auto", case.tasks == "images", device)


def gradient(case: cases.Case, engine: Engine, device: torch.device, dtype: torch.dtype) -> Params:
    """Compute the case's meta-gradient on `device`, with parameters and examples in `dtype`."""
    params, tasks = place((cases.params_of(case), cases.tasks_of(case)), device, dtype)
    return in_process(case, params, tasks, engine)()


def place(tree: Tree, device: torch.device, dtype: torch.dtype) -> Tree:
    """Move every tensor to `device`, numbers to `dtype`; labels keep their type."""
    return tree_map(lambda leaf: leaf.to(device, dtype if leaf.is_floating_point() else None), tree)


def relative_error(found: Params, exact: Params) -> float:
    """Return ‖g − r‖ / ‖r‖."""
    off = sum(float((found[name].double() - value.double()).square().sum()) for name, value in exact.items())
    return (off / sum(float(value.double().square().sum()) for value in exact.values())) ** 0.5

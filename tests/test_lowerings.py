"""Test what inductor makes of `metatrain.engine.operations`: the same numbers, computed without Python."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._inductor.utils import fresh_cache
from torch.fx.experimental.proxy_tensor import make_fx

from metatrain.engine import compilation, operations
from metatrain.engine.operations import fold, materialize, matmul, unfold

WINDOW = [3, 3, 2, 2, 1, 1, 1, 1]


def compiled(function, *inputs: torch.Tensor):
    with torch.no_grad(), fresh_cache():
        return compilation._call_inductor(make_fx(function)(*inputs), list(inputs))


def products(a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    """Products with factors in all layouts that stages have; all are made contiguous, as results of stages are."""
    wide = torch.cat([b, b, b], 1)
    found = [matmul(a + 1, b), matmul((a + 1).t(), a), matmul(b.t() * 2, a.t()), matmul(a.t(), a @ wide)]
    return [one.contiguous() for one in found]


def patches(x: torch.Tensor) -> list[torch.Tensor]:
    seen = unfold(x * 2, WINDOW)
    root = materialize((x + 3).rsqrt())
    return [seen + 1, fold(seen * seen, list(x.shape), WINDOW), root, (root * x).contiguous()]


def cases():
    torch.manual_seed(0)
    return {
        "products": (products, (torch.randn(50, 80), torch.randn(80, 30))),
        "patches": (patches, (torch.rand(2, 7, 5, 4),)),
        "one channel": (patches, (torch.rand(2, 7, 5, 1),)),
    }


@pytest.mark.parametrize("name", cases())
def test_programs_compute_the_operations_without_python(name):
    function, inputs = cases()[name]
    program = compiled(function, *inputs)
    program(*inputs)
    called = []

    def watch(frame, event, argument):
        if event == "call" and frame.f_code.co_filename == operations.__file__:
            called.append(frame.f_code.co_name)

    sys.setprofile(watch)
    found = program(*inputs)
    sys.setprofile(None)
    assert not called
    for got, expected in zip(found, function(*inputs), strict=True):
        assert got.shape == expected.shape
        assert torch.allclose(got, expected, rtol=1e-6, atol=1e-6)


FAILING = """
import torch
from metatrain.engine import Engine, loss_gradient
from metatrain.types import Context
def loss(params, task, context):
    value = ((task * params["w"]).tanh() ** 2).sum()
    return value, {"loss": value}
context = Context(torch.tensor(0), torch.zeros(2, dtype=torch.int64))
loss_gradient(loss, {"w": torch.ones(999)}, torch.ones(2, 999), context, Engine("vmap", True))
"""


def test_a_compiler_that_fails_in_the_background_is_told(tmp_path: Path):
    compiler = tmp_path / "g++"
    # It answers what is asked about it, and fails to compile programs.
    compiler.write_text('#!/bin/sh\ncase "$*" in *main.cpp*) echo broken >&2; exit 1;; esac\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    environment = os.environ | {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", FAILING], env=environment, capture_output=True, text=True, timeout=200)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert "NotCompilable: engine.compile: a step of the inner loop cannot be compiled (" in last
    assert last.endswith("set engine.compile to off")

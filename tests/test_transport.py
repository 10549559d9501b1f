"""Gradients rounded for the journey: how far off, once only, and the same wherever they were computed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.executor import RayExecutor
from metatrain.runs.checkpoints import params_sha256
from metatrain.training.in_process import InProcess
from metatrain.training.outer_loop import begin, train
from metatrain.training.transport import narrowed, rounded, widened
from metatrain.training.worker import Worker
from metatrain.types import Executor, MetaGradient
from tests.configurations import tiny

FORMATS = ("float32", "bfloat16", "float16")
numbers = st.one_of(
    st.just(0.0),
    st.builds(lambda sign, m, e: sign * m * 10.0**e, st.sampled_from([-1, 1]), st.floats(1, 9.9), st.integers(-30, 29)),
)
vectors = st.lists(numbers, min_size=1, max_size=30).map(lambda found: np.array(found, np.float32))
near = st.builds(  # gradients of one model, whose magnitudes are not so far apart
    lambda scale, found: np.array(found, np.float32) * np.float32(10.0**scale),
    st.integers(-20, 20),
    st.lists(st.floats(-1, 1, width=32, allow_subnormal=False), min_size=1, max_size=30),
)


def through(vector: np.ndarray, to: str, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """The vector rounded, as two parameters of which one is empty."""
    grads = {"a": torch.from_numpy(vector).to(dtype), "b": torch.empty(0, dtype=dtype)}
    found = rounded(MetaGradient(grads, {}, torch.tensor(1)), to).grads
    assert found["a"].dtype == found["b"].dtype == dtype
    return found["a"].numpy()


@given(st.one_of(vectors, near))
@example(np.array([16383.5, 1.0], np.float32))  # rounds up to the next power of two
def test_bfloat16_is_off_by_at_most_a_256th(vector):
    smallest = 2.0**-134  # half of what lies between bfloat16's subnormal numbers
    assert (np.abs(through(vector, "bfloat16") - vector) <= 2.0**-8 * np.abs(vector) + smallest).all()


@given(near)
@example(np.array([16383.5, 1.0], np.float32))
@example(np.array([1.0, 2.0**-27 * 1.0009765625], np.float32))
def test_float16_is_off_by_at_most_a_2048th_unless_far_below_the_largest(vector):
    off, largest = np.abs(through(vector, "float16") - vector), np.abs(vector).max()
    large = np.abs(vector) >= 2.0**-27 * largest
    assert (off[large] <= 2.0**-11 * np.abs(vector[large])).all()
    assert (off <= 2.0**-38 * largest).all() or (off[~large] <= 2.0**-37 * largest).all()


@pytest.mark.parametrize("to", FORMATS)
@given(vector=st.one_of(vectors, near))
@example(vector=np.array([16383.5, 1.0], np.float32))
def test_rounding_twice_is_rounding_once(to, vector):
    once = through(vector, to)
    assert np.array_equal(through(once, to), once)


@pytest.mark.parametrize("to", FORMATS)
@given(vector=st.one_of(vectors, near))
@example(vector=np.array([16383.5, 1.0], np.float32))
def test_what_was_rounded_travels_in_half_of_the_bytes_and_arrives_whole(to, vector):
    sent = through(vector, to)
    there = narrowed(sent, to)
    assert there.nbytes <= (sent.nbytes if to == "float32" else sent.nbytes // 2 + 4)
    back = widened(there, to)
    assert back.dtype == np.float32
    assert np.array_equal(back, sent)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("ill", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("at", [0, 1])
def test_what_is_no_number_arrives_as_that(to, ill, at):
    vector = np.array([1.0, 2.0], np.float32)
    vector[at] = ill
    sent = through(vector, to)
    back = widened(narrowed(sent, to), to)
    assert np.array_equal(back, vector, equal_nan=True)


@pytest.mark.parametrize("to", FORMATS)
def test_zeros_and_empty_vectors_arrive_whole(to):
    for vector in (np.zeros(3, np.float32), np.zeros(0, np.float32)):
        assert np.array_equal(widened(narrowed(through(vector, to), to), to), vector)


@pytest.mark.parametrize("to", FORMATS)
def test_float64_keeps_its_type(to):
    vector = np.array([1.0, 1e-3, np.pi])
    sent = through(vector, to, torch.float64)
    back = widened(narrowed(sent, to), to)
    assert back.dtype == np.float64
    assert np.array_equal(back, sent)
    assert (np.abs(back - vector) <= 2.0**-8 * np.abs(vector)).all()


def trained(executor: Executor, gradients: str) -> str:
    config = tiny(f"executor.gradients={gradients}")
    state = begin(Worker(config, torch.device("cpu")).initial(), config.outer)
    for _ in train(state, executor, config.outer, config.executor.shard_size):
        pass
    return params_sha256(state.params)


def in_process(gradients: str) -> str:
    return trained(InProcess(Worker(tiny(f"executor.gradients={gradients}"), torch.device("cpu"))), gradients)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("gradients", "largest_block"), [("bfloat16", 1), pytest.param("float16", 1024, marks=pytest.mark.slow)]
)
def test_rounded_gradients_train_to_the_same_bits_wherever_they_were_computed(local_ray, gradients, largest_block):
    config = tiny(f"executor.gradients={gradients}")
    settings = replace(config.executor, name="ray", workers=3)
    executor = RayExecutor(replace(config, executor=settings), largest_block=largest_block)
    assert trained(executor, gradients) == in_process(gradients) != in_process("float32")
    executor.close()

"""Philox against its published vectors, and the laws that addressing promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.random import philox, random_words, sample_without_replacement, stream, uniforms

SEEDS = st.integers(0, 2**64 - 1)
INDICES = st.lists(st.integers(0, 2**62), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter: str, key: str, expected: str) -> None:
    lanes = [np.array([int(word, 16)], dtype=np.uint64) for word in counter.split()]
    k0, k1 = (int(word, 16) for word in key.split())
    assert [f"{int(lane[0]):08x}" for lane in philox(lanes, (k0, k1))] == expected.split()


def test_words_put_seed_index_stream_and_block_where_the_docstring_says() -> None:
    drawn = random_words(0x299F31D0_A4093822, 0x13198A2E, [0x85A308D3_243F6A88 - 2**64], 4 * 3)
    for block in range(3):
        counter = [np.array([word], dtype=np.uint64) for word in (0x243F6A88, 0x85A308D3, 0x13198A2E, block)]
        expected = [int(lane[0]) for lane in philox(counter, (0xA4093822, 0x299F31D0))]
        assert drawn[0, 4 * block : 4 * block + 4].tolist() == expected


@given(SEEDS, INDICES, st.integers(0, 19))
def test_a_row_depends_on_its_own_index_alone(seed: int, indices: list[int], count: int) -> None:
    together = uniforms(seed, stream("a"), indices, count)
    assert together.shape == (len(indices), count)
    assert ((together >= 0) & (together < 1)).all()
    for row, index in zip(together, indices, strict=True):
        assert np.array_equal(row, uniforms(seed, stream("a"), [index], count)[0])
        assert np.array_equal(row, uniforms(seed, stream("a"), [index], count + 5)[0, :count])


def test_seed_stream_and_index_each_change_everything() -> None:
    base = random_words(1, stream("a"), [1], 64)
    others = [
        random_words(2, stream("a"), [1], 64),
        random_words(1 + 2**32, stream("a"), [1], 64),
        random_words(1, stream("b"), [1], 64),
        random_words(1, stream("a"), [1 + 2**32], 64),
    ]
    for other in others:
        assert (base == other).mean() < 0.05


def test_stream_ids_are_stable() -> None:
    assert stream("few-shot", "train") == 741704171
    assert stream("few-shot", "train") != stream("few-shot", "test")


@given(st.data())
@settings(max_examples=200)
def test_choose_never_repeats_and_stays_in_range(data: st.DataObject) -> None:
    k = data.draw(st.integers(0, 12))
    sizes = data.draw(st.lists(st.integers(max(k, 1), k + 5) | st.integers(10**6, 2**40), min_size=1, max_size=6))
    numbers = uniforms(data.draw(SEEDS), stream("choose"), range(len(sizes)), k)
    if data.draw(st.booleans()):
        numbers[:] = data.draw(st.sampled_from([0.0, 1 - 2.0**-53]))
    chosen = sample_without_replacement(numbers, sizes)
    assert chosen.shape == numbers.shape
    for row, size in zip(chosen, sizes, strict=True):
        assert len(set(row.tolist())) == k
        assert ((row >= 0) & (row < size)).all()


@given(st.integers(1, 8), SEEDS)
def test_choosing_everybody_is_a_permutation(size: int, seed: int) -> None:
    assert sorted(sample_without_replacement(uniforms(seed, 0, [0], size), size)[0].tolist()) == list(range(size))


def test_ordered_samples_are_uniform() -> None:
    """All 5·4·3 = 60 ordered samples alike: chi-square with 59 degrees of freedom, 0.999 quantile 98.3."""
    draws = 60_000
    sizes = np.where(np.arange(draws) % 2, 5, 9)
    chosen = sample_without_replacement(uniforms(7, stream("chi-square"), range(draws), 3), sizes)[1::2]
    counts = np.unique(chosen @ [25, 5, 1], return_counts=True)[1]
    assert len(counts) == 60
    expected = draws / 2 / 60
    assert ((counts - expected) ** 2 / expected).sum() < 98.3


def test_uniforms_are_uniform_and_fill_53_bits() -> None:
    """100 bins, chi-square with 99 degrees of freedom, 0.999 quantile 148.2."""
    drawn = uniforms(3, stream("bins"), range(1000), 100).reshape(-1)
    counts = np.histogram(drawn, bins=100, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 148.2
    assert ((drawn * 2**53) % 2).mean() == pytest.approx(0.5, abs=0.01)

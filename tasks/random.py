"""Draw random numbers by address: each is a pure function of (seed, stream, index), and no generator advances.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", table 2) turns a 64-bit key and a
128-bit counter into four random words. Here the key is the seed and the counter is the address:

    counter = (index low, index high, stream, block)

so any number of any index can be computed at once, in any process and in any order, without drawing those before it.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Integers = NDArray[np.int64]
Words = NDArray[np.uint32]
Reals = NDArray[np.float64]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_FEW = 8
"""Blocks that Python's integers compute faster than some hundred calls of numpy."""
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def stream(*names: str) -> int:
    """Return a stable 32-bit id for a purpose: `stream("few-shot", "train")`. Streams share no randomness."""
    return zlib.crc32("/".join(names).encode())


def philox(counter: Sequence[NDArray[np.uint64]], key: tuple[int, int]) -> list[NDArray[np.uint64]]:
    """Compute Philox4x32-10. counter: four arrays of 32-bit words held in uint64, of one shape. Return four more."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> _HALF) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _HALF) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def random_words(seed: int, stream: int, indices: ArrayLike, count: int) -> Words:
    """Draw `count` random 32-bit words for each index: [len(indices), count]. seed is taken modulo 2**64.

    The first words of an index do not depend on `count`.
    """
    lanes = _draw_blocks(seed, stream, indices, -(-count // 4))
    return np.stack(lanes, axis=-1).astype(np.uint32).reshape(len(lanes[0]), 4 * lanes[0].shape[1])[:, :count]


def uniforms(seed: int, stream: int, indices: ArrayLike, count: int) -> Reals:
    """Draw `count` numbers in [0, 1) for each index, with 53 random bits each: [len(indices), count]."""
    lanes = _draw_blocks(seed, stream, indices, -(-count // 2))
    numbers = np.empty((*lanes[0].shape, 2))
    for place in range(2):
        bits = (lanes[2 * place] << np.uint64(21)) | (lanes[2 * place + 1] >> np.uint64(11))
        np.multiply(bits, 2.0**-53, out=numbers[..., place])
    return numbers.reshape(len(numbers), 2 * lanes[0].shape[1])[:, :count]


def _draw_blocks(seed: int, stream: int, indices: ArrayLike, blocks: int) -> list[NDArray[np.uint64]]:
    """Return the four words of each block of each index, four times [len(indices), blocks] words held in uint64.

    Words of the counter that all indices or all blocks share are repeated only once the rounds have mixed them.
    """
    index = np.asarray(indices, dtype=np.int64).reshape(-1, 1).view(np.uint64)
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    if 0 < len(index) * blocks <= _FEW:
        words = [
            _philox_of_one((one & 0xFFFFFFFF, one >> 32, stream, block), key)
            for one in index[:, 0].tolist()
            for block in range(blocks)
        ]
        return list(np.array(words, dtype=np.uint64).T.reshape(4, len(index), blocks))
    block = np.arange(blocks, dtype=np.uint64)[None]
    counter = [index & _LOW, index >> _HALF, np.full((1, 1), stream, dtype=np.uint64), block]
    return philox(counter, key)


def _philox_of_one(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Compute `philox` of one counter in Python's integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def normals(u: Reals, v: NDArray[np.floating]) -> tuple[Reals, Reals]:
    """Turn pairs u, v of uniforms in [0, 1) into pairs of standard normals (Box and Muller 1958).

    v may be of 32 bits, whose sines and cosines take a tenth of the time.
    """
    radius, angle = np.sqrt(-2 * np.log1p(-u)), 2 * np.pi * v
    return radius * np.cos(angle), radius * np.sin(angle)


def sample_without_replacement(uniforms: Reals, population: ArrayLike) -> Integers:
    """Sample k of each row's population without replacement, in uniformly random order.

    uniforms: [rows, k] in [0, 1). population: a size, or [rows] sizes, each at least k. Return [rows, k] numbers in
    [0, population), all different within a row.

    Draw i picks the r-th unused number in ascending order. The loop undoes the draws from the last to the first: a
    number that was counted without number m, and is not below it, is one larger.
    """
    rows, k = uniforms.shape
    remaining = np.broadcast_to(np.asarray(population, dtype=np.int64), (rows,)) - np.arange(k)[:, None]
    assert rows == 0 or k == 0 or remaining[-1].min() >= 1, "more draws than there are members"
    picks = (uniforms.T * remaining).astype(np.int64)
    for i in range(k - 2, -1, -1):
        later = picks[i + 1 :]
        later += later >= picks[i]
    return np.ascontiguousarray(picks.T)


def generator(seed: int, stream: int, index: int) -> np.random.Generator:
    """Return numpy's generator for one address: for tasks that draw no fixed number of numbers.

    It is a Philox generator (4×64) whose key is (seed, stream) and whose counter begins at the index, in its highest
    word: generators of two addresses share no numbers. seed and index are taken modulo 2**64.
    """
    word = 2**64 - 1
    return np.random.Generator(
        np.random.Philox(key=[seed & word, stream], counter=[0, 0, 0, index & word])  # the highest word comes last
    )

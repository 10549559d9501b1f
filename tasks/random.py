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

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
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
    index = np.asarray(indices, dtype=np.int64).reshape(-1, 1).view(np.uint64)
    shape = (len(index), -(-count // 4))
    counter = [
        np.broadcast_to(index & _LOW, shape),
        np.broadcast_to(index >> _HALF, shape),
        np.full(shape, stream, dtype=np.uint64),
        np.broadcast_to(np.arange(shape[1], dtype=np.uint64), shape),
    ]
    out = np.empty((*shape, 4), dtype=np.uint32)
    for lane, lane_words in enumerate(philox(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))):
        out[..., lane] = lane_words
    return out.reshape(shape[0], 4 * shape[1])[:, :count]


def uniforms(seed: int, stream: int, indices: ArrayLike, count: int) -> Reals:
    """Draw `count` numbers in [0, 1) for each index, with 53 random bits each: [len(indices), count]."""
    pairs = random_words(seed, stream, indices, 2 * count).astype(np.uint64)
    bits = (pairs[:, 0::2] << np.uint64(21)) | (pairs[:, 1::2] >> np.uint64(11))
    return bits * 2.0**-53


def normals(u: Reals, v: Reals) -> tuple[Reals, Reals]:
    """Turn pairs u, v of uniforms in [0, 1) into pairs of standard normals (Box and Muller 1958)."""
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

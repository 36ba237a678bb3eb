"""Keyed random numbers: a number depends on its key alone, never on what was drawn before it.

A key is (seed, stream, *indices), for sampling (seed, "sample", prompt, sample) with one number
per token. Batch size, order, worker count and resumption therefore cannot change a draw.
"""

from collections.abc import Sequence
from hashlib import blake2b
from zlib import crc32

import numpy as np
from numpy.typing import NDArray


def generator(seed: int, stream: str, *indices: int) -> np.random.Generator:
    """The generator that belongs to this key; ``stream`` names its purpose, such as "shuffle"."""
    # The count keeps (1,) and (1, 0) apart: SeedSequence fills short keys up with zeros.
    words = [seed, crc32(stream.encode()), len(indices), *indices]
    if min(words) < 0:
        raise ValueError(f"a random key must hold no negative number, got {words}")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def uniforms(
    seed: int, stream: str, keys: Sequence[tuple[int, ...]], count: int
) -> NDArray[np.float64]:
    """``count`` numbers in [0, 1) for each key, shape (len(keys), count)."""
    rows = [generator(seed, stream, *key).random(count) for key in keys]
    return np.stack(rows) if rows else np.zeros((0, count))


def uniform(seed: int, stream: str, *names: int | str) -> float:
    """One number in [0, 1) for a key that may hold texts, such as a person's pseudonym.

    A digest instead of a generator: a fiftieth of the time, for numbers that are wanted one by one
    on every request. ``1`` and ``"1"`` are different names.
    """
    digest = blake2b(repr((seed, stream, names)).encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) * 2.0**-53

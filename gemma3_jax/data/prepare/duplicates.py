"""Near-duplicates: documents whose sets of 5-grams of words overlap by a Jaccard similarity of 0.8 or more.

Candidate pairs come from MinHash and bands: 128 permutations, 25 bands of 5 of them; two documents of similarity 0.8
share a band with probability 0.99995, and are then compared by all permutations (standard error 0.035 at 0.8). In each
band a document is removed if it is that similar to an earlier one (by record id) that stays in the band. So no two
documents that stay are near-duplicates, and the result does not depend on the order in which bands are processed.
Source: Broder 1997; Leskovec et al., Mining of Massive Datasets, 3.4; datasketch.
"""

import zlib
from collections.abc import Iterator

import numpy as np

from gemma3_jax.data.prepare import words

NUM_PERMUTATIONS = 128
NUM_BANDS, ROWS_PER_BAND = 25, 5
LEAST_SIMILARITY = 0.7  # where 99 % of all pairs share a band; at 0.5 only half of them do
GRAM = 5  # words
_CHUNK = 4_096  # 5-grams hashed at once: 4 MiB
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that powers of it stay invertible modulo 2**64


def signature(text: str, seed: int) -> np.ndarray | None:
    """Returns uint64[128] minima over the 5-grams of a text; None without words. Fewer than 5 words are one gram."""
    import datasketch

    grams = _hash_grams(text)
    if not grams.size:
        return None
    minhash = datasketch.MinHash(NUM_PERMUTATIONS, seed=seed, hashfunc=int, scheme="affine64")
    for start in range(0, len(grams), _CHUNK):
        minhash.update_batch(grams[start : start + _CHUNK].tolist())
    return minhash.hashvalues


def _hash_grams(text: str) -> np.ndarray:
    hashes = np.fromiter((zlib.crc32(word.encode()) for word in words.words(text)), np.uint64)
    if not hashes.size:
        return hashes
    length = min(GRAM, hashes.size)
    grams = np.zeros(hashes.size - length + 1, np.uint64)
    for offset in range(length):
        grams = grams * _BASE + hashes[offset : offset + grams.size]
    return np.unique(grams)


def bands(signature: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """Yields (number, content) of each band: documents that share one are compared."""
    for band in range(NUM_BANDS):
        yield band, signature[band * ROWS_PER_BAND : (band + 1) * ROWS_PER_BAND].tobytes()


def within_band(signatures: np.ndarray, min_similarity: float) -> list[tuple[int, int]]:
    """Returns (later, earlier) for each document that resembles an earlier one that stays, with the first of these.

    `signatures` is uint64[n, 128], in order of record id. Time grows with n times the documents that stay.
    """
    needed = np.ceil(min_similarity * NUM_PERMUTATIONS - 1e-9)
    staying, indices = np.empty_like(signatures), []
    pairs = []
    for index, minima in enumerate(signatures):
        num_equal = np.count_nonzero(staying[: len(indices)] == minima, axis=1)
        if indices and num_equal.max() >= needed:
            pairs.append((index, indices[int(np.argmax(num_equal >= needed))]))
        else:
            staying[len(indices)] = minima
            indices.append(index)
    return pairs


def find(signatures: np.ndarray, min_similarity: float) -> dict[int, int]:
    """Returns {later: earliest that it resembles in a band} of uint64[n, 128] signatures in order of record id."""
    earlier_of: dict[int, int] = {}
    for band in range(NUM_BANDS):
        content = np.ascontiguousarray(signatures[:, band * ROWS_PER_BAND : (band + 1) * ROWS_PER_BAND])
        rows = content.view(np.dtype((np.void, content.itemsize * ROWS_PER_BAND)))[:, 0]
        order = np.argsort(rows, kind="stable")  # stable: members of a group stay in order of record id
        edges = np.flatnonzero(rows[order][1:] != rows[order][:-1]) + 1
        for group in np.split(order, edges):
            if len(group) > 1:
                for later, earlier in within_band(signatures[group], min_similarity):
                    later, earlier = int(group[later]), int(group[earlier])
                    earlier_of[later] = min(earlier, earlier_of.get(later, earlier))
    return earlier_of

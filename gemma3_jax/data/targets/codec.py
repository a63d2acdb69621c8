"""What a teacher said of the tokens of one row, as bytes and back.

A record is a header; then, of the tokens that are learned alone: 15 bytes of numbers each; the slots whose weights are
their own, as an id of 3 bytes and a bfloat16; and the slots that weigh alike, as each id once and how often it comes.
The bytes of ids stand in planes, all lowest ones first: ArrayRecord compresses them better so.
"""

import hashlib
import struct
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from gemma3_jax.distill import settings

ROW_FIELDS = ("tokens", "segments", "positions", "loss_mask")  # of stream.unpack; its targets follow from them
NUMBERS = ("captured_mass", "entropy", "label_log_prob")
HEADER = struct.Struct("<16sIII")  # digest of the row; tokens that are learned; slots; those with weights of their own
MAX_IDS = 1 << 24
# Of these the last slots weigh alike: they are stored in the order of their ids.
COUNTED = ("stratified", "systematic", "sampled_counts")


def row_digest(row: Mapping[str, np.ndarray]) -> bytes:
    """16 bytes that stand for a row as the student sees it."""
    content = hashlib.blake2b(digest_size=16)
    for name in ROW_FIELDS:
        content.update(np.ascontiguousarray(row[name], "?" if name == "loss_mask" else "<i4").data)
    return content.digest()


def num_own_slots(samples: settings.Samples) -> int:
    """How many slots of a token have weights of their own."""
    if samples.estimator not in COUNTED:
        return samples.num_samples
    return samples.num_samples // 2 if samples.estimator == "stratified" else 0


def bytes_per_token(samples: settings.Samples) -> int:
    """Of a token that is learned, before compression: exact, or of COUNTED what it is if no id comes twice."""
    num_own = num_own_slots(samples)
    num_alike = samples.num_samples - num_own
    return 15 + 5 * num_own + (6 + (3 + _count_type(num_alike).itemsize) * num_alike if num_alike else 0)


def encode(row: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray], samples: settings.Samples) -> bytes:
    """The record of a row: `targets` has the fields of `targets.Targets` for all its tokens, [T, M] and [T].

    Slots of "top_k" come back heaviest first, those of COUNTED that weigh alike by id, all others as they are given.
    Raises: ValueError if a number is not finite.
    """
    learned = {name: np.asarray(array)[row["loss_mask"]] for name, array in targets.items()}
    weights = learned["weights"].astype(np.float32)
    ids = learned["ids"]
    for name in ("weights", *NUMBERS):
        if not np.isfinite(learned[name].astype(np.float32)).all():
            raise ValueError(
                f"the teacher's {name} are not all finite; evaluate its checkpoint, and teach with float32"
            )
    assert ids.size == 0 or (ids.min() >= 0 and ids.max() < MAX_IDS)
    if samples.estimator == "top_k":
        order = np.argsort(-weights, axis=1, kind="stable")
        ids, weights = np.take_along_axis(ids, order, 1), np.take_along_axis(weights, order, 1)
    num_tokens, num_slots = ids.shape
    num_own = _num_own(weights) if samples.estimator in COUNTED else num_slots
    parts = [HEADER.pack(row_digest(row), num_tokens, num_slots, num_own)]
    parts += [learned[name].astype("<f4").tobytes() for name in NUMBERS]
    parts += [_pack_ids(learned["best_id"]), _pack_ids(ids[:, :num_own])]
    parts += [weights[:, :num_own].astype(ml_dtypes.bfloat16).tobytes()]
    if num_own < num_slots:
        parts += [weights[:, -1].astype("<f4").tobytes(), *_pack_counts(ids[:, num_own:])]
    return b"".join(parts)


def _num_own(weights: np.ndarray) -> int:
    """The number of slots before those that weigh alike in every token."""
    is_alike = (weights == weights[:, -1:]).all(axis=0)
    num_alike = len(is_alike) if is_alike.all() else int(np.argmin(is_alike[::-1]))
    return len(is_alike) - num_alike


def _pack_ids(ids: np.ndarray) -> bytes:
    as_bytes = np.ascontiguousarray(ids, "<i4").reshape(-1, 1).view(np.uint8)
    return as_bytes[:, :3].T.tobytes()


def _pack_counts(ids: np.ndarray) -> list[bytes]:
    """How many ids a token has, each of them once, and how often it comes, less one."""
    ordered = np.sort(ids, axis=1)
    is_new = np.ones(ordered.shape, bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    counts = np.diff(np.flatnonzero(is_new), append=ordered.size)
    num_slots = ids.shape[1]
    return [
        is_new.sum(axis=1).astype("<u2" if num_slots < 1 << 16 else "<u4").tobytes(),
        _pack_ids(ordered[is_new]),
        (counts - 1).astype(_count_type(num_slots)).tobytes(),
    ]


def _count_type(num_slots: int) -> np.dtype:
    return np.dtype("u1" if num_slots <= 1 << 8 else "<u2" if num_slots <= 1 << 16 else "<u4")


def digest_of(record: bytes) -> bytes:
    """The digest of the row that a record belongs to."""
    return HEADER.unpack_from(record)[0]


def decode(record: bytes) -> dict[str, np.ndarray]:
    """The fields of `targets.Targets` for the tokens of its row that are learned, ids and weights [T, M]."""
    _, num_tokens, num_slots, num_own = HEADER.unpack_from(record)
    content = _Content(record)
    found = {name: content.take("<f4", num_tokens) for name in NUMBERS}
    found["best_id"] = content.take_ids(num_tokens)
    ids = content.take_ids(num_tokens * num_own).reshape(num_tokens, num_own)
    weights = content.take(ml_dtypes.bfloat16, num_tokens * num_own).reshape(num_tokens, num_own).astype(np.float32)
    num_alike = num_slots - num_own
    if num_alike:
        each = content.take("<f4", num_tokens)
        num_ids = int(content.take("<u2" if num_alike < 1 << 16 else "<u4", num_tokens).sum(dtype=np.int64))
        distinct = content.take_ids(num_ids)
        counts = content.take(_count_type(num_alike), num_ids).astype(np.int64) + 1
        ids = np.hstack([ids, np.repeat(distinct, counts).reshape(num_tokens, num_alike)])
        weights = np.hstack([weights, np.broadcast_to(each[:, None], (num_tokens, num_alike))])
    return {"ids": ids, "weights": weights, **found}


class _Content:
    """What comes after the header, bit by bit."""

    def __init__(self, record: bytes):
        self._record, self._at = record, HEADER.size

    def take(self, dtype, count: int) -> np.ndarray:
        found = np.frombuffer(self._record, dtype, count, self._at)
        self._at += found.nbytes
        return found

    def take_ids(self, count: int) -> np.ndarray:
        low, middle, high = self.take("u1", 3 * count).reshape(3, count).astype(np.int32)
        return low | middle << 8 | high << 16


def spread(learned: Mapping[str, np.ndarray], loss_mask: np.ndarray) -> dict[str, np.ndarray]:
    """What is known of learned tokens, with zeros for all others."""
    found = {}
    for name, array in learned.items():
        found[name] = np.zeros((len(loss_mask), *array.shape[1:]), array.dtype)
        found[name][loss_mask] = array
    return found

"""The teacher targets of one row, as bytes and back.

A record is a header; then, for the tokens of the loss mask alone: 15 bytes of numbers each; the weighted slots, as an
id of 3 bytes and a bfloat16; and the counted slots, whose weights are equal, as each distinct id and its count. The
bytes of ids stand in planes, all lowest bytes first, because ArrayRecord compresses them better that way.
"""

import hashlib
import struct
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from gemma3_jax.distill import settings

ROW_FIELDS = ("tokens", "segments", "positions", "loss_mask")  # of stream.unpack; its labels follow from them
NUMBERS = ("captured_mass", "entropy", "label_log_prob")
# Digest of the row; number of tokens in the loss mask; slots; weighted slots.
HEADER = struct.Struct("<16sIII")
MAX_IDS = 1 << 24
# Estimators with counted slots: the last ones, of equal weights, are stored in the order of their ids.
COUNTED = ("stratified", "systematic", "sampled_counts")


def row_digest(row: Mapping[str, np.ndarray]) -> bytes:
    """Returns 16 bytes that identify a row as the student sees it."""
    content = hashlib.blake2b(digest_size=16)
    for name in ROW_FIELDS:
        content.update(np.ascontiguousarray(row[name], "?" if name == "loss_mask" else "<i4").data)
    return content.digest()


def num_weighted_slots(samples: settings.Samples) -> int:
    """Returns how many slots of a token are stored with their weights."""
    if samples.estimator not in COUNTED:
        return samples.num_samples
    return samples.num_samples // 2 if samples.estimator == "stratified" else 0


def bytes_per_token(samples: settings.Samples) -> int:
    """Returns the bytes of a token in the loss mask, before compression: for COUNTED, if no id comes twice."""
    num_weighted = num_weighted_slots(samples)
    num_counted = samples.num_samples - num_weighted
    counted_bytes = 6 + (3 + _count_type(num_counted).itemsize) * num_counted if num_counted else 0
    return 15 + 5 * num_weighted + counted_bytes


def encode(row: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray], samples: settings.Samples) -> bytes:
    """Returns the record of a row; `targets` has the fields of SparseTargets for all its tokens, [T, M] and [T].

    Decoded, slots of "top_k" are in the order of their weights, counted slots in that of their ids,
    and all others in the order they have here. Raises: ValueError if a number is not finite.
    """
    masked = {name: np.asarray(array)[row["loss_mask"]] for name, array in targets.items()}
    weights = masked["weights"].astype(np.float32)
    ids = masked["ids"]
    for name in ("weights", *NUMBERS):
        if not np.isfinite(masked[name].astype(np.float32)).all():
            raise ValueError(
                f"the teacher's {name} are not all finite; evaluate its checkpoint, and teach with float32"
            )
    assert ids.size == 0 or (ids.min() >= 0 and ids.max() < MAX_IDS)
    if samples.estimator == "top_k":
        order = np.argsort(-weights, axis=1, kind="stable")
        ids, weights = np.take_along_axis(ids, order, 1), np.take_along_axis(weights, order, 1)
    num_tokens, num_slots = ids.shape
    num_weighted = _num_weighted(weights) if samples.estimator in COUNTED else num_slots
    parts = [HEADER.pack(row_digest(row), num_tokens, num_slots, num_weighted)]
    parts += [masked[name].astype("<f4").tobytes() for name in NUMBERS]
    parts += [_pack_ids(masked["best_id"]), _pack_ids(ids[:, :num_weighted])]
    parts += [weights[:, :num_weighted].astype(ml_dtypes.bfloat16).tobytes()]
    if num_weighted < num_slots:
        parts += [weights[:, -1].astype("<f4").tobytes(), *_pack_counts(ids[:, num_weighted:])]
    return b"".join(parts)


def _num_weighted(weights: np.ndarray) -> int:
    """The number of slots before those that have equal weights in every token."""
    is_equal = (weights == weights[:, -1:]).all(axis=0)
    num_equal = len(is_equal) if is_equal.all() else int(np.argmin(is_equal[::-1]))
    return len(is_equal) - num_equal


def _pack_ids(ids: np.ndarray) -> bytes:
    as_bytes = np.ascontiguousarray(ids, "<i4").reshape(-1, 1).view(np.uint8)
    return as_bytes[:, :3].T.tobytes()


def _pack_counts(ids: np.ndarray) -> list[bytes]:
    """The number of distinct ids of each token, these ids, and the count of each, less one."""
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
    """Returns the digest of the row that a record belongs to. Raises: ValueError if the record has no header."""
    return _header(record)[0]


def _header(record: bytes) -> tuple:
    if len(record) < HEADER.size:
        raise ValueError(f"it has {len(record)} bytes, of which the header alone takes {HEADER.size}")
    return HEADER.unpack_from(record)


def decode(record: bytes) -> dict[str, np.ndarray]:
    """Returns the fields of SparseTargets for the tokens in the loss mask of its row, ids and weights [T, M].

    Raises: ValueError if the record has fewer bytes than its header promises, or more.
    """
    _, num_tokens, num_slots, num_weighted = _header(record)
    content = _Content(record)
    fields = {name: content.take("<f4", num_tokens) for name in NUMBERS}
    fields["best_id"] = content.take_ids(num_tokens)
    ids = content.take_ids(num_tokens * num_weighted).reshape(num_tokens, num_weighted)
    weights = content.take(ml_dtypes.bfloat16, num_tokens * num_weighted).reshape(num_tokens, num_weighted)
    weights = weights.astype(np.float32)
    num_counted = num_slots - num_weighted
    if num_counted:
        weight = content.take("<f4", num_tokens)
        num_ids = int(content.take("<u2" if num_counted < 1 << 16 else "<u4", num_tokens).sum(dtype=np.int64))
        distinct = content.take_ids(num_ids)
        counts = content.take(_count_type(num_counted), num_ids).astype(np.int64) + 1
        if counts.sum() != num_tokens * num_counted:
            raise ValueError(f"its counts are of {counts.sum()} samples, its header of {num_tokens * num_counted}")
        ids = np.hstack([ids, np.repeat(distinct, counts).reshape(num_tokens, num_counted)])
        weights = np.hstack([weights, np.broadcast_to(weight[:, None], (num_tokens, num_counted))])
    content.check_all_taken()
    return {"ids": ids, "weights": weights, **fields}


def check(targets: Mapping[str, np.ndarray], num_tokens: int, num_slots: int, num_ids: int) -> None:
    """Raises: ValueError if decoded targets are of other tokens, slots or ids than those of the stage."""
    if targets["ids"].shape != (num_tokens, num_slots):
        stored_tokens, stored_slots = targets["ids"].shape
        raise ValueError(f"it has {stored_slots} samples of {stored_tokens} tokens, not {num_slots} of {num_tokens}")
    for name in ("ids", "best_id"):
        if targets[name].max(initial=0) >= num_ids:
            raise ValueError(f"it has token id {targets[name].max()}, and the vocabulary has {num_ids}")


class _Content:
    """The content of a record after its header, read from front to back."""

    def __init__(self, record: bytes):
        self._record, self._offset = record, HEADER.size

    def take(self, dtype, count: int) -> np.ndarray:
        if count * np.dtype(dtype).itemsize > len(self._record) - self._offset:
            raise ValueError(f"it ends at byte {len(self._record)}, before all that its header promises")
        array = np.frombuffer(self._record, dtype, count, self._offset)
        self._offset += array.nbytes
        return array

    def check_all_taken(self) -> None:
        if self._offset != len(self._record):
            raise ValueError(f"it has {len(self._record) - self._offset} bytes more than its header promises")

    def take_ids(self, count: int) -> np.ndarray:
        low, middle, high = self.take("u1", 3 * count).reshape(3, count).astype(np.int32)
        return low | middle << 8 | high << 16


def scatter(targets: Mapping[str, np.ndarray], loss_mask: np.ndarray) -> dict[str, np.ndarray]:
    """Returns arrays over all tokens of a row from those of the tokens in its loss mask, with zeros elsewhere."""
    whole = {}
    for name, array in targets.items():
        whole[name] = np.zeros((len(loss_mask), *array.shape[1:]), array.dtype)
        whole[name][loss_mask] = array
    return whole

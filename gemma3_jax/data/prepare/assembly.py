"""Documents -> shards of packed rows.

One runner does this on many machines and another in one process, and both write the same bytes: the shard and the order
of a document follow from a hash of its record id, and the cut into rows from the shard alone.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from gemma3_jax.data import dataset, packing, record_ids, shards
from gemma3_jax.data.prepare import settings


def order(seed: int, record_id: record_ids.RecordId) -> int:
    """Returns the 64-bit sort key of a document: neighbors in a source are not neighbors in a shard."""
    key = f"{seed}/{record_id.source}/{record_id.file}/{record_id.position}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest())


def num_shards(config: settings.PrepareConfig, num_tokens: int) -> int:
    """Returns the number of shards of a part with `num_tokens` tokens."""
    return max(1, -(-num_tokens // config.tokens_per_shard))


def shard_of(document_order: int, shards_in_part: int) -> int:
    """Returns the shard that a document with this sort key belongs to."""
    return document_order * shards_in_part >> 64


def write_shard(
    url: str,
    config: settings.PrepareConfig,
    part: str,
    shard: tuple[int, int],
    documents: Sequence[shards.TokenizedDocument],
) -> dict:
    """Writes the shard (number, total) of a part from its documents, in any order; returns a summary of it."""
    documents = sorted(documents, key=lambda document: (order(config.seed, document.record_id), document.record_id))
    written = {
        "part": part,
        "shard": shard[0],
        "documents": len(documents),
        "tokens": sum(len(document.tokens) for document in documents),
        "characters": sum(document.num_characters for document in documents),
        "bytes": sum(document.num_bytes for document in documents),
        "files": {},
    }
    if config.documents:
        path = dataset.part_path("documents", part, *shard)
        file = shards.write(f"{url}/{path}", (document.to_bytes() for document in documents))
        written["files"]["documents"] = {"path": path, **file}
    for seq_len in config.seq_lens:
        path = dataset.part_path(dataset.rows_kind(seq_len), part, *shard)
        rows = packing.pack([len(document.tokens) for document in documents], seq_len)
        file = shards.write(f"{url}/{path}", (_row(documents, spans).to_bytes() for spans in rows))
        num_tokens = sum(span.length for spans in rows for span in spans)
        written["files"][dataset.rows_kind(seq_len)] = {"path": path, **file, "tokens": num_tokens}
    return written


def _row(documents: Sequence[shards.TokenizedDocument], spans: list[packing.DocumentSpan]) -> shards.PackedRow:
    pairs = [(documents[span.document], span) for span in spans]
    loss_mask = None
    if any(document.loss_mask is not None for document, _ in pairs):
        loss_mask = np.concatenate([_loss_mask(document)[span.start : span.stop] for document, span in pairs])
    return shards.PackedRow(
        tokens=np.concatenate([document.tokens[span.start : span.stop] for document, span in pairs]),
        lengths=np.asarray([span.length for span in spans], np.int32),
        loss_mask=loss_mask,
        spans=[(document.record_id, span.start) for document, span in pairs],
    )


def _loss_mask(document: shards.TokenizedDocument) -> np.ndarray:
    return np.ones(len(document.tokens), bool) if document.loss_mask is None else document.loss_mask

"""Documents that are kept -> shards of rows.

What one runner does on many machines and another in one process, so that both give the same bytes: the shard and the
order of a document follow from a hash of its place, the cut into rows from the shard alone.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from gemma3_jax.data import dataset, packing, records, settings, shards


def order(seed: int, place: records.Place) -> int:
    """A 64-bit number: documents stand in its order, so that neighbours in a source are not neighbours in a shard."""
    key = f"{seed}/{place.source}/{place.file}/{place.position}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest())


def num_shards(config: settings.Prepare, num_tokens: int) -> int:
    """Of a part with so many tokens."""
    return max(1, -(-num_tokens // config.tokens_per_shard))


def shard_of(document_order: int, shards_in_part: int) -> int:
    return document_order * shards_in_part >> 64


def write_shard(
    url: str, config: settings.Prepare, part: str, shard: tuple[int, int], content: Sequence[shards.Document]
) -> dict:
    """Writes the shard (number, of how many) of a part from its documents, in any order; returns what stands in it."""
    content = sorted(content, key=lambda document: (order(config.seed, document.place), document.place))
    written = {
        "part": part,
        "shard": shard[0],
        "documents": len(content),
        "tokens": sum(len(document.tokens) for document in content),
        "characters": sum(document.num_characters for document in content),
        "bytes": sum(document.num_bytes for document in content),
        "files": {},
    }
    if config.documents:
        path = dataset.part_path("documents", part, *shard)
        done = shards.write(f"{url}/{path}", (document.to_bytes() for document in content))
        written["files"]["documents"] = {"path": path, **done}
    for seq_len in config.seq_lens:
        path = dataset.part_path(dataset.rows_kind(seq_len), part, *shard)
        rows = packing.pack([len(document.tokens) for document in content], seq_len)
        done = shards.write(f"{url}/{path}", (_row(content, row).to_bytes() for row in rows))
        num_tokens = sum(piece.length for row in rows for piece in row)
        written["files"][dataset.rows_kind(seq_len)] = {"path": path, **done, "tokens": num_tokens}
    return written


def _row(content: Sequence[shards.Document], row: list[packing.Piece]) -> shards.Row:
    found = [content[piece.document] for piece in row]
    learned = None
    if any(document.learned is not None for document in found):
        everything = [np.ones(len(d.tokens), bool) if d.learned is None else d.learned for d in found]
        learned = np.concatenate([mask[p.start : p.stop] for mask, p in zip(everything, row, strict=True)])
    return shards.Row(
        tokens=np.concatenate([d.tokens[p.start : p.stop] for d, p in zip(found, row, strict=True)]),
        lengths=np.asarray([piece.length for piece in row], np.int32),
        learned=learned,
        pieces=[(document.place, piece.start) for document, piece in zip(found, row, strict=True)],
    )

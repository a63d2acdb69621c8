"""Documents that are kept -> shards of rows, and all shards -> the manifest and the report.

What one runner does on many machines and another in one process, so that both give the same bytes: the shard and the
order of a document follow from a hash of its place, the cut into rows from the shard alone.
"""

import collections
import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gemma3_jax.data import dataset, documents, mixture, packing, records, settings, shards, sources


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
    for row_length in config.row_lengths:
        path = dataset.part_path(dataset.rows_kind(row_length), part, *shard)
        rows = packing.pack([len(document.tokens) for document in content], row_length)
        done = shards.write(f"{url}/{path}", (_row(content, row).to_bytes() for row in rows))
        num_tokens = sum(piece.length for row in rows for piece in row)
        written["files"][dataset.rows_kind(row_length)] = {"path": path, **done, "tokens": num_tokens}
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


@dataclasses.dataclass
class Duplicate:
    """Documents left out because others are like them, counted as filters count theirs."""

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # (bucket, language, reason)
    examples: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)  # (reason, where, detail)

    def add(self, config: settings.Prepare, units, part: tuple[str, str], reason: str, *, later, earlier) -> None:
        """Counts the document at place `later`, which repeats that at `earlier`; call in order of `later`."""
        self.counts[(*part, reason)] += 1
        if sum(1 for example in self.examples if example[0] == reason) < config.examples_per_reason:
            where, like = (sources.describe(config.sources, units, place) for place in (later, earlier))
            self.examples.append((reason, where, f"like {like}"))


def summarise(
    config: settings.Prepare,
    tokenizer_digest: str,
    units: Sequence[sources.Unit],
    counts: Sequence[documents.Counts],
    duplicate: Duplicate,
    written: Iterable[Mapping],
) -> tuple[dict, dict]:
    """The manifest and the report; the same whoever did the work, and in whatever order.

    Raises: ValueError if a source has no records, if nothing is left, or if the mixture names what is not there.
    """
    read = _read(config, units, counts)
    parts = _parts(config, written)
    dropped = duplicate.counts.copy()
    for unit_counts in counts:
        dropped.update(unit_counts.dropped)
    if not parts:
        raise ValueError(
            f"nothing is left of {sum(source['records'] for source in read.values())} records: {_why(dropped)}"
        )
    characters = {name: part["characters"] for name, part in parts.items()}
    # A mixture that cannot be drawn is told now, not by a job that starts on a pod.
    for row_length in config.row_lengths:
        num_rows = {name: part["rows"][str(row_length)] for name, part in parts.items()}
        mixture.weights(characters, num_rows, config.mixture)
    manifest = {
        "format": dataset.FORMAT,
        "version": importlib.metadata.version("gemma3_jax"),
        "digest": dataset.digest([tokenizer_digest, parts]),
        "tokenizer": {"digest": tokenizer_digest},
        "sources": read,
        "row_lengths": list(config.row_lengths),
        "parts": parts,
        "dropped": _nested(dropped),
        "mixture": _plain(config)["mixture"],
        "settings": _plain(config),
    }
    return manifest, _report(config, counts, duplicate, dropped, manifest)


def _plain(config: settings.Prepare) -> dict:
    """The settings as JSON would give them back."""
    return json.loads(dataset.canonical(dataclasses.asdict(config)))


def _read(config: settings.Prepare, units, counts) -> dict[str, dict]:
    read = {}
    for name in config.sources:
        mine = [found for unit, found in zip(units, counts, strict=True) if unit.source == name]
        read[name] = {
            "records": sum(found.records for found in mine),
            "broken": sum(len(found.broken) for found in mine),
            "changed": sum(found.changed for found in mine),
            "digest": dataset.digest([found.digest for found in mine]),
        }
        if not read[name]["records"]:
            raise ValueError(f"source {name} is empty: its files hold no record (config.sources.{name})")
    return read


def _parts(config: settings.Prepare, written: Iterable[Mapping]) -> dict[str, dict]:
    parts: dict[str, dict] = {}
    for shard in sorted(written, key=lambda found: (found["part"], found["shard"])):
        part = parts.setdefault(
            shard["part"],
            {"documents": 0, "tokens": 0, "characters": 0, "bytes": 0, "files": collections.defaultdict(list)},
        )
        for quantity in ("documents", "tokens", "characters", "bytes"):
            part[quantity] += shard[quantity]
        for kind, file in shard["files"].items():
            part["files"][kind].append(file)
    for part in parts.values():
        part["rows"] = {}
        for row_length in config.row_lengths:
            files = part["files"][dataset.rows_kind(row_length)]
            num_rows = sum(file["records"] for file in files)
            part["rows"][str(row_length)] = num_rows
    return parts


def fill(parts: Mapping[str, Mapping], row_length: int) -> float:
    """Share of the places in all rows of a length that hold a token."""
    files = [file for part in parts.values() for file in part["files"][dataset.rows_kind(row_length)]]
    return sum(file["tokens"] for file in files) / (row_length * sum(file["records"] for file in files))


def _nested(dropped: Mapping[tuple[str, str, str], int]) -> dict:
    nested: dict = {}
    for (bucket, language, reason), count in sorted(dropped.items()):
        nested.setdefault(f"{bucket}/{language}", {})[reason] = count
    return nested


def _why(dropped: Mapping[tuple[str, str, str], int]) -> str:
    by_reason: collections.Counter = collections.Counter()
    for (_, _, reason), count in dropped.items():
        by_reason[reason] += count
    return ", ".join(f"{reason} {count}" for reason, count in sorted(by_reason.items())) or "none could be read"


def _report(config: settings.Prepare, counts, duplicate: Duplicate, dropped, manifest: dict) -> dict:
    """What was left out and why, for people and for programs."""
    examples: dict[str, list] = {}
    for found in [*(example for unit_counts in counts for example in unit_counts.examples), *duplicate.examples]:
        reason, where, detail = found
        chosen = examples.setdefault(reason, [])
        if len(chosen) < config.examples_per_reason:
            chosen.append({"record": where, "detail": detail})
    by_reason: collections.Counter = collections.Counter()
    for (_, _, reason), count in dropped.items():
        by_reason[reason] += count
    broken = [line for unit_counts in counts for line in unit_counts.broken]
    parts = manifest["parts"]
    return {
        "records": sum(source["records"] for source in manifest["sources"].values()),
        "broken": {"count": len(broken), "examples": broken[: config.examples_per_reason]},
        "changed": sum(source["changed"] for source in manifest["sources"].values()),
        "dropped": {
            reason: {"count": count, "examples": examples.get(reason, [])}
            for reason, count in sorted(by_reason.items())
        },
        "dropped_by_part": manifest["dropped"],
        "kept": {
            quantity: sum(part[quantity] for part in parts.values()) for quantity in ("documents", "tokens", "bytes")
        },
        "parts": {
            name: {key: part[key] for key in ("documents", "tokens", "characters", "rows")}
            for name, part in parts.items()
        },
        "fill": {str(length): round(fill(parts, length), 5) for length in config.row_lengths},
        "digest": manifest["digest"],
    }

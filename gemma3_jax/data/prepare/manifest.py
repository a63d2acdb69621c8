"""The manifest and the report of a data set, from what was read, dropped and written; every runner makes the same."""

import collections
import dataclasses
import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence

from gemma3_jax.data import dataset, mixture, record_ids
from gemma3_jax.data.prepare import contamination, documents, filters, formats, settings, sources

QUANTITIES = ("documents", "tokens", "characters", "bytes")


@dataclasses.dataclass
class RemovedDuplicates:
    """Documents that were removed because an earlier one is like them."""

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # (bucket, language, reason)
    # (reason, the document, the earlier one)
    examples: list[tuple[str, record_ids.RecordId, record_ids.RecordId]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that a manifest is made from."""

    config: settings.PrepareConfig
    inputs: filters.Inputs
    tokenizer_digest: str
    units: Sequence[sources.Unit]
    counts: Sequence[documents.UnitCounts]  # of each unit
    duplicates: RemovedDuplicates
    written: Iterable[Mapping]  # of each shard

    def where(self, record_id: record_ids.RecordId) -> str:
        return sources.describe(self.config.sources, self.units, record_id)


def summarize(results: Results) -> tuple[dict, dict]:
    """Returns the manifest and the report.

    Raises: ValueError if a source has no records, if no document is left, or if the mixture names what is not there.
    """
    config = results.config
    read = _read(results)
    parts = _parts(config, results.written)
    dropped = results.duplicates.counts.copy()
    for counts in results.counts:
        dropped.update(counts.dropped)
    by_reason: collections.Counter = collections.Counter()
    for (_, _, reason), count in dropped.items():
        by_reason[reason] += count
    if not parts:
        num_records = sum(source["records"] for source in read.values())
        why = ", ".join(f"{reason} {count}" for reason, count in sorted(by_reason.items())) or "none could be read"
        raise ValueError(f"nothing is left of {num_records} records: {why}")
    fractions = _fractions(config, parts)
    plain = json.loads(dataset.canonical(dataclasses.asdict(config)))  # as it comes back from JSON
    manifest = {
        "format": dataset.FORMAT,
        "version": importlib.metadata.version("gemma3_jax"),
        "digest": dataset.digest([results.tokenizer_digest, parts]),
        "tokenizer": {"digest": results.tokenizer_digest},
        "sources": read,
        "filter_inputs": dataset.digest(dataclasses.asdict(results.inputs)),
        "seq_lens": list(config.seq_lens),
        "parts": parts,
        "dropped": _nested(dropped),
        "mixture": plain["mixture"],
        "settings": plain,
    }
    return manifest, _report(results, by_reason, manifest, fractions)


def _read(results: Results) -> dict[str, dict]:
    read = {}
    for name in results.config.sources:
        of_source = [counts for unit, counts in zip(results.units, results.counts, strict=True) if unit.source == name]
        read[name] = {
            "records": sum(counts.num_records for counts in of_source),
            "broken": sum(len(counts.broken) for counts in of_source),
            "changed": sum(counts.changed for counts in of_source),
            "digest": dataset.digest([counts.digest for counts in of_source]),
        }
        if not read[name]["records"]:
            raise ValueError(f"source {name} is empty: its files hold no record (config.sources.{name})")
    return read


def _parts(config: settings.PrepareConfig, written: Iterable[Mapping]) -> dict[str, dict]:
    parts: dict[str, dict] = {}
    for shard in sorted(written, key=lambda shard: (shard["part"], shard["shard"])):
        part = parts.setdefault(shard["part"], dict.fromkeys(QUANTITIES, 0) | {"files": collections.defaultdict(list)})
        for quantity in QUANTITIES:
            part[quantity] += shard[quantity]
        for kind, file in shard["files"].items():
            part["files"][kind].append(file)
    for part in parts.values():
        files = part["files"]
        part["rows"] = {
            str(length): sum(file["records"] for file in files[dataset.rows_kind(length)]) for length in config.seq_lens
        }
    return parts


def _fractions(config: settings.PrepareConfig, parts: Mapping[str, Mapping]) -> dict[str, dict[str, float]]:
    """Returns {part: {sequence length: the fraction of the rows that training draws from it}}.

    A mixture that cannot be drawn is an error here, and not in a job that starts on a pod.
    """
    characters = {name: part["characters"] for name, part in parts.items()}
    mixture.weights(characters, {name: part["documents"] for name, part in parts.items()}, config.mixture)
    fractions: dict[str, dict[str, float]] = {name: {} for name in parts}
    for length in map(str, config.seq_lens):
        drawn = mixture.weights(
            characters, {name: part["rows"][length] for name, part in parts.items()}, config.mixture
        )
        for name in parts:
            fractions[name][length] = round(drawn.get(name, 0.0), 6)
    return fractions


def fill(parts: Mapping[str, Mapping], seq_len: int) -> float:
    """Returns the fraction of the positions in all rows of a length that hold a token."""
    files = [file for part in parts.values() for file in part["files"][dataset.rows_kind(seq_len)]]
    return sum(file["tokens"] for file in files) / (seq_len * sum(file["records"] for file in files))


def _nested(dropped: Mapping[tuple[str, str, str], int]) -> dict:
    nested: dict = {}
    for (bucket, language, reason), count in sorted(dropped.items()):
        nested.setdefault(f"{bucket}/{language}", {})[reason] = count
    return nested


def _report(results: Results, by_reason: Mapping[str, int], manifest: dict, fractions: Mapping[str, Mapping]) -> dict:
    """Returns what was dropped and why, for people and for programs. Its keys are a format: they stay."""
    parts, read = manifest["parts"], manifest["sources"].values()
    most = results.config.examples_per_reason
    broken = [record for counts in results.counts for record in counts.broken]
    index = contamination.Index(results.inputs.evaluation)
    return {
        "records": sum(source["records"] for source in read),
        "broken": {
            "count": len(broken),
            "examples": [f"{results.where(record_id)}: {problem}" for record_id, problem in broken[:most]],
        },
        "changed": sum(source["changed"] for source in read),
        "dropped": {
            reason: {"count": count, "examples": _examples(results, reason)}
            for reason, count in sorted(by_reason.items())
        },
        "dropped_by_part": manifest["dropped"],
        "evaluation": {"items": index.num_items, "too_short_to_find": index.num_too_short},
        "kept": {quantity: sum(part[quantity] for part in parts.values()) for quantity in QUANTITIES},
        "sources": {
            name: source | {"format": formats.describe(results.config.sources[name])}
            for name, source in manifest["sources"].items()
        },
        "parts": {
            name: {key: part[key] for key in (*QUANTITIES, "rows")} | {"share": fractions[name]}
            for name, part in parts.items()
        },
        "fill": {str(length): round(fill(parts, length), 5) for length in results.config.seq_lens},
        "digest": manifest["digest"],
    }


def _examples(results: Results, reason: str) -> list[dict]:
    """Returns the first few records, by id, that were dropped for a reason."""
    most = results.config.examples_per_reason
    filtered = (example for counts in results.counts for example in counts.examples if example[0] == reason)
    first = sorted(filtered, key=lambda example: example[1])[:most]
    duplicates = sorted(example for example in results.duplicates.examples if example[0] == reason)[:most]
    return [{"record": results.where(record_id), "detail": detail} for _, record_id, detail in first] + [
        {"record": results.where(record_id), "detail": f"like {results.where(earlier)}"}
        for _, record_id, earlier in duplicates
    ]

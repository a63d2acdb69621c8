"""What was read, left out and written -> the manifest and the report; the same whoever did the work."""

import collections
import dataclasses
import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence

from gemma3_jax.data import dataset, mixture, records, settings
from gemma3_jax.data.prepare import contamination, documents, filters, sources

QUANTITIES = ("documents", "tokens", "characters", "bytes")


@dataclasses.dataclass
class Duplicates:
    """Documents left out because an earlier one is like them."""

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # (bucket, language, reason)
    # (reason, it, the earlier one)
    examples: list[tuple[str, records.Place, records.Place]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Work:
    """All that a manifest is made of."""

    config: settings.Prepare
    inputs: filters.Inputs
    tokenizer_digest: str
    units: Sequence[sources.Unit]
    counts: Sequence[documents.Counts]  # of each unit
    duplicates: Duplicates
    written: Iterable[Mapping]  # of each shard

    def where(self, place: records.Place) -> str:
        return sources.describe(self.config.sources, self.units, place)


def summarise(work: Work) -> tuple[dict, dict]:
    """The manifest and the report.

    Raises: ValueError if a source has no records, if nothing is left, or if the mixture names what is not there.
    """
    config = work.config
    read = _read(work)
    parts = _parts(config, work.written)
    dropped = work.duplicates.counts.copy()
    for counts in work.counts:
        dropped.update(counts.dropped)
    by_reason: collections.Counter = collections.Counter()
    for (_, _, reason), count in dropped.items():
        by_reason[reason] += count
    if not parts:
        num_records = sum(source["records"] for source in read.values())
        why = ", ".join(f"{reason} {count}" for reason, count in sorted(by_reason.items())) or "none could be read"
        raise ValueError(f"nothing is left of {num_records} records: {why}")
    shares = _shares(config, parts)
    plain = json.loads(dataset.canonical(dataclasses.asdict(config)))  # as JSON gives it back
    manifest = {
        "format": dataset.FORMAT,
        "version": importlib.metadata.version("gemma3_jax"),
        "digest": dataset.digest([work.tokenizer_digest, parts]),
        "tokenizer": {"digest": work.tokenizer_digest},
        "sources": read,
        "filter_inputs": dataset.digest(dataclasses.asdict(work.inputs)),
        "seq_lens": list(config.seq_lens),
        "parts": parts,
        "dropped": _nested(dropped),
        "mixture": plain["mixture"],
        "settings": plain,
    }
    return manifest, _report(work, by_reason, manifest, shares)


def _read(work: Work) -> dict[str, dict]:
    read = {}
    for name in work.config.sources:
        mine = [found for unit, found in zip(work.units, work.counts, strict=True) if unit.source == name]
        read[name] = {
            "records": sum(found.num_records for found in mine),
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


def _shares(config: settings.Prepare, parts: Mapping[str, Mapping]) -> dict[str, dict[str, float]]:
    """{part: {row length: its share of the rows that training draws}}.

    A mixture that cannot be drawn is told here, not by a job that starts on a pod.
    """
    characters = {name: part["characters"] for name, part in parts.items()}
    mixture.weights(characters, {name: part["documents"] for name, part in parts.items()}, config.mixture)
    shares: dict[str, dict[str, float]] = {name: {} for name in parts}
    for length in map(str, config.seq_lens):
        drawn = mixture.weights(
            characters, {name: part["rows"][length] for name, part in parts.items()}, config.mixture
        )
        for name in parts:
            shares[name][length] = round(drawn.get(name, 0.0), 6)
    return shares


def fill(parts: Mapping[str, Mapping], seq_len: int) -> float:
    """Share of the places in all rows of a length that hold a token."""
    files = [file for part in parts.values() for file in part["files"][dataset.rows_kind(seq_len)]]
    return sum(file["tokens"] for file in files) / (seq_len * sum(file["records"] for file in files))


def _nested(dropped: Mapping[tuple[str, str, str], int]) -> dict:
    nested: dict = {}
    for (bucket, language, reason), count in sorted(dropped.items()):
        nested.setdefault(f"{bucket}/{language}", {})[reason] = count
    return nested


def _report(work: Work, by_reason: Mapping[str, int], manifest: dict, shares: Mapping[str, Mapping]) -> dict:
    """What was left out and why, for people and for programs."""
    parts, read = manifest["parts"], manifest["sources"].values()
    most = work.config.examples_per_reason
    broken = [found for counts in work.counts for found in counts.broken]
    index = contamination.Index(work.inputs.evaluation)
    return {
        "records": sum(source["records"] for source in read),
        "broken": {"count": len(broken), "examples": [f"{work.where(place)}: {why}" for place, why in broken[:most]]},
        "changed": sum(source["changed"] for source in read),
        "dropped": {
            reason: {"count": count, "examples": _examples(work, reason)} for reason, count in sorted(by_reason.items())
        },
        "dropped_by_part": manifest["dropped"],
        "evaluation": {"items": index.num_items, "too_short_to_find": index.num_too_short},
        "kept": {quantity: sum(part[quantity] for part in parts.values()) for quantity in QUANTITIES},
        "sources": manifest["sources"],
        "parts": {
            name: {key: part[key] for key in (*QUANTITIES, "rows")} | {"share": shares[name]}
            for name, part in parts.items()
        },
        "fill": {str(length): round(fill(parts, length), 5) for length in work.config.seq_lens},
        "digest": manifest["digest"],
    }


def _examples(work: Work, reason: str) -> list[dict]:
    """The first few records, by place, that were dropped for a reason."""
    most = work.config.examples_per_reason
    filtered = (found for counts in work.counts for found in counts.examples if found[0] == reason)
    first = sorted(filtered, key=lambda found: found[1])[:most]
    alike = sorted(found for found in work.duplicates.examples if found[0] == reason)[:most]
    return [{"record": work.where(place), "detail": detail} for _, place, detail in first] + [
        {"record": work.where(place), "detail": f"like {work.where(earlier)}"} for _, place, earlier in alike
    ]

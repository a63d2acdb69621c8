"""A unit of the sources -> its tokenized documents: what one worker does, independently of all others."""

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from gemma3_jax.data import record_ids, shards
from gemma3_jax.data.prepare import duplicates, filters, records, settings, sources
from gemma3_jax.tokenizer import chat, vocabulary


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A document that passed the filters, with what identifies its duplicates."""

    document: shards.TokenizedDocument
    text_digest: bytes  # equal for equal texts, or equal turns
    signature: np.ndarray | None  # uint64[128]; None without near-duplicate removal, or without words


@dataclasses.dataclass
class UnitCounts:
    """What became of the records of a unit. Its field names are keys in unfinished data sets."""

    num_records: int = 0
    digest: str = ""  # of all that was read
    broken: list[tuple[record_ids.RecordId, str]] = dataclasses.field(default_factory=list)  # with the problem
    dropped: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # (bucket, language, reason)
    changed: int = 0  # masked or excised
    # (reason, record, detail)
    examples: list[tuple[str, record_ids.RecordId, str]] = dataclasses.field(default_factory=list)


class Worker:
    """Filters and tokenizes; built once per process."""

    def __init__(self, config: settings.PrepareConfig, inputs: filters.Inputs, tokenizer: vocabulary.Tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.filters = filters.build(config, inputs)

    def candidates(self, unit: sources.Unit, counts: UnitCounts) -> Iterator[Candidate]:
        """Yields the tokenized documents of a unit, in order, and counts the other records in `counts`.

        A chat whose turns do not alternate, or a record without a score, counts as broken.
        Raises: ValueError if more records are broken than the source may have.
        """
        for record in self._filtered(unit, counts):
            try:
                tokens, loss_mask = self._encode(record)
            except ValueError as error:
                self._count_broken(unit, counts, record.record_id, str(error))
                continue
            text = record.text
            yield Candidate(
                document=shards.TokenizedDocument(
                    record_id=record.record_id,
                    bucket=record.bucket,
                    language=record.language,
                    tokens=tokens,
                    loss_mask=loss_mask,
                    num_characters=len(text),
                    num_bytes=len(text.encode()),
                ),
                text_digest=records.digest("\0".join([*record.roles, *record.texts])),
                signature=duplicates.signature(text, self.config.seed) if self.config.duplicates.near else None,
            )

    def _filtered(self, unit: sources.Unit, counts: UnitCounts) -> Iterator[records.Record]:
        digest = hashlib.blake2b(digest_size=16)
        num_examples: collections.Counter = collections.Counter()
        for record in sources.read(unit, self.config.sources[unit.source]):
            counts.num_records += 1
            if isinstance(record, sources.BrokenRecord):
                digest.update(record.problem.encode())
                self._count_broken(unit, counts, record.record_id, record.problem)
                continue
            digest.update(f"{record.record_id.hash_key()}{record.language}{record.text}".encode())
            try:
                outcome = filters.apply(self.filters, record)
            except ValueError as error:
                self._count_broken(unit, counts, record.record_id, str(error))
                continue
            if isinstance(outcome, records.Record):
                counts.changed += outcome is not record
                yield outcome
                continue
            counts.dropped[record.bucket, record.language, outcome.reason] += 1
            if num_examples[outcome.reason] < self.config.examples_per_reason:
                num_examples[outcome.reason] += 1
                counts.examples.append((outcome.reason, record.record_id, outcome.detail))
        counts.digest = digest.hexdigest()

    def _count_broken(
        self, unit: sources.Unit, counts: UnitCounts, record_id: record_ids.RecordId, problem: str
    ) -> None:
        counts.broken.append((record_id, problem))
        check_broken(self.config, [unit], unit.source, counts.broken)

    def _encode(self, record: records.Record) -> tuple[np.ndarray, np.ndarray | None]:
        if not record.roles:
            return self.tokenizer.document(record.text), None
        turns = [{"role": role, "content": text} for role, text in zip(record.roles, record.texts, strict=True)]
        return chat.encode(self.tokenizer, turns)


def check_broken(
    config: settings.PrepareConfig,
    units: Sequence[sources.Unit],
    name: str,
    broken: Sequence[tuple[record_ids.RecordId, str]],
) -> None:
    """Raises: ValueError if a source has more broken records than it may have."""
    most = config.sources[name].max_broken
    if len(broken) > most:
        record_id, problem = broken[0]
        where = sources.describe(config.sources, units, record_id)
        raise ValueError(
            f"source {name} has more than {most} records that cannot be read, the first at {where}: {problem} "
            f"(config.sources.{name}.max_broken)"
        )


def check_all_broken(
    config: settings.PrepareConfig, units: Sequence[sources.Unit], counts: Sequence[UnitCounts]
) -> None:
    """Raises: ValueError if the units of a source have, together, more broken records than it may have, or no other."""
    for name in config.sources:
        of_source = [counted for unit, counted in zip(units, counts, strict=True) if unit.source == name]
        broken = [record for counted in of_source for record in counted.broken]
        check_broken(config, units, name, broken)
        if broken and len(broken) == sum(counted.num_records for counted in of_source):
            record_id, problem = broken[0]
            where = sources.describe(config.sources, units, record_id)
            raise ValueError(
                f"source {name} has nothing that can be read; the first of {len(broken)} records, at {where}: "
                f"{problem} (config.sources.{name})"
            )

"""A unit of sources -> its tokenised documents: what one worker does, with no view of any other."""

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from gemma3_jax.data import records, settings, shards
from gemma3_jax.data.prepare import duplicates, filters, sources
from gemma3_jax.tokenizer import chat, vocabulary


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A document that passed the filters, and what duplicates are found by."""

    document: shards.Document
    text_digest: bytes  # the same for the same text, or the same turns
    signature: np.ndarray | None  # uint64[128]; None where near-duplicates are not looked for, or without words


@dataclasses.dataclass
class Counts:
    """What became of the records of a unit."""

    num_records: int = 0
    digest: str = ""  # of all that was read
    broken: list[tuple[records.Place, str]] = dataclasses.field(default_factory=list)  # and what is wrong with it
    dropped: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # (bucket, language, reason)
    changed: int = 0  # masked or excised
    examples: list[tuple[str, records.Place, str]] = dataclasses.field(default_factory=list)  # (reason, where, detail)


class Worker:
    """Filters and tokenises; built once per process."""

    def __init__(self, config: settings.Prepare, inputs: filters.Inputs, tokenizer: vocabulary.Tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.filters = filters.build(config, inputs)

    def candidates(self, unit: sources.Unit, counts: Counts) -> Iterator[Candidate]:
        """The tokenised documents of a unit, in order. `counts` takes what is left out: a chat whose turns do not
        alternate, or a record without a score, counts as broken.

        Raises: ValueError if more records are broken than the source may have.
        """
        for record in self._filtered(unit, counts):
            try:
                tokens, learned = self._encode(record)
            except ValueError as error:
                self._broken(unit, counts, record.place, str(error))
                continue
            text = record.text
            yield Candidate(
                document=shards.Document(
                    place=record.place,
                    bucket=record.bucket,
                    language=record.language,
                    tokens=tokens,
                    learned=learned,
                    num_characters=len(text),
                    num_bytes=len(text.encode()),
                ),
                text_digest=records.digest("\0".join([*record.roles, *record.texts])),
                signature=duplicates.signature(text, self.config.seed) if self.config.duplicates.near else None,
            )

    def _filtered(self, unit: sources.Unit, counts: Counts) -> Iterator[records.Record]:
        digest = hashlib.blake2b(digest_size=16)
        num_examples: collections.Counter = collections.Counter()
        for record in sources.read(unit, self.config.sources[unit.source]):
            counts.num_records += 1
            if isinstance(record, sources.Broken):
                digest.update(record.problem.encode())
                self._broken(unit, counts, record.place, record.problem)
                continue
            digest.update(f"{record.place}{record.language}{record.text}".encode())
            try:
                outcome = filters.apply(self.filters, record)
            except ValueError as error:
                self._broken(unit, counts, record.place, str(error))
                continue
            if isinstance(outcome, records.Record):
                counts.changed += outcome is not record
                yield outcome
                continue
            counts.dropped[record.bucket, record.language, outcome.reason] += 1
            if num_examples[outcome.reason] < self.config.examples_per_reason:
                num_examples[outcome.reason] += 1
                counts.examples.append((outcome.reason, record.place, outcome.detail))
        counts.digest = digest.hexdigest()

    def _broken(self, unit: sources.Unit, counts: Counts, place: records.Place, problem: str) -> None:
        counts.broken.append((place, problem))
        check_broken(self.config, [unit], unit.source, counts.broken)

    def _encode(self, record: records.Record) -> tuple[np.ndarray, np.ndarray | None]:
        if not record.roles:
            return self.tokenizer.document(record.text), None
        turns = [{"role": role, "content": text} for role, text in zip(record.roles, record.texts, strict=True)]
        return chat.encode(self.tokenizer, turns)


def check_broken(
    config: settings.Prepare,
    units: Sequence[sources.Unit],
    name: str,
    broken: Sequence[tuple[records.Place, str]],
) -> None:
    """Raises: ValueError if a source has more broken records than it may have."""
    most = config.sources[name].max_broken
    if len(broken) > most:
        place, problem = broken[0]
        where = sources.describe(config.sources, units, place)
        raise ValueError(
            f"source {name} has more than {most} records that cannot be read, the first at {where}: {problem} "
            f"(config.sources.{name}.max_broken)"
        )


def check_all_broken(config: settings.Prepare, units: Sequence[sources.Unit], counts: Sequence[Counts]) -> None:
    """Raises: ValueError if the units of a source have, together, more broken records than it may have."""
    for name in config.sources:
        mine = [found for unit, found in zip(units, counts, strict=True) if unit.source == name]
        check_broken(config, units, name, [broken for found in mine for broken in found.broken])

"""A unit of sources -> its tokenised documents: what one worker does, with no view of any other."""

import collections
import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from gemma3_jax.data import duplicates, filters, records, settings, shards, sources
from gemma3_jax.tokenizer import chat, vocabulary


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A document that passed the filters, and what duplicates are found by."""

    document: shards.Document
    text_digest: bytes
    signature: np.ndarray | None  # uint64[128]; None where near-duplicates are not looked for, or without words
    head: str  # its first characters, for examples in the report


@dataclasses.dataclass
class Counts:
    """What became of the records of a unit."""

    records: int = 0
    digest: str = ""  # of all that was read
    broken: list[str] = dataclasses.field(default_factory=list)
    dropped: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # (bucket, language, reason)
    changed: int = 0  # masked or excised
    examples: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)  # (reason, where, detail)


class Worker:
    """Filters and tokenises; built once per process."""

    def __init__(self, config: settings.Prepare, tokenizer: vocabulary.Tokenizer | None, evaluation: list):
        self.config = config
        self.sources = list(config.sources.items())
        self.tokenizer = tokenizer
        self.filters = filters.build(config, evaluation)

    def filtered(self, unit: sources.Unit, counts: Counts):
        """The records of a unit that pass the filters, in order; `counts` takes the others.

        Raises: ValueError if more records are broken than the source may have.
        """
        name, source = self.sources[unit.source_number]
        digest = hashlib.blake2b(digest_size=16)
        num_examples: collections.Counter = collections.Counter()
        for record in sources.read(unit, source):
            counts.records += 1
            if isinstance(record, sources.Broken):
                counts.broken.append(f"{sources.describe(self.config.sources, [unit], record.place)}: {record.problem}")
                check_broken(name, source, len(counts.broken), counts.broken[0])
                digest.update(record.problem.encode())
                continue
            digest.update(f"{record.place}{record.language}{record.text}".encode())
            outcome = filters.apply(self.filters, record)
            if isinstance(outcome, records.Dropped):
                counts.dropped[record.bucket, record.language, outcome.reason] += 1
                if num_examples[outcome.reason] < self.config.examples_per_reason:
                    num_examples[outcome.reason] += 1
                    counts.examples.append(
                        (outcome.reason, sources.describe(self.config.sources, [unit], record.place), outcome.detail)
                    )
                continue
            counts.changed += outcome is not record
            yield outcome
        counts.digest = digest.hexdigest()

    def candidates(self, unit: sources.Unit, counts: Counts):
        """The tokenised documents of a unit, in order. A chat whose turns do not alternate counts as broken.

        Raises: ValueError as `filtered`.
        """
        name, source = self.sources[unit.source_number]
        for record in self.filtered(unit, counts):
            text = record.text
            try:
                tokens, learned = self._encode(record)
            except ValueError as error:
                counts.broken.append(f"{sources.describe(self.config.sources, [unit], record.place)}: {error}")
                check_broken(name, source, len(counts.broken), counts.broken[0])
                continue
            near = self.config.duplicates.near
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
                text_digest=records.digest(text),
                signature=duplicates.signature(text, self.config.seed) if near else None,
                head=text[:80],
            )

    def _encode(self, record: records.Record) -> tuple[np.ndarray, np.ndarray | None]:
        if not record.roles:
            return self.tokenizer.document(record.text), None
        turns = [{"role": role, "content": text} for role, text in zip(record.roles, record.texts, strict=True)]
        return chat.encode(self.tokenizer, turns)


def check_broken(name: str, source: settings.Source, num_broken: int, first: str) -> None:
    """Raises: ValueError if a source has more broken records than it may have."""
    if num_broken > source.max_broken:
        raise ValueError(
            f"source {name} has more than {source.max_broken} records that cannot be read, the first at {first} "
            f"(config.sources.{name}.max_broken)"
        )


def check_all_broken(config: settings.Prepare, units: Sequence[sources.Unit], counts: Sequence[Counts]) -> None:
    """Raises: ValueError if the units of a source have, together, more broken records than it may have."""
    for name, source in config.sources.items():
        broken = [line for unit, mine in zip(units, counts, strict=True) if unit.source == name for line in mine.broken]
        check_broken(name, source, len(broken), broken[0] if broken else "")

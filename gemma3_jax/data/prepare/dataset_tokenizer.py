"""The tokenizer of a data set: the one that the config names, or one trained on a sample of the filtered sources."""

import collections
from collections.abc import Iterator

from gemma3_jax import console
from gemma3_jax.data import dataset
from gemma3_jax.data.prepare import documents, filters, jobs, output, records, sources
from gemma3_jax.tokenizer import training, vocabulary


def load_or_train(job: jobs.Job, out: output.Output, bar: console.Bar) -> vocabulary.Tokenizer:
    """Returns the tokenizer of a data set, and writes it to the data set if it is not there yet.

    Raises: ValueError if it cannot be trained.
    """
    if out.exists(dataset.TOKENIZER):  # of a run that was stopped
        return vocabulary.Tokenizer(out.read(dataset.TOKENIZER))
    if job.named_tokenizer:
        model = job.named_tokenizer.model
    else:
        size = job.config.tokenizer.size
        with bar("read for the tokenizer", sum(unit.size for unit in job.units)) as progress:
            texts = list(_sample(job, progress))
        if not texts:
            raise ValueError(
                f"none of the records of {', '.join(job.config.sources)} is left to train a tokenizer on: all are "
                "broken, dropped by a filter or empty; look at the filters and the fields in config, or name a "
                "tokenizer with config.tokenizer.path"
            )
        with bar(f"train a tokenizer of {size} pieces", None):
            try:
                model = training.train(texts, size)
            except ValueError as error:
                raise ValueError(f"{error}; set config.tokenizer.size, or name a tokenizer with --tokenizer") from error
    out.write(dataset.TOKENIZER, model)
    return vocabulary.Tokenizer(model)


def _sample(job: jobs.Job, progress) -> Iterator[str]:
    """Yields texts of about `tokenizer.max_characters` in all: a fraction of every source, chosen by record id."""
    built = filters.build(job.config, job.inputs)
    fraction = min(1.0, job.config.tokenizer.max_characters / max(1, sum(unit.size for unit in job.units)))
    left: collections.Counter = collections.Counter()
    for unit in job.units:
        left[unit.source] += fraction * unit.size
    broken: dict[str, list] = collections.defaultdict(list)
    for unit in job.units:
        for record in sources.read(unit, job.config.sources[unit.source]):
            if left[unit.source] <= 0:
                break
            if isinstance(record, sources.BrokenRecord):
                broken[unit.source].append((record.record_id, record.problem))
                documents.check_broken(job.config, job.units, unit.source, broken[unit.source])
            elif records.uniform(job.config.seed, "tokenizer", record.record_id.hash_key()) < fraction:
                if (text := _filtered_text(built, record)) is not None:
                    left[unit.source] -= len(text)
                    yield text
        progress.update(unit.size)


def _filtered_text(built: list[records.Filter], record: records.Record) -> str | None:
    try:
        outcome = filters.apply(built, record)
    except ValueError:  # such as a record without a score: the first pass counts it as broken
        return None
    return outcome.text if isinstance(outcome, records.Record) else None

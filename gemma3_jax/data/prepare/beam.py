"""Raw text -> a data set, as an Apache Beam pipeline: on Dataflow, Flink or Spark, or on the DirectRunner.

Every decision is made by functions that `pipeline.py` calls too, so the data set is the same to the byte. What is done
again after a stop is up to the runner.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from gemma3_jax import console
from gemma3_jax.data import record_ids, shards
from gemma3_jax.data.prepare import (
    assembly,
    dataset_tokenizer,
    documents,
    duplicates,
    filters,
    jobs,
    manifest,
    output,
    settings,
    sources,
)
from gemma3_jax.tokenizer import vocabulary

KeyAndValue = tuple[Any, Any]  # what Beam groups and combines; a TaggedOutput holds one


def run(
    config: settings.PrepareConfig,
    url: str,
    runner: str,
    options: Sequence[str],
    *,
    bar: console.Bar = console.silent_bar,
) -> tuple[dict, dict]:
    """Writes the data set; returns its manifest and its report. Workers must be able to reach the sources and `url`.

    Raises: ValueError if the config is wrong, the sources cannot be read, or the output exists.
    """
    logging.getLogger().setLevel(logging.ERROR)  # Beam logs every worker it starts
    pipeline = _pipeline(runner, options)
    job, out = jobs.open_job(config), output.Output(url)
    with out.resume(job.made_of):
        if completed := out.completed():  # stopped between its last two steps
            return completed
        tokenizer = dataset_tokenizer.load_or_train(job, out, bar)
        out.write(output.ERROR, b"")
        with bar(f"{runner} on {len(job.units)} units of {len(config.sources)} sources", None), pipeline:
            _build(pipeline, job, out, tokenizer)
        if message := out.read(output.ERROR).decode():
            raise ValueError(message)
        if completed := out.completed():
            return completed
        raise ValueError(f"{runner} ended before the data set was whole; see its log, then run the same command")


def _pipeline(runner: str, options: Sequence[str]) -> beam.Pipeline:
    try:
        parsed = PipelineOptions(list(options))
        parsed.get_all_options()  # options are parsed only when they are read
        return beam.Pipeline(runner=runner, options=parsed)
    except (ValueError, ImportError) as error:
        raise ValueError(f"--runner={runner} cannot be had: {error}") from error
    except SystemExit as error:  # argparse, after it has printed what is wrong
        raise ValueError(f"--runner_options={' '.join(options)} is not what {runner} takes") from error


def _build(pipeline, job: jobs.Job, out: output.Output, tokenizer: vocabulary.Tokenizer) -> None:
    """Builds the pipeline, from units to the manifest."""
    config = job.config
    read = (
        pipeline
        | "units" >> beam.Create(job.units)
        | beam.Reshuffle()
        | "filter and tokenize"
        >> beam.ParDo(_Candidates(config, job.inputs, tokenizer.model)).with_outputs("counts", main="candidates")
    )
    verdicts = _find_duplicates(read.candidates, config.duplicates)
    joined = (
        {"candidate": read.candidates, "verdict": verdicts} | beam.CoGroupByKey() | beam.ParDo(_Judge()).with_outputs()
    )
    num_tokens = (
        joined.unique | "tokens" >> beam.MapTuple(lambda part, document: (part, document[1])) | beam.CombinePerKey(sum)
    )
    written = (
        (
            joined.unique | beam.Map(_to_shard, config, beam.pvalue.AsDict(num_tokens)),
            num_tokens | "every shard" >> beam.FlatMapTuple(lambda part, count: _all_shards(config, part, count)),
        )
        | "with every shard" >> beam.Flatten()
        | "shards" >> beam.GroupByKey()
        | "write" >> beam.Map(_write_shard, config, out.url, beam.pvalue.AsDict(num_tokens))
    )
    counted = joined.duplicates | "one" >> beam.MapTuple(lambda kind, _: (kind, 1)) | "count" >> beam.CombinePerKey(sum)
    examples = (
        joined.duplicates
        | "record ids" >> beam.MapTuple(lambda kind, pair: (kind[2], pair))
        | beam.combiners.Top.SmallestPerKey(config.examples_per_reason)
    )
    named = {"counts": read.counts, "duplicates": counted, "examples": examples, "written": written}
    everything = [
        values | f"as {name}" >> beam.Map(lambda value, name=name: (None, (name, value)))
        for name, values in named.items()
    ]
    gathered = everything | beam.Flatten() | "all" >> beam.GroupByKey()
    gathered | beam.Map(_finish, job, out, tokenizer.digest)


class _Candidates(beam.DoFn):
    """A unit -> its candidates, keyed by record id, and its counts."""

    def __init__(self, config: settings.PrepareConfig, inputs: filters.Inputs, model: bytes):
        self._config, self._inputs, self._model = config, inputs, model

    def setup(self) -> None:
        self._worker = documents.Worker(self._config, self._inputs, vocabulary.Tokenizer(self._model))

    def process(self, unit: sources.Unit) -> Iterator[KeyAndValue]:
        counts = documents.UnitCounts()
        try:
            for candidate in self._worker.candidates(unit, counts):
                document = candidate.document
                signature = None if candidate.signature is None else candidate.signature.tobytes()
                record_id = dataclasses.astuple(document.record_id)
                yield record_id, (document.to_bytes(), candidate.text_digest, signature)
        except ValueError as error:  # reported in one line at the end, not in the log of a worker
            yield beam.pvalue.TaggedOutput("counts", (unit.number, str(error)))
        else:
            yield beam.pvalue.TaggedOutput("counts", (unit.number, counts))


def _find_duplicates(candidates, config: settings.DuplicatesConfig):
    """Returns (record id, (reason, earlier record id)) for each document that repeats an earlier one."""
    if not (config.exact or config.near):
        return candidates.pipeline | beam.Create([])
    copies = (
        candidates
        | "digests" >> beam.MapTuple(lambda record_id, candidate: (candidate[1], (record_id, candidate[2])))
        | "same digest" >> beam.GroupByKey()
        | beam.ParDo(_Copies()).with_outputs("first", main="later")
    )
    if not config.near:
        return copies.later
    near = (
        copies.first
        | "bands" >> beam.FlatMapTuple(_bands)
        | "same band" >> beam.GroupByKey()
        | beam.FlatMap(_same_band, config.min_similarity)
    )
    return (copies.later, near) | "verdicts" >> beam.Flatten() | "first verdict" >> beam.CombinePerKey(min)


class _Copies(beam.DoFn):
    """Documents of one digest -> the first of them, which stays a candidate, and a verdict on the others."""

    def process(self, group) -> Iterator[KeyAndValue]:
        _, members = group
        (record_id, signature), *later = sorted(members, key=lambda member: member[0])
        yield beam.pvalue.TaggedOutput("first", (record_id, signature))
        for other, _ in later:
            yield other, ("duplicate", record_id)


def _bands(record_id, signature: bytes | None) -> Iterator[KeyAndValue]:
    if signature is not None:
        for band in duplicates.bands(np.frombuffer(signature, np.uint64)):
            yield band, (record_id, signature)


def _same_band(group, min_similarity: float) -> Iterator[KeyAndValue]:
    _, members = group
    members = sorted(members)
    if len(members) > 1:
        signatures = np.stack([np.frombuffer(signature, np.uint64) for _, signature in members])
        for later, earlier in duplicates.within_band(signatures, min_similarity):
            yield members[later][0], ("near duplicate", members[earlier][0])


class _Judge(beam.DoFn):
    """A document with its verdict, if any -> ("unique", its part) or ("duplicates", the reason)."""

    def process(self, element) -> Iterator[KeyAndValue]:
        record_id, joined = element
        [(content, _, _)] = joined["candidate"]
        document = shards.TokenizedDocument.from_bytes(content)
        if verdicts := list(joined["verdict"]):
            [(reason, earlier)] = verdicts
            kind = (document.bucket, document.language, reason)
            yield beam.pvalue.TaggedOutput("duplicates", (kind, (record_id, earlier)))
        else:
            part = f"{document.bucket}/{document.language}"
            yield beam.pvalue.TaggedOutput("unique", (part, (content, len(document.tokens))))


def _to_shard(unique, config: settings.PrepareConfig, num_tokens: dict):
    part, (content, _) = unique
    order = assembly.order(config.seed, shards.TokenizedDocument.from_bytes(content).record_id)
    return (part, assembly.shard_of(order, assembly.num_shards(config, num_tokens[part]))), content


def _all_shards(config: settings.PrepareConfig, part: str, num_tokens: int) -> list:
    """A mark for each shard of a part, so that a shard without documents is written too."""
    return [((part, shard), b"") for shard in range(assembly.num_shards(config, num_tokens))]


def _write_shard(group, config: settings.PrepareConfig, url: str, num_tokens: dict) -> dict:
    (part, shard), contents = group
    of_shard = [shards.TokenizedDocument.from_bytes(content) for content in contents if content]
    return assembly.write_shard(url, config, part, (shard, assembly.num_shards(config, num_tokens[part])), of_shard)


def _finish(group, job: jobs.Job, out: output.Output, tokenizer_digest: str) -> None:
    """Writes the manifest, or the error. A runner may call it again after a failure elsewhere."""
    named: dict[str, list] = {"counts": [], "duplicates": [], "examples": [], "written": []}
    _, everything = group
    for name, value in everything:
        named[name].append(value)
    counts = [counted for _, counted in sorted(named["counts"], key=lambda numbered: numbered[0])]
    try:
        for counted in counts:
            if isinstance(counted, str):
                raise ValueError(counted)
        documents.check_all_broken(job.config, job.units, counts)
        removed = manifest.RemovedDuplicates()
        removed.counts.update(dict(named["duplicates"]))
        for reason, pairs in named["examples"]:
            removed.examples += [
                (reason, record_ids.RecordId(*later), record_ids.RecordId(*earlier)) for later, earlier in pairs
            ]
        written = named["written"]
        results = manifest.Results(job.config, job.inputs, tokenizer_digest, job.units, counts, removed, written)
        summary = manifest.summarize(results)
    except ValueError as error:
        out.write(output.ERROR, str(error).encode())
    else:
        out.complete(*summary)

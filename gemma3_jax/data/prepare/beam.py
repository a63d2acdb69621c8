"""Raw text -> a data set, as an Apache Beam pipeline: on Dataflow, Flink or Spark, or Beam's own runner.

Every decision is made by the functions that `prepare.py` calls too, so the data set is the same to the byte. What is
done again after a stop is the runner's affair.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from gemma3_jax.data import records, settings, shards
from gemma3_jax.data.prepare import assembly, documents, duplicates, filters, manifest, output, pipeline, sources
from gemma3_jax.tokenizer import vocabulary


def run(
    config: settings.Prepare, url: str, runner: str, options: Sequence[str], *, bar: pipeline.Bar = pipeline.no_bar
) -> tuple[dict, dict]:
    """Writes the data set; returns its manifest and its report. Workers must be able to reach the sources and `url`.

    Raises: ValueError for settings that cannot be met, sources that cannot be read, or an output that exists.
    """
    logging.getLogger().setLevel(logging.ERROR)  # Beam tells of every worker it starts
    pipeline = _pipeline(runner, options)
    job, out = pipeline.look(config), output.Output(url)
    with out.begun(job.made_of):
        if done := out.completed():  # stopped between its last two steps
            return done
        tokenizer = pipeline.find_tokenizer(job, out, bar)
        out.write(output.ERROR, b"")
        with bar(f"{runner} on {len(job.units)} units of {len(config.sources)} sources", None), pipeline:
            _build(pipeline, job, out, tokenizer)
        if message := out.read(output.ERROR).decode():
            raise ValueError(message)
        if done := out.completed():
            return done
        raise ValueError(f"{runner} ended before the data set was whole; see its log, then run the same command")


def _pipeline(runner: str, options: Sequence[str]) -> beam.Pipeline:
    try:
        parsed = PipelineOptions(list(options))
        parsed.get_all_options()  # each option is parsed when somebody asks for it
        return beam.Pipeline(runner=runner, options=parsed)
    except (ValueError, ImportError) as error:
        raise ValueError(f"--runner={runner} cannot be had: {error}") from error
    except SystemExit as error:  # argparse, after it has said what is wrong
        raise ValueError(f"--runner_options={' '.join(options)} is not what {runner} takes") from error


def _build(pipeline, job: pipeline.Job, out: output.Output, tokenizer: vocabulary.Tokenizer) -> None:
    """The pipeline, from units to the manifest."""
    config = job.config
    read = (
        pipeline
        | "units" >> beam.Create(job.units)
        | beam.Reshuffle()
        | "filter and tokenise"
        >> beam.ParDo(_Candidates(config, job.inputs, tokenizer.model)).with_outputs("counts", main="candidates")
    )
    verdicts = _find_duplicates(read.candidates, config.duplicates)
    joined = (
        {"candidate": read.candidates, "verdict": verdicts} | beam.CoGroupByKey() | beam.ParDo(_Judge()).with_outputs()
    )
    num_tokens = joined.kept | "tokens" >> beam.MapTuple(lambda part, found: (part, found[1])) | beam.CombinePerKey(sum)
    written = (
        (
            joined.kept | beam.Map(_to_shard, config, beam.pvalue.AsDict(num_tokens)),
            num_tokens | "every shard" >> beam.FlatMapTuple(lambda part, count: _all_shards(config, part, count)),
        )
        | "with every shard" >> beam.Flatten()
        | "shards" >> beam.GroupByKey()
        | "write" >> beam.Map(_write_shard, config, out.url, beam.pvalue.AsDict(num_tokens))
    )
    counted = joined.duplicates | "one" >> beam.MapTuple(lambda kind, _: (kind, 1)) | "count" >> beam.CombinePerKey(sum)
    examples = (
        joined.duplicates
        | "places" >> beam.MapTuple(lambda kind, places: (kind[2], places))
        | beam.combiners.Top.SmallestPerKey(config.examples_per_reason)
    )
    named = {"counts": read.counts, "duplicates": counted, "examples": examples, "written": written}
    everything = [
        found | f"as {name}" >> beam.Map(lambda value, name=name: (None, (name, value)))
        for name, found in named.items()
    ]
    gathered = everything | beam.Flatten() | "all" >> beam.GroupByKey()
    gathered | beam.Map(_finish, job, out, tokenizer.digest)


class _Candidates(beam.DoFn):
    """A unit -> its candidates, keyed by place, and its counts."""

    def __init__(self, config: settings.Prepare, inputs: filters.Inputs, model: bytes):
        self._config, self._inputs, self._model = config, inputs, model

    def setup(self) -> None:
        self._worker = documents.Worker(self._config, self._inputs, vocabulary.Tokenizer(self._model))

    def process(self, unit: sources.Unit) -> Iterator:
        counts = documents.Counts()
        try:
            for candidate in self._worker.candidates(unit, counts):
                document = candidate.document
                signature = None if candidate.signature is None else candidate.signature.tobytes()
                place = dataclasses.astuple(document.place)
                yield place, (document.to_bytes(), candidate.text_digest, signature)
        except ValueError as error:  # told in one line at the end, not in a worker's log
            yield beam.pvalue.TaggedOutput("counts", (unit.number, str(error)))
        else:
            yield beam.pvalue.TaggedOutput("counts", (unit.number, counts))


def _find_duplicates(candidates, config: settings.Duplicates):
    """(place, (reason, earlier place)), one for each document that repeats an earlier one."""
    if not (config.exact or config.near):
        return candidates.pipeline | beam.Create([])
    copies = (
        candidates
        | "digests" >> beam.MapTuple(lambda place, candidate: (candidate[1], (place, candidate[2])))
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
    """Documents of one digest -> the first of them, which goes on, and a verdict on the others."""

    def process(self, group) -> Iterator:
        _, members = group
        (place, signature), *later = sorted(members, key=lambda member: member[0])
        yield beam.pvalue.TaggedOutput("first", (place, signature))
        for other, _ in later:
            yield other, ("duplicate", place)


def _bands(place, signature: bytes | None) -> Iterator:
    if signature is not None:
        for band in duplicates.bands(np.frombuffer(signature, np.uint64)):
            yield band, (place, signature)


def _same_band(group, min_similarity: float) -> Iterator:
    _, members = group
    members = sorted(members)
    if len(members) > 1:
        signatures = np.stack([np.frombuffer(signature, np.uint64) for _, signature in members])
        for later, earlier in duplicates.within_band(signatures, min_similarity):
            yield members[later][0], ("near duplicate", members[earlier][0])


class _Judge(beam.DoFn):
    """A document and what was found against it -> ("kept", its part) or ("duplicates", why)."""

    def process(self, element) -> Iterator:
        place, found = element
        [(content, _, _)] = found["candidate"]
        document = shards.Document.from_bytes(content)
        if verdicts := list(found["verdict"]):
            [(reason, earlier)] = verdicts
            kind = (document.bucket, document.language, reason)
            yield beam.pvalue.TaggedOutput("duplicates", (kind, (place, earlier)))
        else:
            part = f"{document.bucket}/{document.language}"
            yield beam.pvalue.TaggedOutput("kept", (part, (content, len(document.tokens))))


def _to_shard(kept, config: settings.Prepare, num_tokens: dict):
    part, (content, _) = kept
    order = assembly.order(config.seed, shards.Document.from_bytes(content).place)
    return (part, assembly.shard_of(order, assembly.num_shards(config, num_tokens[part]))), content


def _all_shards(config: settings.Prepare, part: str, num_tokens: int) -> list:
    """A mark for each shard of a part: a shard that no document falls into is written all the same."""
    return [((part, shard), b"") for shard in range(assembly.num_shards(config, num_tokens))]


def _write_shard(group, config: settings.Prepare, url: str, num_tokens: dict) -> dict:
    (part, shard), contents = group
    found = [shards.Document.from_bytes(content) for content in contents if content]
    return assembly.write_shard(url, config, part, (shard, assembly.num_shards(config, num_tokens[part])), found)


def _finish(group, job: pipeline.Job, out: output.Output, tokenizer_digest: str) -> None:
    """Puts the manifest together, or notes what went wrong; a runner may call it again after a failure elsewhere."""
    named: dict[str, list] = {"counts": [], "duplicates": [], "examples": [], "written": []}
    _, everything = group
    for name, value in everything:
        named[name].append(value)
    counts = [found for _, found in sorted(named["counts"], key=lambda numbered: numbered[0])]
    try:
        for found in counts:
            if isinstance(found, str):
                raise ValueError(found)
        documents.check_all_broken(job.config, job.units, counts)
        repeated = manifest.Duplicates()
        repeated.counts.update(dict(named["duplicates"]))
        for reason, places in named["examples"]:
            repeated.examples += [(reason, records.Place(*it), records.Place(*like)) for it, like in places]
        work = manifest.Work(job.config, job.inputs, tokenizer_digest, job.units, counts, repeated, named["written"])
        made = manifest.summarise(work)
    except ValueError as error:
        out.write(output.ERROR, str(error).encode())
    else:
        out.complete(*made)

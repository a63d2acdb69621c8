"""Raw text -> a data set, as an Apache Beam pipeline: on Dataflow, Flink or Spark, or Beam's own runner.

Every decision is made by the functions that `prepare.py` calls too, so the data set is the same to the byte. What is
done again after a stop is the runner's affair.
"""

import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import fsspec
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from gemma3_jax.data import assembly, dataset, documents, duplicates, prepare, records, settings, shards, sources
from gemma3_jax.tokenizer import vocabulary

ERROR = f"{dataset.WORK}/error"


def run(
    config: settings.Prepare, url: str, runner: str, options: Sequence[str], *, bar: prepare.Bar
) -> tuple[dict, dict]:
    """Writes the data set; returns its manifest and its report. Workers must be able to reach the sources and `url`.

    Raises: ValueError for settings that cannot be met, sources that cannot be read, or an output that exists.
    """
    logging.getLogger().setLevel(logging.ERROR)  # Beam tells of every worker it starts
    output = dataset.Output(url)
    units, evaluation = prepare.look(config)
    output.begin(config, units)
    tokenizer = prepare.find_tokenizer(config, output, units, evaluation, bar)
    try:
        pipeline = beam.Pipeline(runner=runner, options=PipelineOptions(list(options)))
    except (ValueError, ImportError) as error:
        raise ValueError(f"--runner={runner} cannot be had: {error}") from error
    with bar(f"{runner} on {len(units)} units of {len(config.sources)} sources", None), pipeline:
        _build(pipeline, config, output, tokenizer, units, evaluation)
    files, path = fsspec.core.url_to_fs(url)
    if files.exists(f"{path}/{ERROR}"):
        message = files.cat_file(f"{path}/{ERROR}").decode()
        files.rm_file(f"{path}/{ERROR}")
        raise ValueError(message)
    return tuple(json.loads(files.cat_file(f"{path}/{name}")) for name in (dataset.MANIFEST, dataset.REPORT))


def _build(pipeline, config, output: dataset.Output, tokenizer: vocabulary.Tokenizer, units, evaluation) -> None:
    """The pipeline, from units to the manifest."""
    read = (
        pipeline
        | "units" >> beam.Create(units)
        | beam.Reshuffle()
        | "filter and tokenise"
        >> beam.ParDo(_Candidates(config, tokenizer.model, evaluation)).with_outputs("counts", main="candidates")
    )
    verdicts = _find_duplicates(read.candidates, config)
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
        | "write" >> beam.Map(_write_shard, config, output.url, beam.pvalue.AsDict(num_tokens))
    )
    counted = joined.duplicates | "one" >> beam.MapTuple(lambda kind, _: (kind, 1)) | "count" >> beam.CombinePerKey(sum)
    examples = (
        joined.duplicates
        | "places" >> beam.MapTuple(lambda kind, places: (kind[2], (kind, places)))
        | beam.combiners.Top.SmallestPerKey(config.examples_per_reason, key=lambda found: found[1])
    )
    named = {"counts": read.counts, "duplicates": counted, "examples": examples, "written": written}
    everything = [
        found | f"as {name}" >> beam.Map(lambda value, name=name: (None, (name, value)))
        for name, found in named.items()
    ]
    (
        everything
        | beam.Flatten()
        | "all" >> beam.GroupByKey()
        | beam.Map(_finish, config, output, tokenizer.digest, units)
    )


class _Candidates(beam.DoFn):
    """A unit -> its candidates, keyed by place, and its counts."""

    def __init__(self, config: settings.Prepare, model: bytes, evaluation: list):
        self._arguments = (config, model, evaluation)

    def setup(self) -> None:
        config, model, evaluation = self._arguments
        self._worker = documents.Worker(config, vocabulary.Tokenizer(model), evaluation)

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


def _find_duplicates(candidates, config: settings.Prepare):
    """(place, (reason, earlier place)), one for each document that repeats an earlier one."""
    none = candidates.pipeline | beam.Create([])
    exact = near = none
    if config.duplicates.exact:
        exact = (
            candidates
            | "digests" >> beam.MapTuple(lambda place, candidate: (candidate[1], place))
            | "same digest" >> beam.GroupByKey()
            | beam.FlatMapTuple(_same_digest)
        )
    if config.duplicates.near:
        near = (
            candidates
            | "bands" >> beam.FlatMapTuple(_bands)
            | "same band" >> beam.GroupByKey()
            | beam.FlatMap(_same_band, config.duplicates.min_similarity)
        )
    return (exact, near) | "verdicts" >> beam.Flatten() | "first verdict" >> beam.CombinePerKey(min)


def _same_digest(digest: bytes, places: Iterable) -> Iterator:
    first, *later = sorted(places)
    for place in later:
        yield place, ("duplicate", first)


def _bands(place, candidate) -> Iterator:
    _, _, signature = candidate
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


def _finish(group, config, output: dataset.Output, tokenizer_digest: str, units) -> None:
    """Puts the manifest together, or notes what went wrong."""
    named: dict[str, list] = {"counts": [], "duplicates": [], "examples": [], "written": []}
    _, everything = group
    for name, value in everything:
        named[name].append(value)
    counts = [found for _, found in sorted(named["counts"], key=lambda numbered: numbered[0])]
    duplicate = assembly.Duplicate()
    try:
        for found in counts:
            if isinstance(found, str):
                raise ValueError(found)
        documents.check_all_broken(config, units, counts)
        for _, found in sorted(named["examples"]):
            for (bucket, language, reason), (later, earlier) in found:
                places = {"later": records.Place(*later), "earlier": records.Place(*earlier)}
                duplicate.add(config, units, (bucket, language), reason, **places)
        duplicate.counts.clear()
        duplicate.counts.update(dict(named["duplicates"]))
        written = named["written"]
        manifest, report = assembly.summarise(config, tokenizer_digest, units, counts, duplicate, written)
    except ValueError as error:
        output.write_bytes(ERROR, str(error).encode())
    else:
        output.finish(manifest, report)

"""Raw text -> a data set, in the processes of one machine. It may be killed at any moment, and resumes when run again.

There are two passes. The first writes the candidates of each unit of the sources to a file under `.work`, beside an
index by which duplicates are detected; the second assembles each shard from the candidates that stay. A unit or a shard
is done once its last file exists, so nothing is done twice but the work in progress.
"""

import collections
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Sequence

import msgpack
import numpy as np

from gemma3_jax import console
from gemma3_jax.data import dataset, pool, record_ids, shards
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
from gemma3_jax.durable import atomic, json_file
from gemma3_jax.tokenizer import vocabulary


def run(
    config: settings.PrepareConfig, url: str, *, num_processes: int = 0, bar: console.Bar = console.silent_bar
) -> tuple[dict, dict]:
    """Writes the data set; returns its manifest and its report. They do not depend on the number of processes.

    Raises: ValueError if the config is wrong, the sources cannot be read, or the output exists.
    """
    out = output.Output(url)
    directory = out.local()
    job = jobs.open_job(config)
    with out.resume(job.made_of):
        if completed := out.completed():  # killed between its last two steps
            return completed
        tokenizer = dataset_tokenizer.load_or_train(job, out, bar)
        arguments = (config, job.inputs, tokenizer.model, directory)
        with pool.start(num_processes, _initialize, *arguments) as workers:
            _first_pass(job, directory, workers, bar)
            unique, counts, removed = _remove_duplicates(job, directory)
            tasks = _shard_tasks(config, unique)
            written = []
            with bar("pack and write", len(unique), unit="documents") as progress:
                for task, summary in workers.each(_write_shard, tasks):
                    progress.update(len(task.documents))
                    written.append(summary)
        results = manifest.Results(config, job.inputs, tokenizer.digest, job.units, counts, removed, written)
        out.complete(*manifest.summarize(results))
        return out.completed()


def _first_pass(job: jobs.Job, directory: pathlib.Path, workers: pool.Pool, bar: console.Bar) -> None:
    todo = [unit for unit in job.units if not _index_path(directory, unit.number).exists()]
    num_documents, started = 0, time.monotonic()
    broken: dict[str, list] = collections.defaultdict(list)
    with bar("filter and tokenize", sum(unit.size for unit in todo)) as progress:
        for unit, (count, broken_in_unit) in workers.each(_make_candidates, todo):
            broken[unit.source] += broken_in_unit
            documents.check_broken(job.config, job.units, unit.source, broken[unit.source])
            num_documents += count
            progress.update(unit.size)
            rate = num_documents / max(time.monotonic() - started, 1e-9)
            progress.set_postfix_str(f"{rate:.0f} documents/s", refresh=False)  # drawn with the next update


# --- in the worker processes ---

_worker: documents.Worker
_directory: pathlib.Path


def _initialize(config: settings.PrepareConfig, inputs: filters.Inputs, model: bytes, directory: pathlib.Path) -> None:
    global _worker, _directory
    _worker = documents.Worker(config, inputs, vocabulary.Tokenizer(model))
    _directory = directory


def _candidates_path(directory: pathlib.Path, unit: int) -> pathlib.Path:
    return directory / dataset.WORK / f"unit-{unit:06d}.array_record"


def _index_path(directory: pathlib.Path, unit: int) -> pathlib.Path:
    return directory / dataset.WORK / f"unit-{unit:06d}.index"


def _make_candidates(unit: sources.Unit) -> tuple[int, list]:
    """Writes the candidates of a unit, then their index; returns their number, and the broken records."""
    counts = documents.UnitCounts()
    index = []

    def contents() -> Iterator[bytes]:
        for candidate in _worker.candidates(unit, counts):
            document = candidate.document
            index.append(
                [
                    document.bucket,
                    document.language,
                    dataclasses.astuple(document.record_id),
                    len(document.tokens),
                    candidate.text_digest,
                    None if candidate.signature is None else candidate.signature.tobytes(),
                ]
            )
            yield document.to_bytes()

    shards.write(str(_candidates_path(_directory, unit.number)), contents(), compress=False)  # read again at once
    fields = dataclasses.asdict(counts) | {
        "dropped": [[*key, count] for key, count in counts.dropped.items()],
        "broken": [[*dataclasses.astuple(record_id), problem] for record_id, problem in counts.broken],
        "examples": [
            [reason, *dataclasses.astuple(record_id), detail] for reason, record_id, detail in counts.examples
        ],
    }
    # The index exists only if the candidates do.
    atomic.replace(_index_path(_directory, unit.number), msgpack.packb({"counts": fields, "candidates": index}))
    return len(index), counts.broken


def _read_index(path: pathlib.Path) -> tuple[documents.UnitCounts, list]:
    """Returns the counts of a unit, and its candidates. Raises: ValueError if the index is damaged."""
    try:
        content = msgpack.unpackb(path.read_bytes())
        candidates = content["candidates"]
        if not all(len(candidate) == 6 and len(candidate[2]) == 3 for candidate in candidates):
            raise ValueError("a candidate has fields of another number")
        return _read_counts(content["counts"]), candidates
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise ValueError(f"{path} is damaged; remove it, and run the same command to read that part again") from error


def _read_counts(fields: dict) -> documents.UnitCounts:
    return documents.UnitCounts(
        **fields
        | {
            "dropped": collections.Counter({tuple(key): count for *key, count in fields["dropped"]}),
            "broken": [(record_ids.RecordId(*numbers), problem) for *numbers, problem in fields["broken"]],
            "examples": [
                (reason, record_ids.RecordId(*numbers), detail) for reason, *numbers, detail in fields["examples"]
            ],
        }
    )


# --- between the passes ---


@dataclasses.dataclass(frozen=True, slots=True)
class _UniqueDocument:
    """A candidate that is no duplicate: its position under `.work`, and what its shard follows from."""

    unit: int
    index: int
    part: str
    order: int
    num_tokens: int


def _remove_duplicates(
    job: jobs.Job, directory: pathlib.Path
) -> tuple[list[_UniqueDocument], list[documents.UnitCounts], manifest.RemovedDuplicates]:
    """Returns the candidates that stay, the counts of every unit, and the duplicates."""
    counts, candidates = [], []
    for unit in job.units:
        counts_of_unit, candidates_of_unit = _read_index(_index_path(directory, unit.number))
        counts.append(counts_of_unit)
        candidates += [(unit.number, index, *candidate) for index, candidate in enumerate(candidates_of_unit)]
    documents.check_all_broken(job.config, job.units, counts)
    earlier_of = _find_duplicates(job.config.duplicates, candidates)
    removed = manifest.RemovedDuplicates()
    unique = []
    for number, (unit, index, bucket, language, id_numbers, num_tokens, _, _) in enumerate(candidates):
        record_id = record_ids.RecordId(*id_numbers)
        if number not in earlier_of:
            order = assembly.order(job.config.seed, record_id)
            unique.append(_UniqueDocument(unit, index, f"{bucket}/{language}", order, num_tokens))
            continue
        reason, earlier = earlier_of[number]
        removed.counts[bucket, language, reason] += 1
        removed.examples.append((reason, record_id, record_ids.RecordId(*candidates[earlier][4])))
    return unique, counts, removed


def _find_duplicates(config: settings.DuplicatesConfig, candidates: list) -> dict[int, tuple[str, int]]:
    """Returns {candidate: (reason, the earlier one it repeats)}.

    Copies are detected by their digest, so that only the first of them is compared with similar documents.
    """
    earlier_of: dict[int, tuple[str, int]] = {}
    if config.exact or config.near:
        first: dict[bytes, int] = {}
        for number, (*_, text_digest, _) in enumerate(candidates):
            earlier = first.setdefault(text_digest, number)
            if earlier != number:
                earlier_of[number] = ("duplicate", earlier)
    if config.near:
        numbers = [n for n, (*_, signature) in enumerate(candidates) if signature is not None and n not in earlier_of]
        signatures = np.frombuffer(b"".join(candidates[number][-1] for number in numbers), np.uint64)
        signatures = signatures.reshape(len(numbers), duplicates.NUM_PERMUTATIONS)
        for later, earlier in duplicates.find(signatures, config.min_similarity).items():
            earlier_of[numbers[later]] = ("near duplicate", numbers[earlier])
    return earlier_of


# --- the second pass ---


_SUMMARY_FIELDS = {"part": str, "shard": int, **dict.fromkeys(manifest.QUANTITIES, int), "files": dict[str, dict]}


@dataclasses.dataclass(frozen=True)
class _ShardTask:
    """A shard to assemble."""

    part: str
    number: int
    num_shards: int
    documents: tuple[tuple[int, int], ...]  # (unit, index)


def _shard_tasks(config: settings.PrepareConfig, unique: Sequence[_UniqueDocument]) -> list[_ShardTask]:
    num_tokens: collections.Counter = collections.Counter()
    for document in unique:
        num_tokens[document.part] += document.num_tokens
    num_shards = {part: assembly.num_shards(config, count) for part, count in num_tokens.items()}
    in_shard: dict[tuple[str, int], list] = collections.defaultdict(list)
    for document in unique:
        shard = assembly.shard_of(document.order, num_shards[document.part])
        in_shard[document.part, shard].append((document.unit, document.index))
    return [
        _ShardTask(part, shard, num_shards[part], tuple(in_shard[part, shard]))
        for part in sorted(num_shards)
        for shard in range(num_shards[part])
    ]


def _write_shard(task: _ShardTask) -> dict:
    """Assembles a shard and returns its summary, which is also written: its files exist once the summary does."""
    path = _directory / dataset.WORK / f"{task.part.replace('/', '.')}-{task.number:05d}.json"
    if path.exists():
        try:
            summary = json_file.read_object(path)
            json_file.check(summary, _SUMMARY_FIELDS, str(path))
            return summary
        except ValueError as error:
            raise ValueError(f"{error}; remove it, and run the same command to write that shard again") from error
    by_unit: dict[int, list[int]] = collections.defaultdict(list)
    for unit, index in task.documents:
        by_unit[unit].append(index)
    contents = []
    for unit, indices in by_unit.items():
        path_of_unit = _candidates_path(_directory, unit)
        reader = shards.Reader(path_of_unit)
        try:
            contents += [shards.TokenizedDocument.from_bytes(reader[index]) for index in indices]
        except ValueError as error:
            raise ValueError(f"{path_of_unit} is damaged ({error}); remove --output and begin again") from error
        reader.close()
    shard = (task.number, task.num_shards)
    summary = assembly.write_shard(str(_directory), _worker.config, task.part, shard, contents)
    atomic.replace(path, json.dumps(summary).encode())
    return summary

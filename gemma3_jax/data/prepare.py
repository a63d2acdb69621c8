"""Raw text -> a data set, in the processes of one machine; killed at any moment and started again, it goes on.

Two passes. In the first each unit of the sources becomes a file of candidates under `.work`, beside an index of what
duplicates are found by; in the second each shard is put together from the candidates that are kept. A unit and a shard
count as done once their last file is there, so nothing is done twice but what was in hand.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import fsspec
import msgpack
import numpy as np

from gemma3_jax.data import assembly, dataset, documents, duplicates, records, settings, shards, sources
from gemma3_jax.tokenizer import training, vocabulary

# (label, total, unit=) -> a context of what has update(count) and set_postfix_str(text, refresh=)
Bar = Callable[..., contextlib.AbstractContextManager]


def run(config: settings.Prepare, url: str, *, num_processes: int, bar: Bar) -> tuple[dict, dict]:
    """Writes the data set; returns its manifest and its report. The number of processes changes nothing in it.

    Raises: ValueError for settings that cannot be met, sources that cannot be read, or an output that exists.
    """
    output = dataset.Output(url)
    directory = output.local()
    units, evaluation = look(config)
    output.begin(config, units)
    with output.lock():
        tokenizer = find_tokenizer(config, output, units, evaluation, bar)
        with _pool(num_processes, config, tokenizer, evaluation, directory) as submit:
            todo = [unit for unit in units if not _index_path(directory, unit.number).exists()]
            with bar("filter and tokenise", sum(unit.size for unit in todo)) as shown:
                _first_pass(config, units, todo, submit, shown)
            kept, counts, duplicate = _choose(config, units, directory)
            tasks = _tasks(config, kept)
            with bar("pack and write", sum(len(task.documents) for task in tasks), unit="documents") as shown:
                written = list(_each(submit, _write_shard, tasks, lambda task, _: shown.update(len(task.documents))))
        manifest, report = assembly.summarise(config, tokenizer.digest, units, counts, duplicate, written)
        output.finish(manifest, report)
    return manifest, report


def look(config: settings.Prepare) -> tuple[list[sources.Unit], list[tuple[str, str]]]:
    """The units of the sources and the items of the evaluation sets, after a check of the settings.

    Raises: ValueError as `settings.check`, `sources.units` and `filters.build` do.
    """
    settings.check(config)
    units = sources.units(config.sources)
    contamination = config.decontamination
    evaluation = [item for path in contamination.paths for item in sources.read_texts(path, contamination.fields)]
    documents.Worker(config, None, evaluation)  # word lists and scores are found here, or not at all
    if config.tokenizer.path:
        vocabulary.load(pathlib.Path(config.tokenizer.path))
    return units, evaluation


def find_tokenizer(
    config: settings.Prepare, output: dataset.Output, units: Sequence[sources.Unit], evaluation: list, bar: Bar
) -> vocabulary.Tokenizer:
    """The tokenizer of the data set: the one named, or one trained on a sample of the filtered sources.

    Raises: ValueError if it cannot be read or trained.
    """
    files, path = fsspec.core.url_to_fs(output.url)
    file = f"{path}/{dataset.TOKENIZER}"
    if files.exists(file):  # of a run that was stopped
        return vocabulary.Tokenizer(files.cat_file(file))
    if config.tokenizer.path:
        model = vocabulary.load(pathlib.Path(config.tokenizer.path)).model
    else:
        with bar("read for the tokenizer", sum(unit.size for unit in units)) as shown:
            texts = list(_sample(config, units, evaluation, shown))
        with bar(f"train a tokenizer of {config.tokenizer.size} pieces", None):
            model = training.train(texts, config.tokenizer.size)
    output.write_bytes(dataset.TOKENIZER, model)
    return vocabulary.Tokenizer(model)


def _sample(config: settings.Prepare, units, evaluation: list, shown) -> Iterator[str]:
    """Texts of about `tokenizer.max_characters` in all, spread over all sources by a hash of their place."""
    worker = documents.Worker(config, None, evaluation)
    share = min(1.0, config.tokenizer.max_characters / max(1, sum(unit.size for unit in units)))
    left = config.tokenizer.max_characters
    for unit in units:
        for record in worker.filtered(unit, documents.Counts()):
            if records.uniform(config.seed, "tokenizer", str(record.place)) < share and left > 0:
                left -= len(record.text)
                yield record.text
        shown.update(unit.size)
        if left <= 0:
            return


def _first_pass(config: settings.Prepare, units, todo, submit, shown) -> None:
    num_documents, started = 0, time.monotonic()
    num_broken: collections.Counter = collections.Counter()

    def done(unit: sources.Unit, outcome: tuple[int, int]) -> None:
        nonlocal num_documents
        num_documents += outcome[0]
        num_broken[unit.source] += outcome[1]
        shown.update(unit.size)
        rate = num_documents / max(time.monotonic() - started, 1e-9)
        shown.set_postfix_str(f"{rate:.0f} documents/s", refresh=False)  # with the bar's own next drawing

    for _ in _each(submit, _make_candidates, todo, done):
        pass


# --- the worker processes ---

_worker: documents.Worker
_directory: pathlib.Path


def _start_worker(config: settings.Prepare, model: bytes, evaluation: list, directory: pathlib.Path) -> None:
    global _worker, _directory
    _worker = documents.Worker(config, vocabulary.Tokenizer(model), evaluation)
    _directory = directory
    if parent := multiprocessing.parent_process():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C ...
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # ... and may be killed


@contextlib.contextmanager
def _pool(num_processes: int, config, tokenizer, evaluation, directory):
    """What runs a task: `submit(function, task)` -> a future. 0 processes: this one does it."""
    arguments = (config, tokenizer.model, evaluation, directory)
    if num_processes == 0:
        _start_worker(*arguments)
        yield _run_here
        return
    # Spawned: a fork would copy whatever threads the libraries have started.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(num_processes, context, _start_worker, arguments)
    try:
        yield pool.submit
    finally:
        pool.shutdown(cancel_futures=True)


def _run_here(function, task) -> concurrent.futures.Future:
    future: concurrent.futures.Future = concurrent.futures.Future()
    future.set_result(function(task))
    return future


def _each(submit, function, tasks: Sequence, done: Callable) -> Iterator:
    """Results in the order of the tasks, while `done(task, result)` hears of them; few tasks wait in the queue."""
    waiting: collections.deque = collections.deque()
    tasks = iter(tasks)
    while True:
        for task in tasks:
            waiting.append((task, submit(function, task)))
            if len(waiting) >= 2 * (os.cpu_count() or 1):
                break
        if not waiting:
            return
        task, future = waiting.popleft()
        result = future.result()
        done(task, result)
        yield result


def _candidates_path(directory: pathlib.Path, unit: int) -> pathlib.Path:
    return directory / dataset.WORK / f"unit-{unit:06d}.array_record"


def _index_path(directory: pathlib.Path, unit: int) -> pathlib.Path:
    return directory / dataset.WORK / f"unit-{unit:06d}.index"


def _make_candidates(unit: sources.Unit) -> tuple[int, int]:
    """Writes the candidates of a unit, then their index; returns how many there are, and how many were broken."""
    counts = documents.Counts()
    index = []

    def contents() -> Iterator[bytes]:
        for candidate in _worker.candidates(unit, counts):
            document = candidate.document
            index.append(
                [
                    document.bucket,
                    document.language,
                    dataclasses.astuple(document.place),
                    len(document.tokens),
                    candidate.text_digest,
                    None if candidate.signature is None else candidate.signature.tobytes(),
                ]
            )
            yield document.to_bytes()

    shards.write(str(_candidates_path(_directory, unit.number)), contents(), compress=False)  # read again at once
    fields = dataclasses.asdict(counts) | {"dropped": [[*key, count] for key, count in counts.dropped.items()]}
    path = _index_path(_directory, unit.number)
    partial = path.with_suffix(".writing")
    partial.write_bytes(msgpack.packb({"counts": fields, "candidates": index}))
    partial.rename(path)
    return len(index), len(counts.broken)


def _read_counts(fields: dict) -> documents.Counts:
    dropped = collections.Counter({tuple(key): count for *key, count in fields["dropped"]})
    examples = [tuple(example) for example in fields["examples"]]
    return documents.Counts(**(fields | {"dropped": dropped, "examples": examples}))


# --- between the passes ---


@dataclasses.dataclass(frozen=True)
class _Kept:
    """A candidate that is no duplicate: where it stands under `.work`, and what its shard follows from."""

    unit: int
    index: int
    part: str
    order: int
    num_tokens: int


def _choose(config: settings.Prepare, units, directory: pathlib.Path):
    """The candidates that are kept, the counts of every unit, and the duplicates."""
    counts, found = [], []
    for unit in units:
        content = msgpack.unpackb(_index_path(directory, unit.number).read_bytes())
        counts.append(_read_counts(content["counts"]))
        found += [(unit.number, index, *candidate) for index, candidate in enumerate(content["candidates"])]
    documents.check_all_broken(config, units, counts)
    duplicate = assembly.Duplicate()
    left_out = _find_duplicates(config, units, found, duplicate)
    kept = []
    for number, (unit, index, bucket, language, place, num_tokens, _, _) in enumerate(found):
        if number not in left_out:
            order = assembly.order(config.seed, records.Place(*place))
            kept.append(_Kept(unit, index, f"{bucket}/{language}", order, num_tokens))
    return kept, counts, duplicate


def _find_duplicates(config: settings.Prepare, units, found: list, duplicate: assembly.Duplicate) -> set[int]:
    """Numbers of the candidates that repeat an earlier one, counted by reason."""
    earlier_of: dict[int, tuple[str, int]] = {}
    if config.duplicates.exact:
        first: dict[bytes, int] = {}
        for number, (*_, text_digest, _) in enumerate(found):
            earlier = first.setdefault(text_digest, number)
            if earlier != number:
                earlier_of[number] = ("duplicate", earlier)
    if config.duplicates.near:
        numbers = [number for number, candidate in enumerate(found) if candidate[-1] is not None]
        if numbers:
            signatures = np.frombuffer(b"".join(found[number][-1] for number in numbers), np.uint64)
            signatures = signatures.reshape(len(numbers), -1)
            for later, earlier in duplicates.find(signatures, config.duplicates.min_similarity).items():
                earlier_of.setdefault(numbers[later], ("near duplicate", numbers[earlier]))
    for number, (reason, earlier) in sorted(earlier_of.items()):
        _, _, bucket, language, place, *_ = found[number]
        places = {"later": records.Place(*place), "earlier": records.Place(*found[earlier][4])}
        duplicate.add(config, units, (bucket, language), reason, **places)
    return set(earlier_of)


# --- the second pass ---


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A shard to put together."""

    config: settings.Prepare
    part: str
    number: int
    num_shards: int
    documents: tuple[tuple[int, int], ...]  # (unit, index)


def _tasks(config: settings.Prepare, kept: Sequence[_Kept]) -> list[_Shard]:
    num_tokens: collections.Counter = collections.Counter()
    for candidate in kept:
        num_tokens[candidate.part] += candidate.num_tokens
    in_shard: dict[tuple[str, int], list] = collections.defaultdict(list)
    for candidate in kept:
        num_shards = assembly.num_shards(config, num_tokens[candidate.part])
        shard = assembly.shard_of(candidate.order, num_shards)
        in_shard[candidate.part, shard].append((candidate.unit, candidate.index))
    return [
        _Shard(config, part, shard, assembly.num_shards(config, num_tokens[part]), tuple(in_shard[part, shard]))
        for part in sorted(num_tokens)
        for shard in range(assembly.num_shards(config, num_tokens[part]))
    ]


def _write_shard(task: _Shard) -> dict:
    """Puts a shard together; its files are there when the note of it is."""
    note = _directory / dataset.WORK / f"{task.part.replace('/', '.')}-{task.number:05d}.json"
    if note.exists():
        return json.loads(note.read_text())
    by_unit: dict[int, list[int]] = collections.defaultdict(list)
    for unit, index in task.documents:
        by_unit[unit].append(index)
    content = []
    for unit, indices in by_unit.items():
        reader = shards.Reader(_candidates_path(_directory, unit))
        content += [shards.Document.from_bytes(reader[index]) for index in indices]
        reader.close()
    shard = (task.number, task.num_shards)
    written = assembly.write_shard(str(_directory), task.config, task.part, shard, content)
    partial = note.with_suffix(".writing")
    partial.write_text(json.dumps(written))
    partial.rename(note)
    return written

"""Raw text -> a data set, in the processes of one machine; killed at any moment and started again, it goes on.

Two passes. In the first each unit of the sources becomes a file of candidates under `.work`, beside an index of what
duplicates are found by; in the second each shard is put together from the candidates that are kept. A unit and a shard
count as done once their last file is there, so nothing is done twice but what was in hand.
"""

import collections
import contextlib
import dataclasses
import importlib.metadata
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import msgpack
import numpy as np

from gemma3_jax.data import dataset, pool, records, settings, shards
from gemma3_jax.data.prepare import assembly, documents, duplicates, filters, manifest, output, sources
from gemma3_jax.tokenizer import training, vocabulary

# (label, total, unit=) -> a context of what has update(count) and set_postfix_str(text, refresh=)
Bar = Callable[..., contextlib.AbstractContextManager]


class NoBar:
    """Progress that nobody looks at."""

    def update(self, count: int) -> None: ...

    def set_postfix_str(self, text: str, refresh: bool) -> None: ...


@contextlib.contextmanager
def no_bar(label: str, total: int | None, unit: str = "B") -> Iterator[NoBar]:
    yield NoBar()


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be done, known before anything large is read."""

    config: settings.Prepare
    inputs: filters.Inputs
    units: Sequence[sources.Unit]
    named_tokenizer: vocabulary.Tokenizer | None  # None: one is trained

    @property
    def made_of(self) -> dict[str, str]:
        """What the records of the data set follow from, by name: who goes on with it must have the same.

        Of a score function only the name is known, of libraries nothing. The mixture, which rows are drawn by, is not
        among it, nor how many records may be broken: both can be mended on the way.
        """
        fields = {f"config.{name}": repr(value) for name, value in vars(self.config).items() if name != "mixture"}
        named = {name: dataclasses.replace(source, max_broken=0) for name, source in self.config.sources.items()}
        return {
            "version of gemma3_jax": importlib.metadata.version("gemma3_jax"),
            **fields,
            "config.sources": repr(named),
            "set of source files": dataset.digest([dataclasses.astuple(unit) for unit in self.units]),
            "evaluation set": dataset.digest(self.inputs.evaluation),
            "word list": dataset.digest(self.inputs.unsafe_words),
            "tokenizer": self.named_tokenizer.digest if self.named_tokenizer else "",
        }


def look(config: settings.Prepare) -> Job:
    """The job that settings ask for.

    Raises: ValueError for settings that cannot be met, and sources, lists or a tokenizer that are not there.
    """
    settings.check(config)
    if not config.tokenizer.path:
        training.check_size(config.tokenizer.size)
    inputs = filters.read_inputs(config)
    filters.build(config, inputs)
    tokenizer = None
    if config.tokenizer.path:
        tokenizer = vocabulary.load(pathlib.Path(config.tokenizer.path))
        tokenizer.document("")
        if any(source.turns_field for source in config.sources.values()):
            tokenizer.check_has_turns()
    return Job(config, inputs, sources.units(config.sources), tokenizer)


def run(config: settings.Prepare, url: str, *, num_processes: int = 0, bar: Bar = no_bar) -> tuple[dict, dict]:
    """Writes the data set; returns its manifest and its report. The number of processes changes nothing in it.

    Raises: ValueError for settings that cannot be met, sources that cannot be read, or an output that exists.
    """
    out = output.Output(url)
    directory = out.local()
    job = look(config)
    with out.begun(job.made_of):
        if done := out.completed():  # killed between its last two steps
            return done
        tokenizer = find_tokenizer(job, out, bar)
        arguments = (config, job.inputs, tokenizer.model, directory)
        with pool.start(num_processes, _initialise, *arguments) as workers:
            _first_pass(job, directory, workers, bar)
            kept, counts, repeated = _choose(job, directory)
            tasks = _tasks(config, kept)
            written = []
            with bar("pack and write", len(kept), unit="documents") as shown:
                for task, result in workers.each(_write_shard, tasks):
                    shown.update(len(task.documents))
                    written.append(result)
        work = manifest.Work(config, job.inputs, tokenizer.digest, job.units, counts, repeated, written)
        out.complete(*manifest.summarise(work))
        return out.completed()


def find_tokenizer(job: Job, out: output.Output, bar: Bar) -> vocabulary.Tokenizer:
    """The tokenizer of the data set: the one named, or one trained on a sample of the filtered sources.

    Raises: ValueError if it cannot be trained.
    """
    if out.exists(dataset.TOKENIZER):  # of a run that was stopped
        return vocabulary.Tokenizer(out.read(dataset.TOKENIZER))
    if job.named_tokenizer:
        model = job.named_tokenizer.model
    else:
        size = job.config.tokenizer.size
        with bar("read for the tokenizer", sum(unit.size for unit in job.units)) as shown:
            texts = list(_sample(job, shown))
        if not texts:
            raise ValueError(
                f"none of the records of {', '.join(job.config.sources)} is left to train a tokenizer on: all are "
                "broken, dropped by a filter or empty; look at the filters and the fields in config, or name a "
                "tokenizer with config.tokenizer.path"
            )
        with bar(f"train a tokenizer of {size} pieces", None):
            model = training.train(texts, size)
    out.write(dataset.TOKENIZER, model)
    return vocabulary.Tokenizer(model)


def _sample(job: Job, shown) -> Iterator[str]:
    """Texts of about `tokenizer.max_characters` in all: of every source its share, chosen by a hash of their place."""
    keep = filters.build(job.config, job.inputs)
    share = min(1.0, job.config.tokenizer.max_characters / max(1, sum(unit.size for unit in job.units)))
    left: collections.Counter = collections.Counter()
    for unit in job.units:
        left[unit.source] += share * unit.size
    broken: dict[str, list] = collections.defaultdict(list)
    for unit in job.units:
        for record in sources.read(unit, job.config.sources[unit.source]):
            if left[unit.source] <= 0:
                break
            if isinstance(record, sources.Broken):
                broken[unit.source].append((record.place, record.problem))
                documents.check_broken(job.config, job.units, unit.source, broken[unit.source])
            elif records.uniform(job.config.seed, "tokenizer", str(record.place)) < share:
                if (text := _filtered_text(keep, record)) is not None:
                    left[unit.source] -= len(text)
                    yield text
        shown.update(unit.size)


def _filtered_text(keep: list[records.Filter], record: records.Record) -> str | None:
    try:
        outcome = filters.apply(keep, record)
    except ValueError:  # a record without a score, for one: the first pass counts it as broken
        return None
    return outcome.text if isinstance(outcome, records.Record) else None


def _first_pass(job: Job, directory: pathlib.Path, workers: pool.Pool, bar: Bar) -> None:
    todo = [unit for unit in job.units if not _index_path(directory, unit.number).exists()]
    num_documents, started = 0, time.monotonic()
    broken: dict[str, list] = collections.defaultdict(list)
    with bar("filter and tokenise", sum(unit.size for unit in todo)) as shown:
        for unit, (count, its_broken) in workers.each(_make_candidates, todo):
            broken[unit.source] += its_broken
            documents.check_broken(job.config, job.units, unit.source, broken[unit.source])
            num_documents += count
            shown.update(unit.size)
            rate = num_documents / max(time.monotonic() - started, 1e-9)
            shown.set_postfix_str(f"{rate:.0f} documents/s", refresh=False)  # with the bar's own next drawing


# --- what the worker processes do ---

_worker: documents.Worker
_directory: pathlib.Path


def _initialise(config: settings.Prepare, inputs: filters.Inputs, model: bytes, directory: pathlib.Path) -> None:
    global _worker, _directory
    _worker = documents.Worker(config, inputs, vocabulary.Tokenizer(model))
    _directory = directory


def _candidates_path(directory: pathlib.Path, unit: int) -> pathlib.Path:
    return directory / dataset.WORK / f"unit-{unit:06d}.array_record"


def _index_path(directory: pathlib.Path, unit: int) -> pathlib.Path:
    return directory / dataset.WORK / f"unit-{unit:06d}.index"


def _make_candidates(unit: sources.Unit) -> tuple[int, list]:
    """Writes the candidates of a unit, then their index; returns how many there are, and what was broken."""
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
    fields = dataclasses.asdict(counts) | {
        "dropped": [[*key, count] for key, count in counts.dropped.items()],
        "broken": [[*dataclasses.astuple(place), problem] for place, problem in counts.broken],
        "examples": [[why, *dataclasses.astuple(place), detail] for why, place, detail in counts.examples],
    }
    # The index says, by being there, that the candidates are.
    output.write_whole(_index_path(_directory, unit.number), msgpack.packb({"counts": fields, "candidates": index}))
    return len(index), counts.broken


def _read_counts(fields: dict) -> documents.Counts:
    return documents.Counts(
        **fields
        | {
            "dropped": collections.Counter({tuple(key): count for *key, count in fields["dropped"]}),
            "broken": [(records.Place(*place), problem) for *place, problem in fields["broken"]],
            "examples": [(reason, records.Place(*place), detail) for reason, *place, detail in fields["examples"]],
        }
    )


# --- between the passes ---


@dataclasses.dataclass(frozen=True, slots=True)
class _Kept:
    """A candidate that is no duplicate: where it stands under `.work`, and what its shard follows from."""

    unit: int
    index: int
    part: str
    order: int
    num_tokens: int


def _choose(job: Job, directory: pathlib.Path) -> tuple[list[_Kept], list[documents.Counts], manifest.Duplicates]:
    """The candidates that are kept, the counts of every unit, and the duplicates."""
    counts, found = [], []
    for unit in job.units:
        content = msgpack.unpackb(_index_path(directory, unit.number).read_bytes())
        counts.append(_read_counts(content["counts"]))
        found += [(unit.number, index, *candidate) for index, candidate in enumerate(content["candidates"])]
    documents.check_all_broken(job.config, job.units, counts)
    earlier_of = _find_duplicates(job.config.duplicates, found)
    repeated = manifest.Duplicates()
    kept = []
    for number, (unit, index, bucket, language, place, num_tokens, _, _) in enumerate(found):
        if number not in earlier_of:
            order = assembly.order(job.config.seed, records.Place(*place))
            kept.append(_Kept(unit, index, f"{bucket}/{language}", order, num_tokens))
            continue
        reason, earlier = earlier_of[number]
        repeated.counts[bucket, language, reason] += 1
        repeated.examples.append((reason, records.Place(*place), records.Place(*found[earlier][4])))
    return kept, counts, repeated


def _find_duplicates(config: settings.Duplicates, found: list) -> dict[int, tuple[str, int]]:
    """{candidate: (reason, the earlier one it repeats)}.

    Copies are found by their digest, so that only one of them takes part in the comparison of those that are alike.
    """
    earlier_of: dict[int, tuple[str, int]] = {}
    if config.exact or config.near:
        first: dict[bytes, int] = {}
        for number, (*_, text_digest, _) in enumerate(found):
            earlier = first.setdefault(text_digest, number)
            if earlier != number:
                earlier_of[number] = ("duplicate", earlier)
    if config.near:
        numbers = [n for n, (*_, signature) in enumerate(found) if signature is not None and n not in earlier_of]
        signatures = np.frombuffer(b"".join(found[number][-1] for number in numbers), np.uint64)
        signatures = signatures.reshape(len(numbers), duplicates.NUM_PERMUTATIONS)
        for later, earlier in duplicates.find(signatures, config.min_similarity).items():
            earlier_of[numbers[later]] = ("near duplicate", numbers[earlier])
    return earlier_of


# --- the second pass ---


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A shard to put together."""

    part: str
    number: int
    num_shards: int
    documents: tuple[tuple[int, int], ...]  # (unit, index)


def _tasks(config: settings.Prepare, kept: Sequence[_Kept]) -> list[_Shard]:
    num_tokens: collections.Counter = collections.Counter()
    for candidate in kept:
        num_tokens[candidate.part] += candidate.num_tokens
    num_shards = {part: assembly.num_shards(config, count) for part, count in num_tokens.items()}
    in_shard: dict[tuple[str, int], list] = collections.defaultdict(list)
    for candidate in kept:
        shard = assembly.shard_of(candidate.order, num_shards[candidate.part])
        in_shard[candidate.part, shard].append((candidate.unit, candidate.index))
    return [
        _Shard(part, shard, num_shards[part], tuple(in_shard[part, shard]))
        for part in sorted(num_shards)
        for shard in range(num_shards[part])
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
    written = assembly.write_shard(str(_directory), _worker.config, task.part, shard, content)
    output.write_whole(note, json.dumps(written).encode())
    return written

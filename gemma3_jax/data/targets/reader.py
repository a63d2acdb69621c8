"""What a teacher said of the rows of a stage: a directory with a manifest, written last.

targets.json                                what is here, and of what it was made
part-00000/000000000000.array_record        of some rows, by the process that wrote it and the first of them

Row n of a stage is the n-th of its sequence, whatever number of rows a step has. The first record of a file is the
numbers of its rows, int64; the others are `taught_records` of these rows.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from gemma3_jax.data import open_shards, order, shards
from gemma3_jax.data.targets import codec, subsample
from gemma3_jax.distill import settings

FORMAT = 1
MANIFEST = "targets.json"
WORK = ".teaching"  # what is being written has beside its files
# What the sequence of rows depends on, and where a stage is told it.
OF_ROWS = {
    "data": "its data",
    "seq_len": "its seq_len",
    "seed": "config.seed",
    "mixture": "its mixture, or that of its data",
}
NAMES = (*OF_ROWS, "tokenizer", "vocab_size", "teacher", "num_rows", "estimator", "num_samples", "temperature")


def made_of(
    rows: order.Order,
    samples: settings.Samples,
    *,
    tokenizer: str,
    vocab_size: int,
    teacher: str,
    num_rows: int,
) -> dict:
    """All that targets depend on, by name; `tokenizer` and `teacher` are digests, `vocab_size` is the teacher's.

    Raises: ValueError if an id could not be stored.
    """
    if vocab_size > codec.MAX_IDS:
        raise ValueError(
            f"the teacher has a vocabulary of {vocab_size}; targets are stored for at most {codec.MAX_IDS}: "
            "let it teach while the student is trained"
        )
    if num_rows < 1:
        raise ValueError(f"num_rows is {num_rows}; it must be at least 1")
    return {
        **_of_rows(rows),
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "teacher": teacher,
        "num_rows": num_rows,
        **dataclasses.asdict(samples),
    }


def _of_rows(rows: order.Order) -> dict:
    cursor = rows.cursor(0)
    return {name: cursor[name] for name in OF_ROWS}


def samples_of(origin: Mapping) -> settings.Samples:
    """The samples that are stored, of what `made_of` says."""
    return settings.Samples(**{field.name: origin[field.name] for field in dataclasses.fields(settings.Samples)})


@dataclasses.dataclass(frozen=True, eq=False)
class Taught:
    """The targets in a directory: all that is stored, or as a stage wants them. Sent to other processes."""

    path: pathlib.Path
    manifest: Mapping
    places: np.ndarray  # int32: the file of each row, and the record in it
    files: open_shards.OpenShards
    num_samples: int  # of each token, as they are read

    @property
    def origin(self) -> Mapping:
        """What it was made of, as `made_of` says."""
        return self.manifest["made_of"]

    @property
    def num_rows(self) -> int:
        return self.origin["num_rows"]

    @property
    def teacher(self) -> str:
        """Its digest."""
        return self.origin["teacher"]

    def of_stage(
        self, rows: order.Order, tokenizer: str, samples: settings.Samples, *, vocab_size: int, num_rows: int
    ) -> "Taught":
        """The targets for a stage that trains on the first `num_rows` of these rows; fewer samples, if it wants fewer.

        Raises: ValueError if they are of other rows, another tokenizer or vocabulary, or other samples.
        """
        remedy = "teach again for this stage, or"
        for name, value in _of_rows(rows).items():
            self._check(name, value, f"{remedy} change {OF_ROWS[name]} back")
        self._check("tokenizer", tokenizer, f"{remedy} name data of that tokenizer")
        self._check("vocab_size", vocab_size, "let a teacher with the student's vocabulary teach")
        self._check("estimator", samples.estimator, f"{remedy} set its estimator to what is stored")
        self._check("temperature", samples.temperature, f"{remedy} set its temperature to what is stored")
        if num_rows > self.num_rows:
            raise ValueError(
                f"{self.path} has targets of the first {self.num_rows} rows, the stage trains on {num_rows}; "
                "teach that many, or take fewer steps"
            )
        try:
            subsample.check(samples_of(self.origin), samples.num_samples, vocab_size)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        return dataclasses.replace(self, num_samples=samples.num_samples)

    def _check(self, name: str, wanted: object, remedy: str) -> None:
        if self.origin[name] != wanted:
            raise ValueError(
                f"{self.path} has targets made with {name} {self.origin[name]}, the stage has {wanted}; {remedy}"
            )

    def read(self, number: int, row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The fields of `targets.Targets` for row `number`, [T, M] and [T]; zeros where nothing is to be learned.

        `row` has the fields of `stream.Rows`, [T] each.
        Raises: ValueError if a file is damaged, or what is stored is not of this row.
        """
        shard, record = map(int, self.places[number])
        try:
            content = self.files.read(shard, record)
        except ValueError as error:
            raise _damaged(error) from error
        if codec.digest_of(content) != codec.row_digest(row):
            raise ValueError(
                f"the targets of row {number} in {self.path} are of another row; let the stage train on the rows that "
                "were taught, or teach again"
            )
        learned = subsample.cut(codec.decode(content), self.origin["estimator"], self.num_samples, number)
        return codec.spread(learned, row["loss_mask"])


def open_taught(path: pathlib.Path) -> Taught:
    """The targets in a directory; every file is opened once.

    Raises: ValueError if there are none, or they are not finished, damaged, or of a format this version does not read.
    """
    if not (path / MANIFEST).is_file():
        if (path / WORK).is_dir():
            raise ValueError(f"{path} is not finished; run the same teach command again, and it goes on")
        raise ValueError(f"{path} has no targets: there is no {MANIFEST}; make them with teach")
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        found = manifest["format"]
        if found == FORMAT:
            _ = [manifest["made_of"][name] for name in NAMES]
            files = [(str(name), int(count)) for name, count in manifest["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / MANIFEST} is damaged ({error!r}); copy the targets or teach again") from error
    if found != FORMAT:
        raise ValueError(f"{path / MANIFEST} is of format {found}; this version reads {FORMAT}: teach again")
    places = find_rows(path, files, manifest["made_of"]["num_rows"])
    if missing := np.flatnonzero(places[:, 1] == 0).tolist():
        raise ValueError(f"{path} is damaged: {describe(missing)} not in its files; copy the targets or teach again")
    return Taught(path, manifest, places, open_shards.OpenShards(path, files), manifest["made_of"]["num_samples"])


def find_rows(path: pathlib.Path, files: Sequence[tuple[str, int]], num_rows: int) -> np.ndarray:
    """int32 [rows, 2]: the file of each row, and the record in it; 0 if it is in none. `files`: name, records.

    Raises: ValueError if one is missing or damaged.
    """
    places = np.zeros((num_rows, 2), np.int32)
    for shard, (name, count) in enumerate(files):
        numbers = rows_in(path / name, count)
        if strange := numbers[(numbers < 0) | (numbers >= num_rows)].tolist():
            raise _damaged(ValueError(f"{path / name} is damaged: it has {describe(strange)} of {num_rows}"))
        places[numbers, 0], places[numbers, 1] = shard, np.arange(1, len(numbers) + 1)
    return places


def rows_in(path: pathlib.Path, num_records: int | None = None) -> np.ndarray:
    """The numbers of the rows in a file, int64. Raises: ValueError if it is missing or damaged."""
    try:
        reader = shards.Reader(path, num_records)
        numbers = reader[0]
        reader.close()
    except ValueError as error:
        raise _damaged(error) from error
    return np.frombuffer(numbers, "<i8")


def _damaged(error: ValueError) -> ValueError:
    return ValueError(f"{str(error).split(';')[0]}; copy the targets again, or remove them and teach again")


def describe(numbers: list[int]) -> str:
    """A few of the rows that are missing, as the beginning of a sentence."""
    more = f" and {len(numbers) - 3} more" if len(numbers) > 3 else ""
    return f"{'row' if len(numbers) == 1 else 'rows'} {', '.join(map(str, numbers[:3]))}{more}"

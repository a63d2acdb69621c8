"""The stored teacher targets of the rows of a stage: a directory whose manifest is written last.

targets.json                                contents and origin
part-00000/000000000000.array_record        targets of some rows; named by the writing process and the first row

Row n of a stage is the n-th of its sequence of rows, for any batch size. The first record of a file has the ids of its
rows, int64; the others are the targets of these rows, as `codec` encodes them.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from gemma3_jax import renamed
from gemma3_jax.data import open_shards, order, shards
from gemma3_jax.data.targets import codec, subsample
from gemma3_jax.distill import settings
from gemma3_jax.durable import json_file

FORMAT = 1
MANIFEST = "targets.json"
WORK = ".teaching"  # beside the files while they are being written
# What the sequence of rows depends on, and what sets it for a stage.
ROW_ORIGIN = {
    "data": "its data",
    "seq_len": "its seq_len",
    "seed": "config.seed",
    "mixture": "its mixture, or that of its data",
}
ORIGIN_FIELDS = {
    "data": str,
    "seq_len": int,
    "seed": int,
    "mixture": str,
    "tokenizer": str,
    "vocab_size": int,
    "teacher": str,
    "num_rows": int,
    "estimator": str,
    "num_samples": int,
    "temperature": float,
}


def made_of(
    rows: order.Order,
    samples: settings.Samples,
    *,
    tokenizer: str,
    vocab_size: int,
    teacher: str,
    num_rows: int,
) -> dict:
    """Returns the origin of targets: all they depend on, by name.

    `tokenizer` and `teacher` are digests, `vocab_size` is the teacher's. Raises: ValueError if an id cannot be stored.
    """
    if vocab_size > codec.MAX_IDS:
        raise ValueError(
            f"the teacher has a vocabulary of {vocab_size}; targets are stored for at most {codec.MAX_IDS}: "
            "let it teach while the student is trained"
        )
    if num_rows < 1:
        raise ValueError(f"num_rows is {num_rows}; it must be at least 1")
    return {
        **_row_origin(rows),
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "teacher": teacher,
        "num_rows": num_rows,
        **dataclasses.asdict(samples),
    }


def _row_origin(rows: order.Order) -> dict:
    cursor = rows.cursor(0)
    return {name: cursor[name] for name in ROW_ORIGIN}


def samples_of(origin: Mapping) -> settings.Samples:
    """Returns the settings of the samples that are stored."""
    return settings.Samples(**{field.name: origin[field.name] for field in dataclasses.fields(settings.Samples)})


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTargets:
    """The targets in a directory, with all their samples or as many as a stage takes. Can be pickled."""

    path: pathlib.Path
    manifest: Mapping
    locations: np.ndarray  # int32 [rows, 2]: the file of each row, and its record there
    files: open_shards.OpenShards
    num_samples: int  # of each token, as they are read

    @property
    def origin(self) -> Mapping:
        """What the targets depend on, as `made_of` returns it."""
        return self.manifest["made_of"]

    @property
    def num_rows(self) -> int:
        return self.origin["num_rows"]

    @property
    def teacher(self) -> str:
        """The digest of the teacher."""
        return self.origin["teacher"]

    def for_stage(
        self, rows: order.Order, tokenizer: str, samples: settings.Samples, *, vocab_size: int, num_rows: int
    ) -> "StoredTargets":
        """Returns the targets for a stage that trains on the first `num_rows` of `rows`, with its number of samples.

        Raises: ValueError if these are targets of other rows, another tokenizer or vocabulary, or other samples.
        """
        remedy = "teach again for this stage, or"
        for name, value in _row_origin(rows).items():
            self._check(name, value, f"{remedy} change {ROW_ORIGIN[name]} back")
        self._check("tokenizer", tokenizer, f"{remedy} name data of that tokenizer")
        self._check("vocab_size", vocab_size, "take a teacher with the student's vocabulary")
        self._check("estimator", samples.estimator, f"{remedy} set its estimator to what is stored")
        self._check("temperature", samples.temperature, f"{remedy} set its temperature to what is stored")
        if num_rows > self.num_rows:
            raise ValueError(
                f"{self.path} has targets of the first {self.num_rows} sequences, the stage trains on {num_rows}; "
                "teach that many, or take fewer steps"
            )
        try:
            subsample.check(samples_of(self.origin), samples.num_samples, vocab_size)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        return dataclasses.replace(self, num_samples=samples.num_samples)

    def _check(self, name: str, value: object, remedy: str) -> None:
        if self.origin[name] != value:
            raise ValueError(
                f"{self.path} has targets made with {name} {self.origin[name]}, the stage has {value}; {remedy}"
            )

    def read(self, row_id: int, row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the fields of SparseTargets for a row, [T, M] and [T]; zeros outside its loss mask.

        `row` has the fields of `stream.Rows`, [T] each.
        Raises: ValueError if a file is damaged, or the stored targets are of another row.
        """
        shard, record = map(int, self.locations[row_id])
        try:
            content = self.files.read(shard, record)
        except ValueError as error:
            raise _damaged(error) from error
        try:
            digest = codec.digest_of(content)
        except ValueError as error:
            raise self._damaged_record(shard, record, error) from error
        if digest != codec.row_digest(row):
            raise ValueError(
                f"the targets of row {row_id} in {self.path} are of another row; train the stage on the rows that the "
                "targets were made for, or teach again"
            )
        try:
            targets = codec.decode(content)
            codec.check(targets, int(row["loss_mask"].sum()), self.origin["num_samples"], self.origin["vocab_size"])
        except ValueError as error:
            raise self._damaged_record(shard, record, error) from error
        targets = subsample.take(targets, self.origin["estimator"], self.num_samples, row_id)
        return codec.scatter(targets, row["loss_mask"])

    def _damaged_record(self, shard: int, record: int, error: ValueError) -> ValueError:
        return _damaged(ValueError(f"{self.files.path(shard)} is damaged at record {record}: {error}"))


def open_targets(path: pathlib.Path) -> StoredTargets:
    """Opens the targets in a directory; every file is opened once.

    Raises: ValueError if there are none, or they are unfinished, damaged, or of a format this version does not read.
    """
    if not (path / MANIFEST).is_file():
        if (path / WORK).is_dir():
            raise ValueError(f"{path} is not finished; run the same teach command again to resume it")
        raise ValueError(f"{path} has no targets: there is no {MANIFEST}; make them with teach")
    try:
        manifest = json_file.read_object((path / MANIFEST).read_bytes(), MANIFEST)
        json_file.check(manifest, {"format": int}, MANIFEST)
        files = _check(manifest) if manifest["format"] == FORMAT else []
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; copy the targets or teach again") from error
    if manifest["format"] != FORMAT:
        raise ValueError(f"{path / MANIFEST} has format {manifest['format']}; this version reads {FORMAT}: teach again")
    locations = find_rows(path, files, manifest["made_of"]["num_rows"])
    if missing := np.flatnonzero(locations[:, 1] == 0).tolist():
        raise ValueError(f"{path} is damaged: {describe(missing)} not in its files; copy the targets or teach again")
    num_samples = manifest["made_of"]["num_samples"]
    return StoredTargets(path, manifest, locations, open_shards.OpenShards(path, files), num_samples)


def _check(manifest: dict) -> list[tuple[str, int]]:
    """Brings a manifest under today's names; returns its files. Raises: ValueError if it is damaged."""
    json_file.check(manifest, {"made_of": dict, "files": list[list]}, MANIFEST)
    manifest["made_of"] = origin = renamed.current(manifest["made_of"])
    json_file.check(origin, ORIGIN_FIELDS, f"{MANIFEST}: made_of")
    samples_of(origin)  # checks itself
    for name in ("num_rows", "seq_len", "vocab_size"):
        if origin[name] < 1:
            raise ValueError(f"{MANIFEST}: made_of.{name} is {origin[name]}; it must be at least 1")
    for number, entry in enumerate(manifest["files"]):
        where = f"{MANIFEST}: files[{number}]"
        if len(entry) != 2:
            raise ValueError(f"{where} has {len(entry)} entries; it must be a path and the number of its records")
        name, count = entry
        json_file.check({"path": name, "records": count}, {"path": str, "records": int}, where)
        shards.check_path(name, where)
        if count < 1:
            raise ValueError(f"{where} has {count} records; it must have at least 1")
    num_stored = sum(count - 1 for _, count in manifest["files"])  # the first record of a file has the ids of its rows
    if origin["num_rows"] > num_stored:
        raise ValueError(f"{MANIFEST}: made_of.num_rows is {origin['num_rows']}, and its files have {num_stored} rows")
    return [(name, count) for name, count in manifest["files"]]


def find_rows(path: pathlib.Path, files: Sequence[tuple[str, int]], num_rows: int) -> np.ndarray:
    """Returns int32 [rows, 2]: the file of each row, and its record there, 0 if no file has it. `files`: name, records.

    Raises: ValueError if a file is missing or damaged.
    """
    locations = np.zeros((num_rows, 2), np.int32)
    for shard, (name, count) in enumerate(files):
        row_ids = rows_in(path / name, count)
        if unknown := row_ids[(row_ids < 0) | (row_ids >= num_rows)].tolist():
            raise _damaged(ValueError(f"{path / name} is damaged: it has {describe(unknown)} of {num_rows}"))
        locations[row_ids, 0], locations[row_ids, 1] = shard, np.arange(1, len(row_ids) + 1)
    return locations


def rows_in(path: pathlib.Path, num_records: int | None = None) -> np.ndarray:
    """Returns the ids of the rows in a file, int64. Raises: ValueError if it is missing or damaged."""
    try:
        reader = shards.Reader(path, num_records)
        content, num_rows = reader[0], len(reader) - 1
        reader.close()
        if len(content) != 8 * num_rows:
            raise ValueError(f"{path} is damaged: it has {num_rows} rows, and ids of {len(content) / 8:g}")
    except ValueError as error:
        raise _damaged(error) from error
    return np.frombuffer(content, "<i8")


def _damaged(error: ValueError) -> ValueError:
    return ValueError(f"{str(error).split(';')[0]}; copy the targets again, or remove them and teach again")


def describe(row_ids: list[int]) -> str:
    """Returns the first few ids, as the beginning of a sentence: "rows 8, 9, 10 and 11 more"."""
    more = f" and {len(row_ids) - 3} more" if len(row_ids) > 3 else ""
    return f"{'row' if len(row_ids) == 1 else 'rows'} {', '.join(map(str, row_ids[:3]))}{more}"

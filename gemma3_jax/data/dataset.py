"""A prepared data set: a directory whose manifest is written last, so that it is there only if the data is complete.

manifest.json                 contents and origin; its digest identifies the data
report.json                   what was dropped, why, and examples
tokenizer.model
rows-00512/BUCKET/LANGUAGE/00000-of-00004.array_record
documents/BUCKET/LANGUAGE/00000-of-00004.array_record
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping

from gemma3_jax import renamed
from gemma3_jax.data import settings, shards
from gemma3_jax.durable import json_file
from gemma3_jax.tokenizer import vocabulary

FORMAT = 1
MANIFEST, REPORT, TOKENIZER = "manifest.json", "report.json", "tokenizer.model"
WORK = ".work"  # what an unfinished data set has instead of a manifest
FIELDS = {
    "digest": str,
    "tokenizer": {"digest": str},
    "seq_lens": list[int],
    "parts": dict[str, dict],
    "mixture": dict[str, dict],
}
PART_FIELDS = {"characters": int, "rows": dict[str, int], "files": dict[str, list[dict]]}
FILE_FIELDS = {"path": str, "records": int, "bytes": int, "sha256": str}


def canonical(value: object) -> str:
    """Returns JSON in one canonical form, to be digested."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: object) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def part_path(kind: str, part: str, shard: int, num_shards: int) -> str:
    """Returns the path of a shard in the data set: kind "rows-00512" or "documents", part "bucket/language"."""
    return f"{kind}/{part}/{shard:05d}-of-{num_shards:05d}.array_record"


def rows_kind(seq_len: int) -> str:
    return f"rows-{seq_len:05d}"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A complete data set in a local directory."""

    path: pathlib.Path
    manifest: dict

    @property
    def digest(self) -> str:
        """Digest of the contents: a copy has the same one."""
        return self.manifest["digest"]

    @functools.cached_property
    def num_ids(self) -> int:
        """The size of the vocabulary: every token id of the records is below it."""
        return self.tokenizer().size

    def files(self) -> Iterator[dict]:
        """Yields the entry of every shard in the manifest: path, records, bytes, sha256."""
        for part in self.manifest["parts"].values():
            yield from _files(part)

    def tokenizer(self) -> vocabulary.Tokenizer:
        """Returns the tokenizer. Raises: ValueError if it is not the one that the records were made with."""
        tokenizer = vocabulary.load(self.path / TOKENIZER)
        vocabulary.check_same(
            tokenizer.digest,
            self.manifest["tokenizer"]["digest"],
            got_from=str(self.path / TOKENIZER),
            expected_from=f"the records beside it ({MANIFEST})",
        )
        return tokenizer

    def mixture(self) -> dict[str, settings.Bucket]:
        """Returns the mixture that the data set was prepared with."""
        return {name: settings.read_bucket(bucket, name) for name, bucket in self.manifest["mixture"].items()}


def open_dataset(path: pathlib.Path) -> Dataset:
    """Opens the data set in a directory.

    Raises: ValueError if there is none, if it is not finished, if its manifest is damaged or does not agree with
    itself, or if this version does not read its format.
    """
    if not (path / MANIFEST).is_file():
        if (path / WORK).is_dir():
            raise ValueError(f"{path} is not finished; run the same prepare command again to resume it")
        raise ValueError(f"{path} is not a prepared data set: it has no {MANIFEST}; make one with prepare")
    try:
        manifest = _current(json_file.read_object((path / MANIFEST).read_bytes(), MANIFEST))
        json_file.check(manifest, {"format": int}, MANIFEST)
        if manifest["format"] == FORMAT:
            _check(manifest)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; copy or prepare the data again") from error
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"{path / MANIFEST} has format {manifest['format']}; this version reads {FORMAT}: prepare the data again"
        )
    return Dataset(path, manifest)


def _check(manifest: Mapping) -> None:
    """Raises: ValueError if a manifest lacks something, or does not agree with itself."""
    json_file.check(manifest, FIELDS, MANIFEST)
    for bucket_name, bucket in manifest["mixture"].items():
        settings.read_bucket(bucket, f"{MANIFEST}: mixture.{bucket_name}")
    for part_name, part in manifest["parts"].items():
        _check_part(part, manifest["seq_lens"], f"{MANIFEST}: parts.{part_name}")
    content_digest = digest([manifest["tokenizer"]["digest"], manifest["parts"]])
    if content_digest != manifest["digest"]:
        raise ValueError(f"{MANIFEST} has the digest {manifest['digest']:.12}, and its parts have {content_digest:.12}")


def _check_part(part: Mapping, seq_lens: list[int], name: str) -> None:
    json_file.check(part, PART_FIELDS, name)
    paths = set()
    for kind, files in part["files"].items():
        for number, file in enumerate(files):
            where = f"{name}.files.{kind}[{number}]"
            json_file.check(file, FILE_FIELDS, where)
            shards.check_path(file["path"], where)
            if file["path"] in paths:
                raise ValueError(f"{where} is {file['path']} a second time")
            paths.add(file["path"])
    for seq_len in seq_lens:
        num_rows = part["rows"].get(str(seq_len))
        total = sum(file["records"] for file in part["files"].get(rows_kind(seq_len), []))
        if num_rows != total:
            raise ValueError(f"{name} has {num_rows} rows of {seq_len} tokens, and its files have {total}")
    if min([part["characters"], *part["rows"].values(), *(file["records"] for file in _files(part))]) < 0:
        raise ValueError(f"{name} has a count below 0")


def _files(part: Mapping) -> Iterator[dict]:
    return itertools.chain.from_iterable(part["files"].values())


def _current(manifest: dict) -> dict:
    """A manifest under today's names. Only its top level is mapped: below it are names that users have chosen."""
    return {renamed.FIELDS.get(name, name): value for name, value in manifest.items()}

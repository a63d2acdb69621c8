"""A prepared data set: a directory whose manifest is written last, so that it is there only if the data is complete.

manifest.json                 contents and origin; its digest identifies the data
report.json                   what was dropped, why, and examples
tokenizer.model
rows-00512/BUCKET/LANGUAGE/00000-of-00004.array_record
documents/BUCKET/LANGUAGE/00000-of-00004.array_record
"""

import dataclasses
import hashlib
import json
import pathlib

from gemma3_jax import renamed
from gemma3_jax.data import settings
from gemma3_jax.tokenizer import vocabulary

FORMAT = 1
MANIFEST, REPORT, TOKENIZER = "manifest.json", "report.json", "tokenizer.model"
WORK = ".work"  # what an unfinished data set has instead of a manifest


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
        return {
            name: settings.Bucket(**{**bucket, "languages": tuple(bucket["languages"])})
            for name, bucket in self.manifest["mixture"].items()
        }


def open_dataset(path: pathlib.Path) -> Dataset:
    """Opens the data set in a directory.

    Raises: ValueError if there is none, if it is not finished, or if this version does not read its format.
    """
    if not (path / MANIFEST).is_file():
        if (path / WORK).is_dir():
            raise ValueError(f"{path} is not finished; run the same prepare command again to resume it")
        raise ValueError(f"{path} is not a prepared data set: it has no {MANIFEST}; make one with prepare")
    try:
        manifest = _current(json.loads((path / MANIFEST).read_text()))
        file_format = manifest["format"]
        if file_format == FORMAT:
            _ = [manifest[name] for name in ("digest", "tokenizer", "seq_lens", "parts", "mixture")]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / MANIFEST} is damaged ({error}); copy or prepare the data again") from error
    if file_format != FORMAT:
        raise ValueError(
            f"{path / MANIFEST} has format {file_format}; this version reads {FORMAT}: prepare the data again"
        )
    return Dataset(path, manifest)


def _current(manifest: dict) -> dict:
    """A manifest under today's names. Only its top level is mapped: below it are names that users have chosen."""
    return {renamed.FIELDS.get(name, name): value for name, value in manifest.items()}

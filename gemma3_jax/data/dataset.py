"""A prepared data set: a directory with a manifest, written last, so that there is one if and only if it is whole.

manifest.json                 what is here, and of what it was made; its digest is the data's name
report.json                   what was left out, why, and examples
tokenizer.model
rows-00512/BUCKET/LANGUAGE/00000-of-00004.array_record
documents/BUCKET/LANGUAGE/00000-of-00004.array_record
"""

import dataclasses
import hashlib
import json
import pathlib

from gemma3_jax.data import settings
from gemma3_jax.tokenizer import vocabulary

FORMAT = 1
MANIFEST, REPORT, TOKENIZER = "manifest.json", "report.json", "tokenizer.model"
WORK = ".work"  # what an unfinished data set has instead of a manifest


def canonical(value: object) -> str:
    """JSON of one form, to be digested."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: object) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def part_path(kind: str, part: str, shard: int, num_shards: int) -> str:
    """Where a shard stands in the data set: kind "rows-00512" or "documents", part "bucket/language"."""
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
        """Of the contents: the same for a copy, wherever it lies."""
        return self.manifest["digest"]

    def tokenizer(self) -> vocabulary.Tokenizer:
        """Raises: ValueError if the file is not the one the records were made with."""
        tokenizer = vocabulary.load(self.path / TOKENIZER)
        vocabulary.check_same(
            tokenizer.digest,
            self.manifest["tokenizer"]["digest"],
            got_from=str(self.path / TOKENIZER),
            expected_from=f"the records beside it ({MANIFEST})",
        )
        return tokenizer

    def mixture(self) -> dict[str, settings.Bucket]:
        """The mixture it was prepared with."""
        return {
            name: settings.Bucket(**{**bucket, "languages": tuple(bucket["languages"])})
            for name, bucket in self.manifest["mixture"].items()
        }


def open_dataset(path: pathlib.Path) -> Dataset:
    """The data set in a directory.

    Raises: ValueError if there is none, or it is not finished, or of a format this version does not read.
    """
    if not (path / MANIFEST).is_file():
        if (path / WORK).is_dir():
            raise ValueError(f"{path} is not finished; run the same prepare command again, and it goes on")
        raise ValueError(f"{path} is not a prepared data set: it has no {MANIFEST}; make one with prepare")
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        found = manifest["format"]
        if found == FORMAT:
            _ = [manifest[name] for name in ("digest", "tokenizer", "seq_lens", "parts", "mixture")]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / MANIFEST} is damaged ({error}); copy or prepare the data again") from error
    if found != FORMAT:
        raise ValueError(f"{path / MANIFEST} is of format {found}; this version reads {FORMAT}: prepare the data again")
    return Dataset(path, manifest)

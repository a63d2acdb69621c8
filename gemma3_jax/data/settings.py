"""Settings of the data that training reads; those of `prepare` are in `data/prepare/settings.py`."""

import dataclasses
import math
from collections.abc import Mapping

from gemma3_jax.durable import json_file


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A named fraction of the mixture. Inside a bucket, UniMax balances the languages."""

    weight: float = 1.0  # of the bucket's tokens, relative to the other buckets
    languages: tuple[str, ...] = ()  # empty: every language of the bucket
    max_epochs: float = 1.0  # no language is seen more often than this within the budget
    budget_characters: int = 0  # 0: max_epochs x all characters, which leaves the proportions of the languages alone


BUCKET_FIELDS = {"weight": float, "languages": list[str], "max_epochs": float, "budget_characters": int}


def read_bucket(stored: Mapping, name: str) -> Bucket:
    """Returns the bucket that a manifest holds. Raises: ValueError if it is none that `check_bucket` allows."""
    json_file.check(stored, BUCKET_FIELDS, name)
    if unknown := sorted(stored.keys() - BUCKET_FIELDS.keys()):
        raise ValueError(f"{name} has an unknown field {unknown[0]}")
    bucket = Bucket(**{**stored, "languages": tuple(stored["languages"])})
    check_bucket(bucket, name)
    return bucket


def check_bucket(bucket: Bucket, name: str) -> None:
    """Raises: ValueError if nothing can be drawn by the numbers of a bucket."""
    if not (0 < bucket.weight < math.inf and 0 < bucket.max_epochs < math.inf and bucket.budget_characters >= 0):
        raise ValueError(
            f"{name} has weight {bucket.weight}, max_epochs {bucket.max_epochs}, budget_characters "
            f"{bucket.budget_characters}; the first two must be over 0 and finite, the last at least 0"
        )

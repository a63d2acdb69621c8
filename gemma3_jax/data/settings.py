"""Settings of the data that training reads; those of `prepare` are in `data/prepare/settings.py`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A named fraction of the mixture. Inside a bucket, UniMax balances the languages."""

    weight: float = 1.0
    languages: tuple[str, ...] = ()  # empty: every language of the bucket
    max_epochs: float = 1.0  # no language is seen more often than this within the budget
    budget_characters: int = 0  # 0: max_epochs x all characters, which leaves the proportions of the languages alone

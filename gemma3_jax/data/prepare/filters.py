"""The filters, in the order they run: each is a pure function of one record, built from the settings.

Duplicates are not here, because they are a property of many records (`duplicates.py`).
"""

import dataclasses
import numbers
import pathlib
import re

from gemma3_jax.data.prepare import contamination, personal_data, quality, records, settings, sources


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Files that the filters depend on: read once, where the command runs, and sent to the workers."""

    evaluation: tuple[tuple[str, str], ...] = ()  # (name, text) of every evaluation item
    unsafe_words: tuple[str, ...] = ()


def read_inputs(config: settings.PrepareConfig) -> Inputs:
    """Reads the evaluation sets and the word list that the settings name.

    Raises: ValueError if one cannot be read or is empty.
    """
    paths, fields = config.decontamination.paths, config.decontamination.fields
    evaluation = tuple(item for path in paths for item in sources.read_texts(path, fields))
    if paths and not any(text.strip() for _, text in evaluation):
        raise ValueError(
            f"the evaluation items in {', '.join(paths)} have no text in {fields or 'any field'} "
            "(config.decontamination.fields)"
        )
    return Inputs(evaluation, _read_words(config.safety.word_list) if config.safety.word_list else ())


def _read_words(name: str) -> tuple[str, ...]:
    path = pathlib.Path(name)
    if not path.is_file():
        raise ValueError(f"config.safety.word_list is {path}, which is not a file; it has a word or phrase a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"config.safety.word_list {path} is not UTF-8: {error.reason}") from error
    entries = tuple(line.strip() for line in lines if line.strip())
    if not entries:
        raise ValueError(f"config.safety.word_list {path} is empty; it has a word or phrase a line")
    return entries


def build(config: settings.PrepareConfig, inputs: Inputs) -> list[records.Filter]:
    """Returns the filters that are switched on, cheap ones first; length runs again after those that cut text.

    Raises: ValueError if a score function does not exist or a telephone region is unknown.
    """
    filters: list[records.Filter] = [_Length(config.length)]
    if inputs.unsafe_words:
        filters.append(_Safety(config.safety, inputs.unsafe_words))
    if config.quality.score:
        filters.append(_Quality(config.quality, config.seed))
    if inputs.evaluation:
        filters.append(_Decontamination(config.decontamination, inputs.evaluation))
    if config.personal_data.action and config.personal_data.kinds:
        filters.append(_PersonalData(config.personal_data))
    return [*filters, _Length(config.length)]


def apply(filters: list[records.Filter], record: records.Record) -> records.Record | records.Dropped:
    """Returns what all filters leave of a record, or the reason of the first that drops it."""
    for keep in filters:
        outcome = keep(record)
        if isinstance(outcome, records.Dropped):
            return outcome
        record = outcome
    return record


class _Length:
    def __init__(self, config: settings.LengthConfig):
        self.config = config

    def __call__(self, record: records.Record) -> records.Record | records.Dropped:
        length = sum(map(len, record.texts))
        if length < self.config.min_characters:
            return records.Dropped("too short", f"{length} characters")
        if self.config.max_characters and length > self.config.max_characters:
            return records.Dropped("too long", f"{length} characters")
        return record


class _Safety:
    def __init__(self, config: settings.SafetyConfig, entries: tuple[str, ...]):
        # Longest first, so that a phrase counts as itself and not as a shorter one in it.
        choices = "|".join(map(re.escape, sorted(entries, key=len, reverse=True)))
        self.pattern = re.compile(rf"(?<!\w)(?:{choices})(?!\w)", re.IGNORECASE)
        self.max_hits = config.max_hits

    def __call__(self, record: records.Record) -> records.Record | records.Dropped:
        num_hits = sum(1 for _ in self.pattern.finditer(record.text))
        return records.Dropped("unsafe", f"{num_hits} words of the list") if num_hits > self.max_hits else record


class _Quality:
    def __init__(self, config: settings.QualityConfig, seed: int):
        self.config, self.seed = config, seed
        self.score = quality.find_score(config.score)

    def __call__(self, record: records.Record) -> records.Record | records.Dropped:
        score = self._checked_score(record)
        probability = min(1.0, max(score**self.config.power, self.config.floor))
        if records.uniform(self.seed, "quality", record.text) < probability:
            return record
        return records.Dropped("low quality", f"score {score:.3f}")

    def _checked_score(self, record: records.Record) -> float:
        name = self.config.score
        try:
            score = self.score(record)
        except Exception as error:  # whatever a function of the user's may raise
            raise ValueError(f"{name} fails: {type(error).__name__}: {error} (config.quality.score)") from error
        if not isinstance(score, numbers.Real) or not 0 <= score <= 1:
            raise ValueError(f"{name} gives {score!r}; a score is a number from 0 to 1 (config.quality.score)")
        return float(score)


class _PersonalData:
    def __init__(self, config: settings.PersonalDataConfig):
        import phonenumbers

        if config.phone_region not in phonenumbers.SUPPORTED_REGIONS:
            raise ValueError(
                f"config.personal_data.phone_region is {config.phone_region!r}; write the two letters of a country"
            )
        self.config = config

    def __call__(self, record: records.Record) -> records.Record | records.Dropped:
        finds = [personal_data.find(text, self.config.kinds, self.config.phone_region) for text in record.texts]
        if not any(finds):
            return record
        if self.config.action == "drop":
            kinds = sorted({kind for of_text in finds for _, _, kind in of_text})
            return records.Dropped("personal data", ", ".join(kinds))
        by_text = iter(finds)
        return record.with_texts(lambda text: personal_data.mask(text, next(by_text)))


class _Decontamination:
    def __init__(self, config: settings.DecontaminationConfig, items: tuple[tuple[str, str], ...]):
        self.config = config
        self.index = contamination.Index(items)

    def __call__(self, record: records.Record) -> records.Record | records.Dropped:
        overlaps = [self.index.find(text) for text in record.texts]
        if not any(overlaps):
            return record
        longest = max((overlap for of_text in overlaps for overlap in of_text), key=lambda overlap: overlap.num_words)
        # Half a turn is no turn: overlaps are cut out of plain text only.
        if self.config.action == "drop" or record.roles:
            return records.Dropped("contaminated", f"{longest.num_words} words in a row of {longest.item}")
        left = contamination.excise(record.text, overlaps[0], self.config.margin_characters)
        return record.with_texts(lambda text: left) if left.strip() else records.Dropped("contaminated", "all of it")
